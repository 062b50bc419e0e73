"""Config groups -> schedule, network, denoiser, samples, data. The factories alone read a ConfigDict.

What a person typed is checked here, outside jit, and named by its config field.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import keystr, tree_leaves_with_path
from ml_collections import ConfigDict

from ddpm_jax.data import ImageSource, make_source
from ddpm_jax.data.batch import label_args
from ddpm_jax.diffusion.denoiser import (
    LEARNED_VARIANCES,
    PREDICTIONS,
    DenoiseFn,
    DenoiserOf,
    check_prediction,
    make_denoiser,
)
from ddpm_jax.diffusion.rng import check_seed
from ddpm_jax.diffusion.samplers.table import SamplerTable
from ddpm_jax.diffusion.schedules import Schedule, make_schedule
from ddpm_jax.experiment.config_overrides import flatten
from ddpm_jax.experiment.generator import Generator
from ddpm_jax.models.unet import UNet, init_params
from ddpm_jax.models.unet_checks import check_unet
from ddpm_jax.runtime.devices import check_batch_size
from ddpm_jax.runtime.errors import MAX_INT, UserError, check_one_of

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


# The least that the fields of the host's side may be; the others are checked where they are used.
_LEAST = {
    "train.num_steps": 1,
    "train.log_every_steps": 0,
    "train.checkpoint_every_steps": 0,
    "train.sample_every_steps": 0,
    "train.keep_checkpoints": 1,
    "train.nonfinite_limit": 0,
    "sample.num_sampler_steps": 0,
    "sample.num_grid": 1,
    "sample.num_preview_steps": 1,
    "eval.batch_size": 1,
    "eval.max_images": 0,
}
_MAX_T = 1_000_000  # a table is [T]; beyond this a mistyped number would take the memory


def check_numbers(config: ConfigDict) -> None:
    """Raises UserError for numbers that no part of a run can work with, whatever the others are."""
    for field, value in flatten(config).items():
        if field == "train.seed":
            check_seed(field, value)
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{field} must be finite; got {number}")
            if isinstance(number, int) and number > MAX_INT:
                raise UserError(f"{field} must be at most {MAX_INT}; got {number}")
        if field in _LEAST and value < _LEAST[field]:
            raise UserError(f"{field} must be at least {_LEAST[field]}; got {value}")
    if config.schedule.num_steps > _MAX_T:
        raise UserError(f"schedule.num_steps must be in 1..{_MAX_T}; got {config.schedule.num_steps}")


def image_shape_of(config: ConfigDict) -> tuple[int, int, int]:
    """(H, W, C) of the pictures."""
    size = tuple(config.data.image_size)
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"data.image_size must be (height, width) in pixels; got {size}")
    if config.data.num_channels < 1:
        raise UserError(f"data.num_channels must be at least 1; got {config.data.num_channels}")
    return (*size, config.data.num_channels)


def build_schedule(config: ConfigDict) -> Schedule:
    """The noise schedule, refused where the network's prediction cannot be inverted."""
    check_one_of("diffusion.prediction", config.diffusion.prediction, PREDICTIONS)
    schedule = make_schedule(**config.schedule)
    check_prediction(schedule, config.diffusion.prediction)
    return schedule


def build_model(config: ConfigDict) -> UNet:
    """The U-Net, refused where the levels, groups or attention do not fit the pictures."""
    image_shape = image_shape_of(config)
    fields = {**config.model}
    check_one_of("model.dtype", fields["dtype"], DTYPES)
    learned = config.diffusion.variance in LEARNED_VARIANCES
    out_channels = 2 * image_shape[2] if learned else 0  # 0: as many as x_t has
    model = UNet(**(fields | {"dtype": DTYPES[fields["dtype"]], "out_channels": out_channels}))
    check_unet(model, image_shape[:2])
    return model


def check_params(config: ConfigDict, model: UNet, params: dict) -> None:
    """Raises UserError unless the weights of a checkpoint are those of its config's network."""
    wanted = jax.eval_shape(lambda key: init_params(model, key, image_shape_of(config)), jax.random.key(0))
    shapes = [{keystr(path): leaf.shape for path, leaf in tree_leaves_with_path(tree)} for tree in (wanted, params)]
    for name in sorted(shapes[0] | shapes[1]):
        if shapes[0].get(name) != shapes[1].get(name):
            raise UserError(
                f"the checkpoint does not fit the network of its config: {name} is {shapes[1].get(name, 'missing')} "
                f"and must be {shapes[0].get(name, 'absent')}; use the version of ddpm_jax that trained it"
            )


