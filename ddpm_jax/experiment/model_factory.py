"""From the groups `schedule`, `model` and `diffusion` of a config to noise schedule, network and denoiser.

User input is checked here, outside jit, and named by its config field.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path
from ml_collections import ConfigDict

from ddpm_jax.data.condition import Condition, example_condition
from ddpm_jax.diffusion.denoiser import DenoiseFn, GuidedDenoiserOf, ProjectFn, make_denoiser
from ddpm_jax.diffusion.edits import pixel_measurement, range_null_projection
from ddpm_jax.diffusion.gradient_guidance import (
    ClassifierGuidance,
    class_log_prob,
    gradient_guidance,
    gradient_shift,
)
from ddpm_jax.diffusion.guidance import Guidance, Guide, PredictFn, autoguidance, classifier_free_guidance
from ddpm_jax.diffusion.parameterisations import PREDICTIONS
from ddpm_jax.diffusion.process import LEARNED_VARIANCES, VARIANCES, Process
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.self_conditioning import input_shape
from ddpm_jax.experiment.codec_factory import build_codec, x_0_shape_of
from ddpm_jax.experiment.conditions import condition_spec
from ddpm_jax.experiment.config_checks import fields_named
from ddpm_jax.experiment.image_condition import KNOWN, LEVEL, SHOWN
from ddpm_jax.models.networks import NETWORKS, SHARED_FIELDS
from ddpm_jax.models.parameters import init_params
from ddpm_jax.models.unet_checks import check_blocks
from ddpm_jax.models.unet_classifier import UNetClassifier
from ddpm_jax.runtime.errors import UserError, check_one_of

WeakPredictOf = Callable[[Process, dict], PredictFn]  # (process of the sampler, parameters) -> their prediction

MOST_CLASSES = 1_000_000  # each has a vector in the network; the largest labelled sets have some 20,000
OWN_NETWORK = "; a network of your own must be in NETWORKS of this process (docs/extending.md)"
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build_process(config: ConfigDict) -> Process:
    """The noise schedule, prediction and variance; raises UserError if the prediction does not determine x_0."""
    diffusion = config.diffusion
    check_one_of("diffusion.prediction", diffusion.prediction, PREDICTIONS)
    check_one_of("diffusion.variance", diffusion.variance, VARIANCES)
    with fields_named("schedule"):
        schedule = make_schedule(**config.schedule)
    with fields_named("diffusion"):
        return Process(
            schedule, diffusion.prediction, diffusion.variance, network_input=diffusion.network_input
        )


def build_model(config: ConfigDict) -> nn.Module:
    """The network; raises UserError if its settings do not fit each other or the images."""
    x_0_shape, name = x_0_shape_of(config), config.model.name
    check_one_of("model.name", name, NETWORKS, OWN_NETWORK)
    check_one_of("model.dtype", config.model.dtype, DTYPES)
    if config.model.num_classes > MOST_CLASSES:
        raise UserError(f"model.num_classes must be at most {MOST_CLASSES}; got {config.model.num_classes}")
    learned, doubled = config.diffusion.variance in LEARNED_VARIANCES, config.diffusion.self_conditioning
    derived = {name: entry for name, entry in condition_spec(config).items() if entry.derived}
    spatial = tuple(name for name, entry in derived.items() if entry.kind == "spatial")
    wider = doubled or spatial
    out_channels = x_0_shape[-1] * (2 if learned else 1) if learned or wider else 0  # 0: as many as the input has
    shared = {field: config.model[field] for field in SHARED_FIELDS} | {"dtype": DTYPES[config.model.dtype]}
    shared["null_class"] = config.condition.drop_rate > 0
    if name not in config:
        raise UserError(f"model.name={name!r} needs the group {name!r} in the config, with the network's own fields")
    # A network without these attributes can still be trained on everything else.
    attributes = ({"spatial": spatial} if spatial else {}) | ({"takes_level": True} if LEVEL in derived else {})
    for attribute in attributes:
        if attribute not in {field.name for field in dataclasses.fields(NETWORKS[name].module)}:
            field = "task" if attribute == "spatial" else "augmentation"
            raise UserError(
                f"condition.{field}={config.condition[field]!r} needs a network with the attribute {attribute!r} "
                f"(docs/networks.md); model.name={name!r} has none"
            )
    shared |= attributes
    model = NETWORKS[name].module(**config[name], **shared, out_channels=out_channels)
    shared_names = {field: f"model.{field}" for field in SHARED_FIELDS}
    with fields_named(name, shared_names | {"image_size": "data.image_size"}):
        NETWORKS[name].check(model, x_0_shape[:-1])
    return model


def input_shape_of(config: ConfigDict) -> tuple[int, ...]:
    """The shape of what the network gets for one image: x_t, and with self-conditioning also an estimate of x_0."""
    x_0_shape = x_0_shape_of(config)
    return input_shape(x_0_shape) if config.diffusion.self_conditioning else x_0_shape


def build_classifier(config: ConfigDict) -> UNetClassifier:
    """The classifier of noised images: the way down of the U-Net in the group `unet`, for model.num_classes classes.

    Raises:
      UserError: another network, fewer than 2 classes, or settings that do not fit each other or the images.
    """
    model, x_0_shape = config.model, x_0_shape_of(config)
    if model.name != "unet":
        raise UserError(
            f"model.name must be 'unet' with objective.name='classifier', which is its way down; got {model.name!r}"
        )
    check_one_of("model.dtype", model.dtype, DTYPES)
    if not 2 <= model.num_classes <= MOST_CLASSES:
        raise UserError(
            f"model.num_classes must be in 2..{MOST_CLASSES} with objective.name='classifier', the classes of "
            f"the data; got {model.num_classes}"
        )
    if config.unet.scale_skips:
        raise UserError(
            "unet.scale_skips must be False with objective.name='classifier', whose network has no way up; got True"
        )
    network = UNetClassifier(**config.unet, dtype=DTYPES[model.dtype], remat=model.remat, num_outputs=model.num_classes)
    with fields_named("unet", {"image_size": "data.image_size"}):
        check_blocks(network, x_0_shape[:-1])
    return network


def is_classifier(config: ConfigDict) -> bool:
    """Whether the config trains a classifier of noised images, and not a diffusion model."""
    return config.objective.name == "classifier"


def build_network(config: ConfigDict) -> nn.Module:
    """The network that the config trains: the classifier, or else the model."""
    return build_classifier(config) if is_classifier(config) else build_model(config)


def param_shapes(config: ConfigDict, network: nn.Module) -> dict:
    """The tree of the parameters of the network, as shapes and types."""
    example = {} if is_classifier(config) else example_condition(condition_spec(config))
    return jax.eval_shape(lambda key: init_params(network, key, input_shape_of(config), example), jax.random.key(0))


def check_params(config: ConfigDict, network: nn.Module, params: dict) -> None:
    """Raises UserError unless the weights of a checkpoint are finite and fit the network of its config."""
    wanted = param_shapes(config, network)
    shapes = [{keystr(path): leaf.shape for path, leaf in tree_leaves_with_path(tree)} for tree in (wanted, params)]
    for name in sorted(shapes[0] | shapes[1]):
        if shapes[0].get(name) != shapes[1].get(name):
            raise UserError(
                f"the checkpoint does not fit the network of its config: {name} is {shapes[1].get(name, 'missing')} "
                f"and must be {shapes[0].get(name, 'absent')}; use the version of ddpm_jax that trained it"
            )
    for path, leaf in tree_leaves_with_path(params):
        if not np.all(np.isfinite(leaf)):
            raise UserError(f"the weights {keystr(path)} have NaN or infinite values: take another checkpoint")


def check_limit_of_x_0(config: ConfigDict) -> None:
    """Raises UserError if x_0 would be clipped in sampling although the codec's x_0 has no limit."""
    _limit_of_x_0(config, config.sample.clip_x_0, config.sample.dynamic_threshold)


