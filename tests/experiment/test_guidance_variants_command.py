"""The variants of guidance from the command line and in Python, on small runs."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import benchmark
from ddpm_jax.evaluation.generated_samples import GeneratedSamples
from ddpm_jax.experiment import model_factory, weak_network
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.experiment.training import train
from ddpm_jax.models.parameters import init_params
from ddpm_jax.runtime.devices import make_mesh
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.workdir.class_names import write_class_names

CLASSES = ("model.num_classes=10", "condition.drop_rate=0.5", "train.num_steps=4")
DRAW = {"num_sampler_steps": 5, "sampler": "ddim", "progress": False}


@pytest.fixture(scope="module")
def guided_run(tiny_config, made_once):
    """A run that was also trained without classes; the checkpoints of its steps 2 and 4."""
    return made_once("guided", lambda workdir: train(tiny_config(*CLASSES), str(workdir)))


@pytest.fixture(scope="module")
def run(guided_run):
    return open_run(guided_run)


@pytest.fixture(scope="module")
def guided(run):
    return run.sample(12, guidance_scale=3.0, **DRAW)


@pytest.mark.parametrize("given", [{"apg_eta": 0.0}, {"apg_norm": 0.05}, {"guidance_rescale": 0.9}])
def test_each_changes_the_samples_and_nothing_at_its_neutral_setting(run, guided, given):
    assert np.any(run.sample(12, guidance_scale=3.0, **given, **DRAW) != guided)
    neutral = {"apg_eta": 1.0, "apg_norm": 0.0, "guidance_rescale": 0.0}
    np.testing.assert_array_equal(run.sample(12, guidance_scale=3.0, **neutral, **DRAW), guided)


def test_nothing_recompiles_when_a_number_changes(run):
    for kind in ({"apg_eta": 0.0}, {"cfg_plus_plus": True}):
        run.sample(12, guidance_scale=0.9, **kind, **DRAW)
        before = {name: made._advance._cache_size() for name, made in run._samples._generators.items()}
        other = DRAW | {"num_sampler_steps": 3, "sampler": "euler_ancestral"}
        for scale in (0.3, 0.5):
            run.sample(12, guidance_scale=scale, **kind, **other)
        assert {name: made._advance._cache_size() for name, made in run._samples._generators.items()} == before
    run.sample(12, guidance_scale=2.0, apg_eta=0.5, apg_norm=3.0, guidance_interval=(-2, 4), **DRAW)
    assert {name: made._advance._cache_size() for name, made in run._samples._generators.items()} == before


def test_cfg_plus_plus_at_0_is_the_reference(run):
    of_null = run.sample(12, guidance_scale=0.0, **DRAW).astype(int)
    assert np.abs(run.sample(12, guidance_scale=0.0, cfg_plus_plus=True, **DRAW) - of_null).max() <= 1
    at_1 = run.sample(12, guidance_scale=1.0, cfg_plus_plus="true", **DRAW)
    assert np.any(at_1 != run.sample(12, **DRAW))


def test_autoguidance_by_the_command(run, guided_run, sample_main, tmp_path, capsys):
    """By an earlier checkpoint of the same run: another one than the newest gives other samples; itself gives none."""
    argv = [f"--workdir={guided_run}", f"--out={tmp_path}/x.npz", "--num_samples=12", "--nocompilation_cache"]
    argv += ["--sampler=ddim", "--num_sampler_steps=5", "--guidance_scale=3", f"--autoguidance={guided_run}"]
    assert sample_main([*argv, "--autoguidance_step=2"]) == 0
    assert f"guidance scale 3, away from the network {guided_run}, seed 0" in capsys.readouterr().out
    with np.load(tmp_path / "x.npz") as file:
        by_command = file["arr_0"]
    given = {"guidance_scale": 3.0, "autoguidance": guided_run, **DRAW}
    np.testing.assert_array_equal(run.sample(12, autoguidance_step=2, **given), by_command)
    plain = run.sample(12, **DRAW)
    assert np.any(by_command != plain)
    for itself in (given, given | {"autoguidance_step": 4}):
        with pytest.raises(UserError, match="autoguidance=.* has no effect: its weights at step 4 are those"):
            run.sample(12, **itself)
    assert sample_main([*argv, "--autoguidance_step=4"]) == 2
    assert "those of the run itself: give an earlier --autoguidance_step, or a weaker" in capsys.readouterr().err
    raw = run.sample(12, autoguidance_weights="raw", **given)
    assert np.any(raw != plain)


def test_another_network_is_read_again_only_if_it_changed(guided_run, monkeypatch, tmp_path):
    run, other, reads = open_run(guided_run, weights="raw"), tmp_path / "other", []
    shutil.copytree(guided_run, other)
    real = weak_network.read_run_checkpoint
    monkeypatch.setattr(weak_network, "read_run_checkpoint", lambda *a, **k: reads.append(a) or real(*a, **k))
    given = {"guidance_scale": 3.0, "autoguidance": other, **DRAW}
    newest = run.sample(12, seed=1, **given)
    np.testing.assert_array_equal(run.sample(12, seed=1, **given), newest)
    assert len(reads) == 1
    shutil.rmtree(other / "checkpoints" / "4")
    assert np.any(run.sample(12, seed=1, **given) != newest) and len(reads) == 2


def test_what_a_config_has_can_be_taken_back(run, guided_run):
    """Without guidance its reference is not used, and neutral settings are no settings."""
    given = {"guidance_scale": 3.0, "autoguidance": guided_run, "autoguidance_step": 2}
    guided = run.with_sampler(given, batch_size=16, num_devices=8)
    plain = run.sample(12, batch_size=16, **DRAW)
    np.testing.assert_array_equal(guided.sample(12, guidance_scale=1, batch_size=16, **DRAW), plain)
    np.testing.assert_array_equal(
        guided.sample(12, guidance_scale=1, autoguidance=None, apg_eta=1.0, batch_size=16, **DRAW), plain
    )
    by_null = run.sample(12, guidance_scale=3.0, batch_size=16, **DRAW)
    np.testing.assert_array_equal(guided.sample(12, autoguidance=None, batch_size=16, **DRAW), by_null)


def test_a_network_with_other_names_of_the_classes_is_refused(run, guided_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(guided_run, other)
    names = [f"class {i}" for i in range(10)]
    write_class_names(str(other), names)
    named = dataclasses.replace(run, class_names=tuple(reversed(names)))
    with pytest.raises(UserError, match="^autoguidance has the classes 0 class 0, .*; the run has 0 class 9"):
        named.sample(8, autoguidance=other, guidance_scale=2.0, **DRAW)


def test_the_weaker_network_may_learn_another_variance(run, tiny_config):
    config = tiny_config(*CLASSES, "diffusion.variance=learned_range")
    network = model_factory.build_model(config)
    weak = weak_network.WeakNetwork(0, config, init_params(network, jax.random.key(0), run.image_shape))
    x_t, t = jnp.ones((2, *run.image_shape)), jnp.zeros(2, jnp.int32)
    predicted = weak.predict_of(run.process, weak.params)(x_t, t, {"label": jnp.zeros(2, jnp.int32)})
    assert predicted.value.shape == x_t.shape == predicted.var_values.shape


def test_autoguidance_of_a_run_without_classes(straight_run):
    run = open_run(straight_run)
    given = {"autoguidance": straight_run, "autoguidance_weights": "raw", "guidance_scale": 2.0}
    assert np.any(run.sample(8, **given, **DRAW) != run.sample(8, **DRAW))


def test_it_is_in_the_report_of_samples(run, guided_run, tmp_path):
    found = []
    for weights in ("ema", "raw"):
        given = {"autoguidance": guided_run, "autoguidance_step": 2, "autoguidance_weights": weights}
        given["guidance_scale"] = 2.0
        chosen = run.with_sampler(given, batch_size=16, num_devices=8)
        samples = GeneratedSamples(
            chosen, weights="ema", num_samples=8, seed=0, mesh=make_mesh(), folder=str(tmp_path)
        )
        found.append(samples.facts["autoguidance"])
    assert [facts["step"] for facts in found] == [2, 2]
    assert found[0]["fingerprint"] != found[1]["fingerprint"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"apg_eta": 0.5}, "apg_eta needs a guidance_scale other than 1, which is no guidance"),
        ({"apg_eta": 2.0, "guidance_scale": 2.0}, r"apg_eta must be in \[0, 1\], 1 for .*; got 2"),
        ({"apg_norm": -1.0, "guidance_scale": 2.0}, "apg_norm must be finite and at least 0, 0 for no limit; got -1"),
        ({"cfg_plus_plus": True, "guidance_scale": 2.0}, r"guidance_scale must be in \[0, 1\] with cfg_plus_plus; got"),
        ({"cfg_plus_plus": True, "guidance_scale": 0.5, "sampler": "heun"},
         "cfg_plus_plus=True needs ancestral, ddim, euler or euler_ancestral as sampler, .*; got 'heun'"),
        ({"autoguidance": "{run}"}, "autoguidance needs a guidance_scale other than 1"),
        ({"autoguidance": "{run}/none", "guidance_scale": 2.0}, "autoguidance must be the folder of a training run"),
        ({"autoguidance": "{run}", "guidance_scale": 2.0, "autoguidance_step": 3},
         r"^autoguidance_step must be one of \[2, 4\]; got 3"),
        ({"autoguidance": "{run}", "guidance_scale": 2.0, "autoguidance_step": -3}, "autoguidance_step must be at"),
        ({"autoguidance": "{run}", "guidance_scale": 2.0, "autoguidance_weights": "emma"},
         "autoguidance_weights must be one of"),
        ({"autoguidance_step": 2, "guidance_scale": 2.0}, "autoguidance_step needs an autoguidance"),
        ({"autoguidance": "{run}", "guidance_scale": 2.0, "negative_classes": (3,)},
         "are both what samples are guided away from: give one of them"),
        ({"classes": 3, "negative_classes": 3, "guidance_scale": 2.0}, "^negative_classes has no effect.*got 3: give"),
        ({"classes": (3, 7, 3, 7), "negative_classes": "3,7", "guidance_scale": 0.5, "cfg_plus_plus": True},
         "^negative_classes has no effect"),
        ({"negative_classes": tuple(range(10)), "guidance_scale": 2.0}, "^negative_classes has no effect"),
        ({"autoguidance": "{unconditional}", "guidance_scale": 2.0}, "has 0 classes; the run has model.num_classes=10"),
    ],
)  # fmt: skip
def test_what_is_refused(run, guided_run, straight_run, given, message):
    paths = {"run": guided_run, "unconditional": straight_run}
    given = {name: value.format(**paths) if isinstance(value, str) else value for name, value in given.items()}
    with pytest.raises(UserError, match=message) as error:
        run.sample(8, **DRAW | given)
    assert "\n" not in str(error.value)


def test_a_network_of_another_process_is_refused(run, tiny_config, tmp_path):
    assert train(tiny_config(*CLASSES, "schedule.num_steps=50", "train.num_steps=1"), str(tmp_path)) is None
    with pytest.raises(UserError, match="predicts x_t of another process: its schedule.num_steps is 50, the run's"):
        run.sample(8, autoguidance=tmp_path, guidance_scale=2.0, **DRAW)


def test_cfg_plus_plus_of_a_run_without_classes_is_refused(straight_run):
    with pytest.raises(UserError, match="^cfg_plus_plus=True needs a network .* model.num_classes=0: leave it out"):
        open_run(straight_run).sample(8, cfg_plus_plus=True, **DRAW)


def test_benchmark_refuses_it(capsys):
    assert benchmark.main(["--config=digits", "--config.sample.autoguidance=x", "--dry_run", "--nocompile"]) == 2
    assert "one network at a time; got sample.autoguidance='x'" in capsys.readouterr().err
