"""`load_config`, `train_model`, `open_run` and `TrainedRun.sample`: whole runs as functions."""

import dataclasses
import pickle
import re
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.experiment import packaged_runs, training

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(straight_run):
    return dj.open_run(str(straight_run))


def test_samples_are_those_of_the_command(run, straight_run, sample_main, tmp_path):
    flags = ["--num_samples=11", "--seed=3", "--sampler=ddim", "--num_sampler_steps=5", "--eta=0.5"]
    assert sample_main([f"--workdir={straight_run}", f"--out={tmp_path}/x", "--nocompilation_cache", *flags]) == 0
    images = run.sample(11, seed=3, sampler="ddim", num_sampler_steps=5, eta=0.5)
    np.testing.assert_array_equal(images, np.load(tmp_path / "x.npz")["arr_0"])


def test_few_programs_serve_all_samplers(straight_run, capfd):
    run, drawn = dj.open_run(str(straight_run)), []
    first = run.sample(4, num_sampler_steps=6, progress=False)
    (generator,) = run._samples._generators.values()
    programs = generator._advance._cache_size()  # also of other tests, which share them
    for sampler in ("ancestral", "ddim", "dpmpp_2m", "unipc", "dpmpp_2m_sde"):
        drawn += [run.sample(4, num_sampler_steps=steps, sampler=sampler, progress=False) for steps in (5, 7)]
    assert programs == generator._advance._cache_size() and len(run._samples._generators) == 1
    assert len(np.unique(np.stack(drawn), axis=0)) == len(drawn)
    np.testing.assert_array_equal(run.sample(4, num_sampler_steps=6, progress=False), first)
    assert "sampling" not in capfd.readouterr().err


def test_numpy_numbers_will_do(run):
    settings = {"num_sampler_steps": np.int32(6), "batch_size": np.int64(8), "progress": False}
    images = run.sample(np.int64(4), seed=np.uint8(3), **settings)
    np.testing.assert_array_equal(images, run.sample(4, seed=3, num_sampler_steps=6, progress=False))


def test_a_jitted_function_may_be_the_first_to_ask_for_the_parts_of_a_run(straight_run):
    run = dj.open_run(str(straight_run))
    jax.eval_shape(lambda: (run.process.schedule.betas, run.sampler_table.t))
    assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((run.process, run.sampler_table)))


def test_a_run_can_be_pickled_and_shown(run):
    run.sample(4, num_sampler_steps=6, progress=False)
    again = pickle.loads(pickle.dumps(run))
    jax.tree.map(np.testing.assert_array_equal, again.params, run.params)
    assert again.step == run.step and again.config == run.config
    assert re.fullmatch(r"TrainedRun\(step=8, data='digits', [\d,]+ parameters\)", repr(run))


def test_weights_that_are_not_finite_are_named(run):
    bad = jax.tree.map(np.array, run.params)
    bad["conv_in"]["bias"][2] = np.nan
    with pytest.raises(dj.UserError, match=r"the weights \['conv_in'\]\['bias'\] have NaN or infinite values: take an"):
        dataclasses.replace(run, params=bad).sample(4, progress=False)


def test_an_x_0_that_is_not_clipped_is_another_program(run):
    kept, clipped = (run.sample(4, num_sampler_steps=6, progress=False, clip_x_0=clip) for clip in (False, True))
    assert np.any(kept != clipped)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_samples": 0}, "num_samples must be at least 1; got 0"),
        ({"seed": -1}, "seed must be in 0"),
        ({"steps": 5}, "a setting of the sampler must be one of \\['apg_eta', .*; got 'steps'"),
        ({"sampler": "ddmi"}, "sampler must be one of .*; got 'ddmi'; did you mean 'ddim'"),
        ({"eta": 1.0}, "eta is of sampler=ddim; got 'ancestral', which does not read it"),
        ({"num_sampler_steps": "many"}, "^num_sampler_steps must be an int; got 'many'; an example: num_sampler"),
        ({"num_sampler_steps": 5, "respacing": "ddim5"}, "respacing says which steps are visited: leave out num_sam"),
        ({"condition": {"label": [3]}}, r"the network takes no condition; got \['label'\]"),
        ({"condition": {}, "classes": (1,)}, "condition and classes both say what the samples are of: give one"),
        ({"num_samples": 2.5}, "num_samples must be a whole number; got 2.5"),
        ({"seed": None}, "seed must be a whole number; got None"),
        ({"batch_size": "8"}, "batch_size must be a whole number; got '8'"),
        ({"condition": 5}, "condition must be arrays by name, such as .*; got 5"),
        ({"batch_size": 3}, r"^batch_size must be a multiple of 8 \(8 devices\); got 3"),
    ],
)
def test_errors_name_the_arguments(run, arguments, message):
    with pytest.raises(dj.UserError, match=message):
        run.sample(progress=False, **arguments)


