"""Runs of super-resolution: the level of noise in training, of held-out images and of samples."""

import json

import jax
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.data.batch import Batch
from ddpm_jax.diffusion.image_conditions import enlarged, shrunk
from ddpm_jax.experiment import weak_network
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.conditions import condition_of
from ddpm_jax.experiment.data_factory import build_source
from ddpm_jax.experiment.training import train
from ddpm_jax.experiment.weak_network import WeakNetwork
from ddpm_jax.runtime.devices import batch_sharded
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.workdir.checkpoints import Checkpoints

PLAIN = ("condition.task=super_resolve", "condition.factor=2")
NOISE = (*PLAIN, "condition.augmentation=noise", "condition.max_level=12")
QUICK = {"progress": False, "batch_size": 8, "sampler": "ddim", "num_sampler_steps": 3}


@pytest.fixture(scope="module")
def run(super_resolution_run):
    return dj.open_run(str(super_resolution_run))


def at_level(config, level):
    with config.unlocked():
        config.sample.augmentation_level = level
    return config


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@jax.jit
def clean(images):
    return jax.vmap(lambda x_0: enlarged(shrunk(x_0, 2), 2, "bilinear"))(images / np.float32(127.5) - np.float32(1))


def test_held_out_images_have_a_random_level_of_their_own_and_samples_one(tiny_config):
    config = tiny_config(*NOISE)
    source = build_source(config, config.data.eval_split)
    numbers = np.arange(16)
    rows = {name: source.columns[name][numbers] for name in ("shown", "level")}
    assert rows["level"].dtype == np.int32 and len(set(rows["level"].tolist())) > 3
    assert rows["level"].min() >= 0 and rows["level"].max() <= 12
    again = build_source(config, config.data.eval_split)  # of another run
    np.testing.assert_array_equal(again.columns["shown"][numbers[::-1]], rows["shown"][::-1])
    of_samples = condition_of(config)(numbers)
    assert not of_samples["level"].any() and of_samples["level"].dtype == np.int32
    np.testing.assert_allclose(of_samples["shown"], clean(source.load(numbers)), atol=2e-7)  # another program
    noisy = condition_of(at_level(config, 5))(numbers)
    assert set(noisy["level"].tolist()) == {5}
    alpha_bar = build_experiment(config).process.schedule.host_alphas_bar[4]
    # 1 - alpha-bar, and less for what bilinear enlargement averages: 16 * 64 values.
    apart = np.var(noisy["shown"] - np.sqrt(alpha_bar) * of_samples["shown"])
    assert 0.3 * (1 - alpha_bar) < apart < 1 - alpha_bar
    np.testing.assert_array_equal(condition_of(config)(numbers + len(source))["shown"], noisy["shown"])


def test_a_step_draws_a_level_for_each_image(tiny_config):
    objective = build_experiment(tiny_config(*NOISE)).objective
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    draw = jax.jit(lambda key: objective.draw(objective.frozen, Batch(images, {}), key, {})[0])
    first, again, other = (draw(jax.random.key(seed)) for seed in (0, 0, 1))
    assert len(set(first.condition["level"].tolist())) > 1
    np.testing.assert_array_equal(first.condition["shown"], again.condition["shown"])
    assert np.any(first.condition["level"] != other.condition["level"])


def test_the_step_is_the_same_in_parts_and_on_more_devices(tiny_config):
    """The level and the noise of an example depend on its number in the batch."""
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    losses = []
    for devices, parts in ((1, 1), (4, 2)):
        experiment = build_experiment(
            tiny_config(*NOISE, f"train.num_devices={devices}", f"train.grad_accum_steps={parts}")
        )
        state, step_fn, values = experiment.fresh_state(), experiment.jitted_step(), []
        batch = jax.device_put(Batch(images), batch_sharded(experiment.mesh))
        for _ in range(2):
            state, metrics = step_fn(state, batch, experiment.keys.train)
            values += [float(metrics["loss"]), float(metrics["grad_norm"])]
        losses.append(values)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_a_run_is_continued_to_the_bit(tiny_config, super_resolution_overrides, super_resolution_run, tmp_path):
    config = lambda *more: tiny_config(*super_resolution_overrides, *more)  # noqa: E731
    for num_steps in (4, 8):
        train(config(f"train.num_steps={num_steps}"), str(tmp_path / "run"))
    abstract = build_experiment(config()).abstract_state
    states = []
    for folder in (tmp_path / "run", super_resolution_run):
        checkpoints = Checkpoints(str(folder))
        states.append(jax.tree.leaves(checkpoints.restore_state(abstract)))
        checkpoints.close()
    assert all(np.array_equal(a, b) for a, b in zip(*states, strict=True))
    losses = [{line["step"]: line["eval_loss"] for line in lines_of(folder) if "eval_loss" in line}
              for folder in (tmp_path / "run", super_resolution_run)]  # fmt: skip
    assert losses[0] == losses[1] and len(losses[0]) == 4  # held-out images have the levels of every run


