"""What a run says before it starts, and what of it follows from the length of the run."""

import jax
import numpy as np
import pytest

from ddpm_jax.experiment import training_factory
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.packaged_configs import packaged_experiments
from ddpm_jax.experiment.run_notes import grids_share, notes_on
from ddpm_jax.experiment.training import train
from ddpm_jax.runtime.errors import UserError

SHARES = ("optim.warmup_steps=0", "optim.warmup_share=0.25", "optim.decay_share=1")


def test_shares_of_the_run_are_lengths_of_it(tiny_config):
    """A quarter of 40 and of 80 updates; as many updates given outright are the same schedule."""
    n = np.arange(90)
    for num_steps in (40, 80):
        shares = training_factory.build_learning_rate(tiny_config(*SHARES, f"train.num_steps={num_steps}"))
        lengths = (f"optim.warmup_steps={num_steps // 4}", f"optim.decay_steps={num_steps}")
        steps = training_factory.build_learning_rate(tiny_config(f"train.num_steps={num_steps}", *lengths))
        np.testing.assert_array_equal(shares(n), steps(n))
        assert shares(0) < shares(num_steps // 4) and shares(num_steps - 1) > 0 == shares(num_steps)
    short = tiny_config("optim.warmup_steps=0", "optim.warmup_share=0.01", "train.num_steps=3")
    assert training_factory.learning_rate_steps(short, "warmup") == 1  # not 0, which would be none


@pytest.mark.parametrize(
    "override,message",
    [
        ("optim.warmup_share=1.5", "optim.warmup_share must be in [0, 1], a part of train.num_steps; got 1.5"),
        ("optim.decay_share=-0.1", "optim.decay_share must be in [0, 1], a part of train.num_steps; got -0.1"),
        ("optim.warmup_share=0.5", "optim.warmup_steps=2 and optim.warmup_share=0.5 both say how long the warmup is"),
    ],
)
def test_lengths_that_do_not_fit(tiny_config, override, message):
    with pytest.raises(UserError) as error:
        build_experiment(tiny_config(override))
    assert str(error.value).startswith(message)


def test_a_finished_run_is_extended(tiny_config, tmp_path, capsys):
    """Its learning rate had fallen to 0, and follows the longer run from there on."""
    for num_steps in (4, 8):
        config = tiny_config(*SHARES, f"train.num_steps={num_steps}", "train.checkpoint_every_steps=0")
        train(config, str(tmp_path))
    rate = float(training_factory.build_learning_rate(config)(4))
    assert rate == pytest.approx(1e-3 / 2)
    text = capsys.readouterr().out
    assert f"learning rate 0.001, warm-up over 2 steps, cosine decay to 0 at step 8; now {rate:.3g}" in text
    assert "warm-up over 1 steps, cosine decay to 0 at step 4\n" in text


@pytest.mark.parametrize(
    "overrides,words",
    [
        (["optim.warmup_steps=80"], "the run ends within its warm-up, at 0.1 of this learning rate; for a short run: "),
        (["optim.decay_steps=5"], "the learning rate is 0 from step 5 on; to fit the run: --config.optim."),
        (["optim.decay_steps=9"], "the run ends before its decay; to fit the run: "),
        (["schedule.num_steps=1000"], "predicts eps on a schedule that ends at the noise level 20,291"),
    ],
)
def test_what_does_not_fit_is_said(tiny_config, overrides, words):
    assert any(note.startswith(words) for note in notes_on(build_experiment(tiny_config(*overrides)), 0))


def test_what_fits_is_not_complained_about(tiny_config):
    linear = ("schedule.name=linear",)  # the noise level of Ho et al.'s last step is 157
    for overrides in (linear, ("diffusion.prediction=v",), ("diffusion.prediction=x_0", *SHARES)):
        assert len(notes_on(build_experiment(tiny_config("schedule.num_steps=1000", *overrides)), 0)) == 2


def test_the_share_of_grids_counts_network_calls(tiny_config):
    """8 updates of 8 images; grids of 4 images, raw and EMA: 3 previews of 5 calls and a last one of 20."""
    experiment = build_experiment(tiny_config("train.sample_every_steps=2"))
    assert grids_share(experiment) == pytest.approx(2 * 4 * (3 * 5 + 20) / (2 * 4 * (3 * 5 + 20) + 3 * 8 * 8))
    heun = build_experiment(tiny_config("sample.preview_sampler=heun", "train.sample_every_steps=4"))
    assert grids_share(heun) == pytest.approx(2 * 4 * (9 + 20) / (2 * 4 * (9 + 20) + 3 * 8 * 8))


@pytest.mark.parametrize("name", packaged_experiments())
def test_grids_of_packaged_experiments_are_a_twentieth_at_the_most(name):
    assert grids_share(build_experiment(load_config(name), jax.devices()[:1])) <= 0.05