def _limit_of_x_0(config: ConfigDict, clip_x_0: bool, dynamic_threshold: float) -> float | None:
    if not clip_x_0 and not dynamic_threshold:
        return None
    limit = build_codec(config).x_0_limit
    if limit is None:
        raise UserError(
            f"codec.name={config.codec.name!r} has an unbounded x_0: sample.clip_x_0 must be False and "
            f"sample.dynamic_threshold 0; got {clip_x_0} and {dynamic_threshold}"
        )
    return limit


def build_denoiser(
    config: ConfigDict,
    process: Process,
    model: nn.Module,
    *,
    clip_x_0: bool | None = None,
    dynamic_threshold: float | None = None,
    classifier: nn.Module | None = None,
    shifts_mean: bool = False,
    weak_predict_of: WeakPredictOf | None = None,
) -> GuidedDenoiserOf:
    """(params, condition, guidance = None, classifier = None, *, project_fn = None) -> denoise_fn, as in the config
    except for the arguments given here. The x_0_hat of a network that fills holes has the pixels that it is shown.

    Args:
      classifier: the network that the arrays `ClassifierGuidance` are of.
      shifts_mean: it shifts the mean of the step, for tables with `c_shift`, and not eps.
      weak_predict_of: gives the prediction of the network that `Guidance.weak_params` are of.
    """
    if clip_x_0 is None:
        clip_x_0 = config.sample.clip_x_0
    if dynamic_threshold is None:
        dynamic_threshold = config.sample.dynamic_threshold
    limit = _limit_of_x_0(config, clip_x_0, dynamic_threshold)
    of_classifier = dataclasses.replace(process, network_input="t")  # which it was trained with

    def denoiser_of(
        params: dict,
        condition: Condition,
        guidance: Guidance | None = None,
        gradient: ClassifierGuidance | None = None,
        *,
        project_fn: ProjectFn | None = None,
    ) -> DenoiseFn:
        def model_fn(x_t: jax.Array, t: jax.Array, condition: Condition | None = None) -> jax.Array:
            return model.apply({"params": params}, x_t, t, condition or {})

        if KNOWN in condition and project_fn is None:  # the samples keep what the network is shown
            pixels = pixel_measurement(condition[KNOWN])
            project_fn = range_null_projection(pixels, pixels.measure(condition[SHOWN]))
        guides = [] if guidance is None else [_guide(process, guidance, weak_predict_of)]
        mean_shift_fn = None
        if gradient is not None:
            logits_fn = lambda x_t, t: classifier.apply({"params": gradient.params}, x_t, t)  # noqa: E731
            log_prob_fn = class_log_prob(logits_fn, gradient.label)
            if shifts_mean:
                mean_shift_fn = gradient_shift(of_classifier, log_prob_fn, scale=gradient.scale)
            else:
                guides.append(gradient_guidance(of_classifier, log_prob_fn, scale=gradient.scale))

        with fields_named("diffusion", {"dynamic_threshold": "sample.dynamic_threshold"}):
            return make_denoiser(
                process,
                model_fn,
                condition=condition,
                guide=_in_a_row(guides),
                x_0_limit=limit,
                dynamic_threshold=dynamic_threshold,
                project_fn=project_fn,
                mean_shift_fn=mean_shift_fn,
                self_conditioning=config.diffusion.self_conditioning,
                x_0_prev_limit=build_codec(config).x_0_limit,
            )

    return denoiser_of


def _guide(process: Process, guidance: Guidance, weak_predict_of: WeakPredictOf | None) -> Guide:
    """Autoguidance if the guidance holds weights of a weaker network, else classifier-free guidance."""
    if guidance.weak_params is None:
        return classifier_free_guidance(process, guidance)
    return autoguidance(process, guidance, weak_predict_of(process, guidance.weak_params))


def _in_a_row(guides: list[Guide]) -> Guide | None:
    """One guide that applies each to the result of the one before; None for none."""
    if not guides:
        return None
    return lambda predict_fn: functools.reduce(lambda guided, guide: guide(guided), guides, predict_fn)
