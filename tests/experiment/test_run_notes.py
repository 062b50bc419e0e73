"""What a run says before it starts, and what of it follows from the length of the run."""

import jax
import numpy as np
import pytest

from ddpm_jax.data.image_source import ArraySource
from ddpm_jax.data.wrapped_sources import RenamingSource
from ddpm_jax.diffusion.schedules import SCHEDULES, UNREAD, make_schedule
from ddpm_jax.experiment import resume, run_notes, training_factory
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_changes import CHANGEABLE, CHANGEABLE_AT_THE_END, check_same_run
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.packaged_configs import packaged_experiments
from ddpm_jax.experiment.run_notes import grids_share, notes_on
from ddpm_jax.experiment.training import train
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.training.run_log import read_metrics

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
        ("optim.warmup_share=1.5", "optim.warmup_share must be in [0, 1], a share of train.num_steps; got 1.5"),
        ("optim.decay_share=-0.1", "optim.decay_share must be in [0, 1], a share of train.num_steps; got -0.1"),
        ("optim.warmup_share=0.5", "optim.warmup_steps=2 and optim.warmup_share=0.5 both set the length of warmup"),
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
    assert "warm-up over 1 step, cosine decay to 0 at step 4\n" in text


def test_the_schedule_of_a_run_that_is_over_may_change(tiny_config, tmp_path):
    """Of one that would change nothing any more too; in the middle of it that is another run."""
    fields = ("train.checkpoint_every_steps=0", "optim.decay_steps=4")
    shares = (*SHARES, "optim.decay_steps=0", "train.checkpoint_every_steps=0")
    train(tiny_config("train.num_steps=3", *fields), str(tmp_path))
    train(tiny_config("train.num_steps=5", *fields), str(tmp_path))
    train(tiny_config("train.num_steps=6", *shares), str(tmp_path))
    assert read_metrics(tmp_path)[-1]["learning_rate"] > 0
    saved, other = tiny_config("train.num_steps=8", *fields), tiny_config("train.num_steps=8", *shares)
    assert [resume._is_over(saved, step) for step in (3, 4, 8)] == [False, True, True]
    with pytest.raises(UserError, match="optim.decay_share was 0.0 and is 1.0"):
        check_same_run(saved, other)
    check_same_run(saved, other, (*CHANGEABLE, *CHANGEABLE_AT_THE_END))


@pytest.mark.parametrize(
    "overrides,words",
    [
        (["optim.warmup_steps=80"], "the warm-up is longer than the run, whose last learning rate is 0.0001; to fit "),
        (["optim.decay_steps=5"], "the learning rate is 0 after step 5; to fit it to the run: "),
        (["optim.decay_steps=16"], "the decay is longer than the run, whose last learning rate is 0.000598; to fit it"),
        (["schedule.num_steps=1000"], "predicts eps on a schedule that ends at noise level 20,291"),
    ],
)
def test_what_does_not_fit_is_said_and_its_remedy_helps(tiny_config, overrides, words):
    (note,) = [note for note in notes_of(tiny_config, *overrides) if note.startswith(words)]
    remedy = [word.removeprefix("--config.") for word in note.split() if word.startswith("--config.")]
    assert remedy and not any(note.startswith(words) for note in notes_of(tiny_config, *overrides, *remedy))


def notes_of(tiny_config, *overrides, resumed_from=None):
    return notes_on(build_experiment(tiny_config(*overrides)), resumed_from)


def test_a_resumed_run_is_told_what_it_can_do(tiny_config):
    """Its prediction stays; its learning rate may change when it is 0."""
    fields = ("schedule.num_steps=1000", "optim.decay_steps=5")
    assert len(notes_of(tiny_config, *fields)) == 4 and len(notes_of(tiny_config, *fields, resumed_from=0)) == 3
    assert notes_of(tiny_config, *fields, resumed_from=3)[1] == "the learning rate is 0 after step 5"
    assert "to fit it" in notes_of(tiny_config, *fields, resumed_from=6)[1]
    assert len(notes_of(tiny_config, "schedule.num_steps=1000", "train.num_steps=50000")) == 2


def test_what_fits_is_not_complained_about(tiny_config):
    linear = ("schedule.name=linear",)  # the noise level of Ho et al.'s last step is 157
    for overrides in (linear, ("diffusion.prediction=v",), ("diffusion.prediction=x_0", *SHARES)):
        assert len(notes_on(build_experiment(tiny_config("schedule.num_steps=1000", *overrides)), None)) == 2


