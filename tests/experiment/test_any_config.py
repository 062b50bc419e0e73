"""Whatever a person types into a config: a step can be trained, or one sentence says what does not fit."""

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddpm_jax.data.batch import Batch
from ddpm_jax.diffusion.losses import LOSSES
from ddpm_jax.diffusion.parameterisations import PREDICTIONS
from ddpm_jax.diffusion.process import VARIANCES
from ddpm_jax.diffusion.schedules import SCHEDULES
from ddpm_jax.experiment import data_factory, sampler_factory
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.config_overrides import flatten
from ddpm_jax.experiment.sampler_factory import SAMPLERS
from ddpm_jax.experiment.state_sizes import abstract_batch
from ddpm_jax.models.networks import NETWORKS
from ddpm_jax.runtime.devices import put_batch
from ddpm_jax.runtime.errors import UserError

# Fields with a list of names; anything else that is text gets nonsense.
NAMES = {
    "schedule.name": tuple(SCHEDULES),
    "diffusion.prediction": tuple(PREDICTIONS),
    "diffusion.loss": tuple(LOSSES),
    "diffusion.variance": tuple(VARIANCES),
    "diffusion.weighting": ("none", "min_snr", "p2"),
    "sample.sampler": tuple(SAMPLERS),
    "sample.spacing": ("uniform", "quadratic", "ddim_quadratic", "leading", "trailing", "log_snr", "karras"),
    "sample.respacing": ("", "5", "2,3", "ddim5", "t=9,5,0", "t=", "ddim", "0", "1,,2", "-3"),
    "model.name": tuple(NETWORKS),
    "model.dtype": ("float32", "bfloat16"),
    "unet.down_padding": ("end", "both"),
    "unet.embedding_order": ("sin_cos", "cos_sin"),
    "unet.embedding_spacing": ("half_minus_1", "half"),
    "train.time_sampler": ("uniform", "stratified", "loss_second_moment"),
    "train.nonfinite": ("stop", "skip", "rewind"),
    "optim.ema_start": ("warmup", "constant", "copy_first"),
    "data.split": ("train", "test", "all", "train[:50%]", "train[5:", "validation"),
    "data.eval_split": ("", "test", "train[:1]", "nope"),
    "data.name": ("digits", "digit", "cifar10"),
}
WHOLE = [-(2**31) - 1, -1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 20, 64, 1000, 10**6, 10**6 + 1, 2**31 - 1, 2**31, 10**12]
REAL = [float("-inf"), -1.0, -1e-9, 0.0, 1e-300, 1e-9, 1e-4, 0.02, 0.5, 0.999, 1.0, 1.5, 7.0, 1e9, 1e300, float("nan")]


def values_of(field, default):
    """Texts for a field: what a person might type, right and wrong."""
    if isinstance(default, bool):
        return st.sampled_from(["true", "false", "maybe"])
    if isinstance(default, int):
        return st.sampled_from([str(number) for number in WHOLE] + ["2.5", "many"])
    if isinstance(default, float):
        return st.sampled_from([repr(number) for number in REAL] + ["high"])
    if isinstance(default, tuple):
        numbers = st.sampled_from(["-1", "0", "1", "2", "3", "4", "8", "16", "1000000"])
        return st.lists(numbers, max_size=4).map(",".join)
    return st.sampled_from([*NAMES.get(field, ()), "nonsense"])


FIELDS = sorted(flatten(load_config("digits")).items())
OVERRIDES = st.lists(
    st.sampled_from(FIELDS).flatmap(lambda item: values_of(*item).map(lambda text: f"{item[0]}={text}")),
    min_size=1, max_size=4, unique_by=lambda override: override.partition("=")[0],
)  # fmt: skip


def build(overrides):
    """All that a run builds before its first compilation; the config and its experiment."""
    config = load_config("digits", overrides)
    experiment = build_experiment(config)
    data_factory.build_source(config, config.data.split)
    if config.data.eval_split:
        data_factory.build_source(config, config.data.eval_split, "data.eval_split")
    sampler_factory.build_table(config, experiment.process)
    return config, experiment