def build_denoiser(
    config: ConfigDict,
    schedule: Schedule,
    model: nn.Module,
    *,
    clip_x_0: bool | None = None,
    dynamic_threshold: float | None = None,
    steps: np.ndarray | None = None,
) -> DenoiserOf:
    """(params, labels or None) -> denoise_fn, as the config has it but for what is given here.

    Args:
      steps: of a `respaced` schedule, whose step i is the network's steps[i]; rising.
    """
    sample = config.sample
    if steps is not None and config.diffusion.prediction == "mean":
        raise UserError(
            "diffusion.prediction='mean' is the mean of the step before among all T; a process of fewer steps has "
            "another: leave the respacing out"
        )

    def denoiser_of(params: dict, labels: jax.Array | None) -> DenoiseFn:
        def model_fn(x_t: jax.Array, t: jax.Array) -> jax.Array:
            t = t if steps is None else jnp.take(jnp.asarray(steps, jnp.int32), t)
            return model.apply({"params": params}, x_t, t, *label_args(labels))

        return make_denoiser(
            schedule,
            model_fn,
            prediction=config.diffusion.prediction,
            variance=config.diffusion.variance,
            clip_x_0=sample.clip_x_0 if clip_x_0 is None else clip_x_0,
            dynamic_threshold=sample.dynamic_threshold if dynamic_threshold is None else dynamic_threshold,
        )

    return denoiser_of


def build_generator(
    config: ConfigDict, schedule: Schedule, table: SamplerTable, model: UNet, mesh: Mesh
) -> Generator:
    """Samples of the network on the whole mesh; refuses a batch that the devices do not divide."""
    check_batch_size("sample.batch_size", config.sample.batch_size, mesh)
    return Generator(
        build_denoiser(config, schedule, model),
        table,
        image_shape=image_shape_of(config),
        mesh=mesh,
        batch_size=config.sample.batch_size,
        classes=sampled_classes(config),
    )


def sampled_classes(config: ConfigDict) -> tuple[int, ...]:
    """Which classes samples are of, in turn: sample.classes, or all of them; () for a network without classes."""
    classes, num_classes = tuple(config.sample.classes), config.model.num_classes
    if classes and not num_classes:
        raise UserError(
            f"sample.classes={classes} is for a network with classes; the run has model.num_classes=0: leave it empty"
        )
    for number in classes:
        if not isinstance(number, int) or not 0 <= number < num_classes:
            raise UserError(f"sample.classes must be in 0..{num_classes - 1}, the network's classes; got {number!r}")
    return classes or tuple(range(num_classes))


def build_source(config: ConfigDict, split: str, field: str = "data.split") -> ImageSource:
    """The pictures of one split; `field` is what a person typed it as, for complaints about it."""
    data = config.data
    shape = image_shape_of(config)
    try:
        source = make_source(
            name=data.name,
            split=split,
            image_size=shape[:2],
            num_channels=shape[2],
            path=data.path,
            data_dir=data.data_dir,
        )
    except UserError as error:
        raise UserError(str(error).replace("data.split", field)) from error
    if config.model.num_classes:
        _check_labels(source, config.model.num_classes, f"{data.name} {split!r}")
    return source


def _check_labels(source: ImageSource, num_classes: int, what: str) -> None:
    """Raises UserError unless every picture has a class of the network's."""
    if source.labels is None:
        raise UserError(
            f"model.num_classes={num_classes} needs a label for every picture, and {what} has none: "
            + "; ".join(["take model.num_classes=0, or data with labels", *source.notes])
        )
    lowest, highest = int(np.min(source.labels)), int(np.max(source.labels))
    if lowest < 0 or highest >= num_classes:
        raise UserError(
            f"model.num_classes must be above every label; got {num_classes} for the labels "
            f"{lowest}..{highest} of {what}"
        )
