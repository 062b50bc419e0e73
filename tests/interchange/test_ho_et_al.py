"""The names of Ho et al. 2020's TensorFlow code: the same network, raw and averaged, and what is refused."""

import jax
import numpy as np
import pytest
from original_unet import Variables, original_unet

from ddpm_jax.experiment.config_checks import image_shape_of
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.model_factory import build_model
from ddpm_jax.interchange.ho_et_al import MODELS, is_wanted, read_original, read_original_as
from ddpm_jax.interchange.tensor_mapping import leaf_shapes
from ddpm_jax.models.parameters import init_params, num_params
from ddpm_jax.runtime.errors import UserError

SMALL = [
    "unet.channels=8", "unet.channel_mults=1,2", "unet.num_res_blocks=1", "unet.attention_resolutions=4",
    "unet.num_groups=4", "data.image_size=8,12",
]  # fmt: skip
NET = dict(channels=8, mults=(1, 2), blocks=1, attention=(4,), groups=4)
CONFIG = load_config("cifar10_paper", SMALL)
X_T = np.random.default_rng(0).standard_normal((2, 8, 12, 3))
T = np.array([3, 999])


@pytest.fixture(scope="module")
def variables():
    variables = Variables()
    return variables, original_unet(variables, X_T, T, **NET)


def averaged(variables):
    return {f"{name}/ExponentialMovingAverage": array for name, array in variables.items()}


def test_their_variables_give_their_output(variables):
    weights, expected = variables
    imported = read_original_as(dict(weights), CONFIG)
    unet = build_model(imported.config)
    ours = jax.jit(lambda p, *args: unet.apply({"params": p}, *args))(imported.params, X_T.astype(np.float32), T)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
    assert imported.ema_params is imported.params and "one set of weights" in imported.notes[0]


def test_averages_are_the_ema_and_the_optimisers_are_left_out(variables):
    weights, _ = variables
    other = {name: 2 * array for name, array in weights.items()}
    adam = {f"{name}/Adam{end}": array for name, array in weights.items() for end in ("", "_1")}
    rest = {"beta1_power": np.float32(0.1), "global_step": np.int64(790_000)}
    imported = read_original_as(dict(weights) | averaged(other) | adam | rest, CONFIG)
    twice = jax.tree.map(lambda leaf: 2 * leaf, imported.params)
    jax.tree.map(np.testing.assert_array_equal, imported.ema_params, twice)
    assert imported.notes == ("it was trained for 790,000 updates",)
    assert sum(map(is_wanted, [*weights, *averaged(weights), *adam, *rest])) == 2 * len(weights) + 1


def test_a_file_with_averages_alone(variables):
    weights, _ = variables
    imported = read_original_as(averaged(weights), CONFIG)
    jax.tree.map(np.testing.assert_array_equal, imported.params, read_original_as(dict(weights), CONFIG).params)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"model/conv_in/W": None}, "the file lacks model/conv_in/W: its config describes another network"),
        ({"model/extra/W": np.zeros(3)}, "the file has, but the network of its config lacks, model/extra/W: it"),
        ({"model/mid/attn_1/q/W": np.zeros((3, 3))}, "model/mid/attn_1/q/W of the file is float64 (3, 3), which does"),
    ],
)
def test_another_network_is_refused(variables, change, message):
    tensors = {name: array for name, array in {**variables[0], **change}.items() if array is not None}
    with pytest.raises(UserError) as error:
        read_original_as(tensors, CONFIG)
    assert str(error.value).startswith(message)


def test_an_average_that_is_missing_is_named(variables):
    tensors = dict(variables[0]) | averaged(variables[0])
    del tensors["model/conv_out/b/ExponentialMovingAverage"]
    with pytest.raises(UserError, match="^the averages of the file lacks model/conv_out/b: "):
        read_original_as(tensors, CONFIG)


def test_the_models_by_name():
    with pytest.raises(UserError, match=r"^model must be one of \['celebahq256', 'cifar10', .*'lsun_cats'; did you"):
        read_original({}, "lsun_cats")
    for name, (experiment, changes) in MODELS.items():
        config = load_config(experiment, changes)
        # Ho et al. use beta on CIFAR-10 and beta-tilde on 256x256: their scripts use two diffusion files.
        assert config.diffusion.variance == ("fixed_large" if name == "cifar10" else "fixed_small")
        assert (config.schedule.name, config.schedule.num_steps, config.diffusion.prediction) == ("linear", 1000, "eps")


def test_the_published_size():
    """Their script prints 35.7 M; with the names of the whole network, in the order of their code."""
    config = load_config(*MODELS["cifar10"])
    unet = build_model(config)
    shapes = jax.eval_shape(lambda key: init_params(unet, key, image_shape_of(config)), jax.random.key(0))
    assert num_params(shapes) == 35_746_307
    with pytest.raises(UserError, match=f"^cifar10 lacks .* and {len(leaf_shapes(shapes)) - 3} more: "):
        read_original({}, "cifar10")