def test_training_returns_the_run(own_run, tiny_config, state_of):
    run = dj.train_model(tiny_config("train.num_steps=10"), str(own_run))
    assert run.step == 10 and jax.tree.structure(run.params) == jax.tree.structure(dj.open_run(str(own_run)).params)


def test_a_stop_is_an_interrupt(monkeypatch, tiny_config):
    monkeypatch.setattr(training, "train", lambda config, workdir: signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM; the run is saved in x"):
        dj.train_model(tiny_config(), "x")


def test_what_is_refused_before_training(monkeypatch, tiny_config, tmp_path):
    with pytest.raises(dj.UserError, match="data.eval_split must .* to hold out none --config.data.eval_split=$"):
        dj.train_model(tiny_config("data.eval_split=none"), str(tmp_path))
    for workdir, message in (("", "workdir must name a folder; got ''"), (Path("a*"), "workdir must not have any of")):
        with pytest.raises(dj.UserError, match=message):
            dj.train_model(tiny_config(), workdir)
    with pytest.raises(dj.UserError, match="config must be a config of load_config; got 'digits'"):
        dj.train_model("digits", str(tmp_path))
    with pytest.raises(dj.UserError, match="overrides must be a list such as .*; got 'train.num_steps=4'"):
        dj.load_config("digits", "train.num_steps=4")
    monkeypatch.setattr(training, "draws_images", lambda config: False)
    with pytest.raises(dj.UserError, match="objective.name='diffusion' draws no images: train it with ddpm_jax.exper"):
        dj.train_model(tiny_config(), str(tmp_path))
    assert not any(tmp_path.iterdir())


class TestPackagedRun:
    def test_it_is_one_of_its_config(self):
        """The docs tell people to train the config of its name: it must be that network and process."""
        run, config = dj.open_run("digits"), dj.load_config("digits")
        for group in ("schedule", "diffusion", "unet", "model", "codec", "condition"):
            assert run.config[group].to_dict() == config[group].to_dict(), group
        assert run.step == config.train.num_steps and packaged_runs.packaged_runs() == ["digits"]
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(run.params))
        run.check_params()

    def test_it_has_learnt_digits(self):
        """x_0_hat of held-out digits that are half noise has less than half of the error of the mean digit."""
        run = dj.open_run("digits")
        images = run.source("test").load(np.arange(16))
        x_0 = dj.to_model_scale(jnp.asarray(images))
        alphas_bar = run.process.schedule.alphas_bar
        t = jnp.full(16, int(np.argmin(np.abs(np.asarray(alphas_bar) - 0.5))), jnp.int32)
        x_t = dj.q_sample(run.process.schedule, x_0=x_0, t=t, eps=jax.random.normal(jax.random.key(0), x_0.shape))
        denoise_fn = run.denoiser_of()(run.params, {})
        x_0_hat = jax.jit(lambda x_t, t: denoise_fn(x_t, t).x_0_hat)(x_t, t)
        mean = dj.to_model_scale(jnp.asarray(run.source().load(np.arange(256)))).mean(0, keepdims=True)
        assert jnp.mean((x_0_hat - x_0) ** 2) < 0.5 * jnp.mean((mean - x_0) ** 2)

    def test_a_folder_of_the_name_comes_first(self, own_run, monkeypatch):
        monkeypatch.chdir(own_run.parent)
        assert packaged_runs.output_folder("digits") == "digits_output"
        own_run.rename("digits")
        assert dj.open_run("digits").step == 8 and packaged_runs.output_folder("digits") == "digits"

    def test_there_is_no_choice_of_checkpoint(self):
        for arguments in ({"step": 3}, {"best": True}, {"weights": "raw"}):
            with pytest.raises(dj.UserError, match="packaged run 'digits' has one checkpoint and its ema weights: le"):
                dj.open_run("digits", **arguments)

    def test_what_is_saved_is_opened(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr(packaged_runs, "_FOLDER", tmp_path)
        packaged_runs.save_packaged_run(run.step, run.config, run.params, str(tmp_path / "tiny"))
        again = dj.open_run("tiny")
        assert again.step == run.step and again.config.to_json() == run.config.to_json()
        for one, two in zip(*map(jax.tree.leaves, (run.params, again.params)), strict=True):
            np.testing.assert_allclose(one, two, rtol=2**-11, atol=2**-25)


def test_all_public_names_are_there_and_documented():
    assert set(dj.__all__) <= set(dir(dj))
    for name in dj.__all__:
        assert getattr(dj, name) is not None
    documented = re.findall(r"^\.\. auto\w+:: ddpm_jax\.(\w+)$", (ROOT / "docs" / "api.rst").read_text("utf-8"), re.M)
    assert sorted([*documented, "__version__"]) == sorted(dj.__all__)
    with pytest.raises(AttributeError, match="module 'ddpm_jax' has no attribute 'open_rum'"):
        dj.open_rum  # noqa: B018