def network_of(overrides):
    """The network whose fields are among them; the smallest where none is."""
    return ["model.name=unet"] if any(override.startswith("unet.") for override in overrides) else []


def is_small(config):
    """Whether one step of it may be traced or trained in a test."""
    unet, conv_net = config.unet, config.conv_net
    blocks = sum(unet.res_blocks_per_level) or unet.num_res_blocks * len(unet.channel_mults)
    sizes = (unet.channels, blocks, unet.conv_in_channels, *unet.channel_mults, conv_net.channels, conv_net.num_layers)
    sizes += (*config.data.image_size, config.optim.clip_replicas, config.train.batch_size)
    return max(sizes) <= 64 and config.model.num_classes <= 1000


def step_fields(config):
    """The fields that the train step is made of: configs that differ in others alone have the same step."""
    networks = (f"{name}." for name in NETWORKS if name != config.model.name)
    others = ("data.", "sample.", "eval.", "train.", *networks)
    but = ("data.image_size", "data.num_channels", "data.flip", "train.batch_size", "train.time_sampler",
           "train.grad_accum_steps", "train.nonfinite", "train.num_devices")  # fmt: skip
    return tuple((field, value) for field, value in flatten(config).items()
                 if field in but or not field.startswith(others))  # fmt: skip


def trace_one_step(overrides):
    config, experiment = build(overrides)
    batch = abstract_batch(experiment)
    state, metrics = jax.eval_shape(experiment.train_step, experiment.abstract_state, batch, experiment.keys.train)
    assert metrics["loss"].shape == () and jax.tree.structure(state) == jax.tree.structure(experiment.abstract_state)


def test_any_config_is_built_or_refused_in_one_sentence(tiny_overrides):
    """150 are drawn; 20 of the small ones that are built are traced, first those whose steps differ."""
    new_steps, same_steps, refused = {}, [], []

    @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(OVERRIDES)
    def build_or_refuse(overrides):
        try:
            config, _ = build([*tiny_overrides, *network_of(overrides), *overrides])
        except UserError as error:
            text = str(error)
            assert text and "\n" not in text and "Traceback" not in text
            refused.append(overrides)
            return
        if is_small(config) and new_steps.setdefault(step_fields(config), overrides) is not overrides:
            same_steps.append(overrides)

    build_or_refuse()
    traced = [*new_steps.values(), *same_steps][:20]
    for overrides in traced:
        trace_one_step([*tiny_overrides, *network_of(overrides), *overrides])
    assert len(traced) == 20 and len(refused) >= 20


def train_one_step(config, experiment):
    size = (config.train.batch_size, *config.data.image_size, config.data.num_channels)
    images = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    condition = {name: np.zeros((size[0], *entry.shape), entry.dtype) for name, entry in experiment.condition.items()}
    batch = put_batch(Batch(images, condition), experiment.mesh)
    state, metrics = experiment.jitted_step()(experiment.fresh_state(), batch, experiment.keys.train)
    assert int(state.step) == 1 and np.isfinite(float(metrics["loss"]))


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(OVERRIDES)
def test_a_step_is_trained_or_refused(tiny_overrides, overrides):
    """Up to 100 compilations: `pytest -m slow -n 0 tests/experiment/test_any_config.py`."""
    try:
        config, experiment = build([*tiny_overrides, *network_of(overrides), *overrides])
    except UserError as error:
        assert "\n" not in str(error)
        return
    if is_small(config):
        train_one_step(config, experiment)


@pytest.mark.parametrize(
    "overrides",
    [
        "diffusion.prediction=v diffusion.loss=hybrid diffusion.variance=learned_range schedule.name=cosine",
        "diffusion.prediction=x_0 diffusion.loss=l1 schedule.zero_terminal_snr=true train.grad_accum_steps=2",
        "train.nonfinite=skip optim.clip_replicas=4 optim.grad_clip=0 train.num_devices=2 mesh.fsdp=2",
    ],
)
def test_combinations_train_a_step(tiny_overrides, overrides):
    train_one_step(*build([*tiny_overrides, *overrides.split()]))
