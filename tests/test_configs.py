"""Every experiment that ships: it builds, has the size it promises, and says how to run it."""

import importlib

import jax
import pytest

from ddpm_jax.configuration import load_config, packaged_experiments
from ddpm_jax.experiment import build_parts
from ddpm_jax.models.unet import num_params

COUNTS = {
    "cifar10": 35_746_307,  # of the original code, as for 256x256
    "cifar10_paper": 35_746_307,
    "celeba_hq_256": 113_673_219,
    "lsun": 113_673_219,
}


def test_what_ships():
    names = {"digits", "fashion_mnist", "cifar10", "cifar10_paper", "celeba_hq_256", "lsun", "image_folder"}
    assert names <= set(packaged_experiments())


@pytest.mark.parametrize("name", packaged_experiments())
def test_builds(name):
    config = load_config(name)
    parts = build_parts(config)
    state = parts.abstract_state
    assert num_params(state.params) == COUNTS.get(name, num_params(state.params))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state.params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state.ema_params
    )
    batch = jax.ShapeDtypeStruct(
        (config.train.batch_size, *config.data.image_size, config.data.num_channels), "uint8"
    )
    after, metrics = jax.eval_shape(parts.train_step, state, batch, parts.keys.train)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("name", packaged_experiments())
def test_docstring_is_a_promise(name):
    text = importlib.import_module(f"ddpm_jax.configs.{name}").__doc__
    assert f"python -m ddpm_jax.train --config=configs/{name}.py" in text
    assert "Hardware and time:" in text


def test_the_papers_quirks():
    paper, ours = load_config("cifar10_paper"), load_config("cifar10")
    assert (paper.optim.clip_replicas, paper.optim.grad_clip) == (8, 0.0)
    assert paper.optim.first_step_zero and paper.optim.ema_start == "copy_first"
    assert (ours.optim.clip_replicas, ours.optim.grad_clip, ours.optim.first_step_zero) == (0, 1.0, False)
    for config in (paper, ours):  # Ho et al. 2020, appendix B
        assert config.schedule.to_dict() == dict(
            name="linear", num_steps=1000, beta_start=1e-4, beta_end=0.02, zero_terminal_snr=False
        )
        assert (config.optim.learning_rate, config.optim.warmup_steps, config.optim.ema_decay) == (2e-4, 5000, 0.9999)
        assert (config.train.batch_size, config.train.num_steps, config.model.dropout) == (128, 800_000, 0.1)
        assert config.data.flip and config.diffusion.variance == "fixed_large"


def test_large_pictures():
    for name, steps, rate in (("celeba_hq_256", 500_000, 2e-5), ("lsun", 1_200_000, 2e-5)):
        config = load_config(name)
        assert (config.train.num_steps, config.optim.learning_rate, config.train.batch_size) == (steps, rate, 64)
        assert config.diffusion.variance == "fixed_small" and config.model.dropout == 0.0