def test_the_level_of_samples_changes_what_is_shown_and_compiles_nothing(run):
    assert {name for name, entry in run.condition.items() if entry.derived} == {"shown", "level"}
    samples = [run.sample(3, **QUICK) for _ in range(2)][0]
    np.testing.assert_array_equal(run.sample(3, augmentation_level=0, **QUICK), samples)
    (generator,) = run._samples._generators.values()
    programs = generator._advance._cache_size(), generator._begin._cache_size()
    noisy = run.sample(3, augmentation_level=4, **QUICK)
    assert np.any(noisy != samples)
    assert (generator._advance._cache_size(), generator._begin._cache_size()) == programs
    assert len(run._samples._generators) == 1
    given = run.condition_of(np.arange(3))
    np.testing.assert_array_equal(run.sample(3, condition=given, **QUICK), samples)
    guided = run.sample(3, guidance_scale=3, augmentation_level=4, **QUICK)
    assert np.any(guided != noisy)


def test_what_is_given_is_checked(run):
    given = run.condition_of(np.arange(3))
    with pytest.raises(UserError, match=r"the condition 'level' must be in 0..12, the levels of the training; got 13"):
        run.sample(3, condition=given | {"level": np.int32(13)}, **QUICK)
    with pytest.raises(UserError, match=r"the condition 'shown' must be finite"):
        run.sample(3, condition=given | {"shown": np.full((8, 8, 1), np.nan, np.float32)}, **QUICK)
    with pytest.raises(UserError, match=r"condition and augmentation_level both say"):
        run.sample(3, condition=given, augmentation_level=3, **QUICK)
    with pytest.raises(UserError, match=r"^augmentation_level must be in 0..12, the levels of the training; got 13"):
        run.sample(3, augmentation_level=13, **QUICK)


def test_a_run_without_noise_has_no_level(tiny_config, straight_run):
    for overrides in (PLAIN, (*PLAIN, "condition.augmentation=blur")):
        experiment = build_experiment(tiny_config(*overrides))
        assert set(experiment.condition) == {"shown"} and not experiment.model.takes_level
    with pytest.raises(UserError, match="augmentation_level=3 is for a network that was trained with"):
        dj.open_run(str(straight_run)).sample(3, augmentation_level=3, **QUICK)


def test_the_command_says_the_level_and_refuses_others(super_resolution_run, tmp_path, sample_main, capsys):
    flags = [f"--workdir={super_resolution_run}", f"--out={tmp_path / 'new'}", "--num_samples=4", "--sampler=ddim",
             "--num_sampler_steps=2", "--nocompilation_cache"]  # fmt: skip
    assert sample_main([*flags, "--augmentation_level=3"]) == 0
    assert "augmentation level 3, seed 0" in capsys.readouterr().out
    assert sample_main([*flags, "--augmentation_level=13"]) == 2
    assert "error: --augmentation_level must be in 0..12" in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([*PLAIN[:1], "condition.factor=3"], r"condition.factor must divide the size of the images, 8 x 8; got 3"),
        ([*PLAIN[:1], "condition.factor=1"], r"condition.factor must be at least 2; got 1"),
        ([*PLAIN, "condition.upsampling=linear"], r"condition.upsampling must be one of"),
        ([*PLAIN, "condition.augmentation=noisy"], r"condition.augmentation must be one of .*'noise'"),
        ([*NOISE, "condition.max_level=21"], r"condition.max_level must be in 0..20"),
        ([*PLAIN, "condition.augmentation_blur_std=0,1"], r"condition.augmentation_blur_std must be LOW,HIGH"),
        (["condition.augmentation=noise"], r"augmentation='noise' is of condition.task='super_resolve'; got ''"),
        (["condition.task=deblur", "condition.augmentation=blur"], r"of condition.task='super_resolve'; got 'deblur'"),
        ([*NOISE, "sample.augmentation_level=13"], r"sample.augmentation_level must be in 0..12"),
        (["sample.augmentation_level=1"], r"sample.augmentation_level=1 is for a network that was trained with"),
        ([*PLAIN, "diffusion.loss_region=hole"], r"needs a condition.task with a hole"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(tiny_config, overrides, message):
    with pytest.raises(UserError, match=message):
        build_experiment(tiny_config(*overrides))


def test_a_weaker_network_must_be_shown_the_same(tiny_config):
    for given, message in ((["condition.factor=4"], "condition.factor=4; the run has 2"),
                           (["condition.upsampling=nearest"], "condition.upsampling='nearest'; the run has 'bilinear'"),
                           (["condition.max_level=7"], "condition.max_level=7; the run has 12")):  # fmt: skip
        weak = WeakNetwork(1, tiny_config(*NOISE, *given), {})
        with pytest.raises(UserError, match=f"weak has {message}: both must be the same"):
            weak_network._check_fits(tiny_config(*NOISE), weak, "weak")