def test_the_share_of_grids_counts_network_calls(tiny_config):
    """8 updates of 8 images; grids of 4 images, raw and EMA: 3 previews of 5 calls and a last one of 20."""
    experiment = build_experiment(tiny_config("train.sample_every_steps=2"))
    assert grids_share(experiment) == pytest.approx(2 * 4 * (3 * 5 + 20) / (2 * 4 * (3 * 5 + 20) + 3 * 8 * 8))
    heun = build_experiment(tiny_config("sample.preview_sampler=heun", "train.sample_every_steps=4"))
    assert grids_share(heun) == pytest.approx(2 * 4 * (9 + 20) / (2 * 4 * (9 + 20) + 3 * 8 * 8))


@pytest.mark.parametrize("name", packaged_experiments())
def test_grids_of_packaged_experiments_are_a_twentieth_at_the_most(name):
    assert grids_share(build_experiment(load_config(name), jax.devices()[:1])) <= 0.05


@pytest.mark.parametrize(
    "overrides,message",
    [
        (
            ("diffusion.prediction=mean", "sample.preview_sampler=heun", "sample.churn=10"),
            "diffusion.prediction='mean' needs whole steps; got sample.spacing='uniform' and sample.churn=10.0",
        ),
        (
            ("diffusion.variance=learned", "diffusion.loss=hybrid", "sample.preview_sampler=ancestral"),
            "sample.num_preview_steps",
        ),
        (
            ("diffusion.prediction=v", "schedule.zero_terminal_snr=true", "sample.preview_sampler=heun"),
            "sample.preview_sampler='heun' cannot start where alpha-bar is 0",
        ),
        (("sample.preview_sampler=ddpm",), "sample.preview_sampler must be one of ['ancestral', "),
    ],
)
def test_a_bad_sampler_of_previews_is_found_before_the_run_and_named(tiny_config, overrides, message):
    with pytest.raises(UserError) as error:
        build_experiment(tiny_config(*overrides))
    assert message in str(error.value) and "sample.num_sampler_steps" not in str(error.value)


def test_grids_that_take_most_of_a_run_come_with_a_remedy():
    long = ["sample.sampler=ancestral", "sample.num_sampler_steps=0", "train.num_steps=30"]
    (line,) = [note for note in notes_on(build_experiment(load_config("digits", long)), None) if "grids" in note]
    flags = [flag.removeprefix("--config.") for flag in line.partition("; fewer: ")[2].split()]
    assert len(flags) == 3
    before, after = (grids_share(build_experiment(load_config("digits", given))) for given in (long, long + flags))
    assert before > 0.9 and after < 0.25
    (line,) = [note for note in notes_on(build_experiment(load_config("digits")), None) if "grids" in note]
    assert "fewer" not in line


def test_fields_that_the_schedule_does_not_read_are_noted(tiny_config):
    """Exactly those that change no beta."""
    given = {"beta_start": 2e-4, "beta_end": 0.03}
    for name in SCHEDULES:
        for field, value in given.items():
            same = np.array_equal(make_schedule(name).betas, make_schedule(name, **{field: value}).betas)
            assert same == (field in UNREAD.get(name, ()))
    notes = notes_on(build_experiment(tiny_config("schedule.beta_end=0.03", "schedule.beta_start=1e-5")), None)
    assert "schedule.beta_start and schedule.beta_end have no effect on 'cosine'" in notes
    assert not any("no effect" in note for note in notes_on(build_experiment(tiny_config()), None))


def test_notes_about_size_images_and_checkpoints(tiny_config, monkeypatch):
    noted = notes_on(build_experiment(tiny_config("data.name=image_folder", "data.flip=true")), None)
    assert "half of the images are mirrored left-right at random; none: --config.data.flip=false" in noted
    assert not any("checkpoint" in note for note in noted)
    for every in (0, 8, 9):
        notes = notes_on(build_experiment(tiny_config(f"train.checkpoint_every_steps={every}")), None)
        assert any(note.startswith("one checkpoint, at the end; more") for note in notes)
    monkeypatch.setattr(run_notes, "MOST_PARAMS_ON_CPU", 1000)
    notes = notes_on(build_experiment(tiny_config()), None)
    assert notes[0].startswith("a network of 0 M parameters is for a GPU or TPU: a step on a CPU takes seconds to")


def test_classes_are_listed_with_names_and_counts():
    source = ArraySource(np.zeros((5, 4, 4, 1), np.uint8), np.array([0, 2, 2, 1, 2]))
    source = RenamingSource(source, lambda name: None)
    assert run_notes.class_line(source, 4) == "0 (1), 1 (1), 2 (3), 3 (0)"
    source._source.class_names = ("hat", "pants", "shoes")
    assert run_notes.class_line(source, 3) == "0 hat (1), 1 pants (1), 2 shoes (3)"
    assert run_notes.class_line(source, 20).endswith("11 (0), ... 19")
