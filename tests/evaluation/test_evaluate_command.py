"""Evaluation of a run: the command, its files, the resume, and the stream against the bound computed at once."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import evaluate
from ddpm_jax.codecs.pixels import to_model_scale
from ddpm_jax.data.batch import Batch
from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.ode_likelihood import ode_bits_per_dim
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys, seed_keys
from ddpm_jax.diffusion.schedules import schedule_from_betas
from ddpm_jax.diffusion.variational_bound import bits_per_dim
from ddpm_jax.evaluation.elbo_bits_per_dim import BitsPerDim, build_bits_per_dim
from ddpm_jax.evaluation.ode_bits_per_dim import build_ode_bits
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.runtime.devices import make_mesh

T = 20  # of the small run


@pytest.fixture(scope="module")
def trained(straight_run):
    return open_run(str(straight_run))


def whole_set(trained, num_images, *, x_0_limit):
    """(process, denoise_fn, x_0) of the first test pictures."""
    process, model = trained.process, trained.model
    images = trained.source("test").load(np.arange(num_images))
    denoise_fn = make_denoiser(
        process, lambda x_t, t: model.apply({"params": trained.params}, x_t, t), x_0_limit=x_0_limit
    )
    return process, denoise_fn, to_model_scale(jnp.asarray(images))


def measure(trained, batch_size, max_images, num_devices):
    bits = build_bits_per_dim(
        trained, "test", make_mesh(num_devices), seed=0, batch_size=batch_size, max_images=max_images
    )
    calls = []
    measured = bits.measure(trained.params, on_chunk=calls.append)
    assert sum(calls) == bits.num_calls
    return measured


def test_the_stream_is_the_bound_whatever_the_batches_and_devices(trained):
    process, denoise_fn, x_0 = whole_set(trained, 12, x_0_limit=1.0)
    whole = jax.jit(lambda x_0: bits_per_dim(process, denoise_fn, x_0=x_0, key=seed_keys(0).eval))(x_0)
    one = measure(trained, batch_size=12, max_images=12, num_devices=1)
    # Same noise, other batch shapes: convolutions sum in another order, some 1e-6 of each term.
    np.testing.assert_allclose(one.total, whole["total"], rtol=1e-4)
    np.testing.assert_allclose(one.terms.T, whole["terms"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(one.x_0_mse.T, whole["x_0_mse"], rtol=1e-3)
    np.testing.assert_allclose(one.eps_mse.T, whole["eps_mse"], rtol=1e-3)
    # Batches of 8 on 8 devices: the last one is filled up, and the filling does not count.
    eight = measure(trained, batch_size=8, max_images=12, num_devices=8)
    assert eight.total.shape == (12,)
    np.testing.assert_allclose(eight.total, one.total, rtol=1e-4)
    mean, error = one.summary()["total"]
    assert mean == pytest.approx(one.total.mean()) and error == pytest.approx(np.std(one.total, ddof=1) / 12**0.5)


def test_the_bound_of_fewer_steps(trained, straight_run, tmp_path):
    """Against the respaced process written out: alpha-bar of the kept steps, the network asked at those."""
    kept = np.array([2, 5, 12, 19])
    process, _, x_0 = whole_set(trained, 4, x_0_limit=1.0)
    model = trained.model
    alphas_bar = process.schedule.host_alphas_bar[kept]
    betas = 1 - alphas_bar / np.append(1.0, alphas_bar[:-1])
    fewer = Process(schedule_from_betas(betas), process.prediction, process.variance)
    denoise_fn = make_denoiser(
        fewer, lambda x_t, t: model.apply({"params": trained.params}, x_t, jnp.asarray(kept, jnp.int32)[t])
    )
    at_once = jax.jit(lambda x_0: bits_per_dim(fewer, denoise_fn, x_0=x_0, key=seed_keys(0).eval))(x_0)
    bits = build_bits_per_dim(
        trained, "test", make_mesh(1), seed=0, batch_size=4, max_images=4, respacing="t=19,12,5,2"
    ).measure(trained.params)
    assert bits.terms.shape == (4, 4)
    np.testing.assert_allclose(bits.total, at_once["total"], rtol=1e-4)  # batches as above
    flags = ["--what=bits", "--max_images=4", "--batch_size=4", "--bits_respacing=t=19,12,5,2"]
    assert run_in(tmp_path, straight_run, *flags) == 0
    found = read(tmp_path)
    assert found["bits_per_dim"]["total"]["mean"] == pytest.approx(bits.total.mean(), rel=1e-4)
    assert len(found["by_step"]["t"]) == 4
    assert "(bound with respacing t=19,12,5,2)" in (tmp_path / "evaluation.md").read_text()


def test_the_flow_in_batches_is_the_flow_at_once(trained):
    process, denoise_fn, x_0 = whole_set(trained, 5, x_0_limit=None)
    keys = sample_keys(seed_keys(3).eval, jnp.arange(5))
    expected = jax.jit(lambda x_0: ode_bits_per_dim(process, denoise_fn, x_0=x_0, keys=keys, num_ode_steps=4))(x_0)
    flow = build_ode_bits(
        trained, "test", make_mesh(2), seed=3, batch_size=4, max_images=5, num_ode_steps=4, num_probes=1
    )
    calls = []
    measured = flow.measure(trained.params, on_chunk=calls.append)
    assert measured.shape == (5,) and sum(calls) == flow.num_calls == 2 * 4
    np.testing.assert_allclose(measured, expected, rtol=1e-4)


def run_in(folder, straight_run, *flags):
    return evaluate.main([f"--workdir={straight_run}", f"--out={folder}", "--batch_size=8", *flags])


def read(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_the_command_writes_tables_curves_and_pictures(straight_run, tmp_path, capsys):
    folder = tmp_path / "deep" / "folder"
    assert run_in(folder, straight_run, "--max_images=8") == 0
    out = capsys.readouterr().out
    found = read(folder)
    facts, bits, curve = found["facts"], found["bits_per_dim"], found["rate_distortion"]
    assert facts["split"] == "test" and facts["num_images"] == 8 and facts["weights"] == "ema"
    total = bits["total"]["mean"]
    assert total == pytest.approx(sum(bits[name]["mean"] for name in ("prior", "kl", "decoder")))
    assert total == pytest.approx(sum(found["by_step"]["terms"]) + bits["prior"]["mean"])
    assert {len(column) for column in (*found["by_step"].values(), *curve.values())} == {T}
    # The table that was printed is the file's.
    table = (folder / "evaluation.md").read_text()
    assert f"| {total:.4f} ± {bits['total']['standard_error']:.4f} |" in table and table in out
    assert f"| {T} | {curve['rate'][0]:.5f} | {curve['distortion'][0]:.4f} |" in table
    with np.load(folder / "by_step.npz") as arrays:
        for name, column in {**found["by_step"], **curve}.items():
            np.testing.assert_allclose(arrays[name], column)
    for name in ("likelihood_by_step", "rate_distortion", "progressive_decoding", "progressive_generation"):
        with Image.open(folder / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5, name
    assert not list(folder.glob("*.partial.npz"))


def test_the_pictures_end_in_the_original_and_in_the_sample(trained):
    """The last estimate is the network's at t = 0, and the walk in parts makes the samples of `sample`."""
    from ddpm_jax.evaluation.progressive_images import build_progressive

    progressive = build_progressive(trained, make_mesh(2))
    images = trained.source("test").load(np.arange(3))
    t, frames = progressive.decode(trained.params, Batch(images), seed=0, num_moments=4)
    np.testing.assert_array_equal(t, [19, 13, 6, 0])
    assert frames.shape == (4, *images.shape)
    # The MSE that the measurement reports at these t, but for the rounding to pixels.
    mse = ((frames.astype(float) - images) ** 2).mean(axis=(2, 3, 4)) / 127.5**2
    measured = measure(trained, batch_size=3, max_images=3, num_devices=1)
    np.testing.assert_allclose(mse, measured.x_0_mse.T[t], rtol=0.02)

    samples = trained.generator(make_mesh(1)).generate(trained.params, seed=4, num_samples=3)
    t, frames = progressive.generate(trained.params, seed=4, num_samples=3, num_moments=5)
    np.testing.assert_array_equal(t, [19, 15, 11, 7, 3, -1])
    assert np.abs(frames[-1].astype(int) - samples).max() <= 1
    assert np.abs(frames[-2].astype(int) - samples).mean() < np.abs(frames[0].astype(int) - samples).mean()


class Stop(BaseException):
    """As Ctrl-C, but nothing that the command answers."""


def test_the_same_command_goes_on_to_the_same_numbers(straight_run, tmp_path, monkeypatch):
    flags = ["--what=bits", "--max_images=20"]  # three batches of 8, of 20 chunks each
    assert run_in(tmp_path / "straight", straight_run, *flags) == 0
    real, counted = BitsPerDim.measure, []

    def stopped_at(num_chunks):
        def measure(self, params, *, on_chunk, point):
            def count(num_new):
                counted.append(num_new)
                on_chunk(num_new)
                if len(counted) == num_chunks:
                    raise Stop

            return real(self, params, on_chunk=count, point=point)

        return measure

    folder = tmp_path / "stopped"
    for num_chunks in (7, 30):
        counted.clear()
        monkeypatch.setattr(BitsPerDim, "measure", stopped_at(num_chunks))
        with pytest.raises(Stop):
            run_in(folder, straight_run, *flags)
        assert not (folder / "evaluation.json").exists() and len(list(folder.glob("*.partial.npz"))) == 1
    # Another seed begins anew, and leaves the file alone.
    counted.clear()
    monkeypatch.setattr(BitsPerDim, "measure", stopped_at(-1))
    assert run_in(folder, straight_run, *flags, "--seed=1") == 0
    assert len(counted) == 60 and len(list(folder.glob("*.partial.npz"))) == 1
    counted.clear()
    assert run_in(folder, straight_run, *flags) == 0
    assert len(counted) == 60 - 37  # not measured again
    assert not list(folder.glob("*.partial.npz"))
    assert read(folder) == read(tmp_path / "straight")  # to the last bit


def test_the_flow_joins_what_was_measured_before(straight_run, tmp_path, capsys):
    flags = ["--max_images=1", "--ode_steps=4"]
    assert run_in(tmp_path, straight_run, "--what=bits", flags[0]) == 0
    before = read(tmp_path)
    assert before["bits_per_dim"]["total"]["standard_error"] is None  # of one picture
    capsys.readouterr()
    assert run_in(tmp_path, straight_run, "--what=ode", *flags) == 0
    after = read(tmp_path)
    flow = after.pop("ode_bits_per_dim")
    assert after == before and flow["num_ode_steps"] == 4 and flow["num_probes"] == 1
    out = capsys.readouterr().out
    assert f"probability flow, 4 RK4 steps, 1 probe | {flow['total']['mean']:.4f} |" in out
    assert f"variational bound | {before['bits_per_dim']['total']['mean']:.4f} |" in out
    # Of other pictures: nothing of the old numbers stays.
    assert run_in(tmp_path, straight_run, "--what=ode", "--ode_steps=4", "--max_images=2") == 0
    assert "bits_per_dim" not in read(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weights=exponential"], "--weights must be one of ['ema', 'ema/0.995', 'raw']"),
        (["--max_images=-1"], "--max_images must be at least 0; got -1"),
        (["--batch_size=-8"], "--batch_size must be at least 0; got -8"),
        (["--seed=-1"], "--seed must be in 0..2^32-1; got -1"),
        (["--split=holdout"], "holdout"),
        (["--step=12345"], "--step must be one of"),
        (["--best", "--step=8"], "give one of them"),
        (["--what=fid"], "--what=fid is part of 'samples': give --what=samples"),
        (["--what=NLL"], "--what=NLL is part of 'bits': give --what=bits"),
        (["--what=bit"], "['bits', 'ode', 'pictures', 'samples']; got 'bit'; did you mean 'bits'?"),
        (["--bits_respacing=ddim8"], "--bits_respacing='ddim8': no whole stride visits exactly 8 of 20 steps"),
        (["--what=pictures", "--bits_respacing=5"], "--bits_respacing is only for the bound: give --what=bits"),
        (["--what="], "--what must name something to measure: bits, pictures, ode, samples"),
        (["--ode", "--ode_steps=0"], "--ode_steps must be at least 1; got 0"),
        (["--ode", "--ode_steps=1000000000000"], "--ode_steps must be at most 100000; got 1000000000000"),
        (["--max_images=4294967296"], "--max_images must be at most 2147483647; got 4294967296"),
        (["--ode", "--ode_probes=-1"], "--ode_probes must be at least 0; got -1"),
        (["--ode_probes=2"], "--ode_probes is only for the probability flow: give --ode too"),
        (["--out=/dev/null/here"], "--out: the folder /dev/null/here cannot be written"),
    ],
)
def test_what_does_not_fit_is_one_line(straight_run, capsys, flags, message):
    assert evaluate.main([f"--workdir={straight_run}", *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_a_network_of_the_mean_has_no_flow(trained):
    config = trained.config.copy_and_resolve_references()
    with config.unlocked():
        config.diffusion.prediction = "mean"
    with pytest.raises(ValueError, match="needs whole steps: leave out --ode"):
        build_ode_bits(
            dataclasses.replace(trained, config=config), "test", make_mesh(1),
            seed=0, batch_size=4, max_images=1, num_ode_steps=2, num_probes=1,
        )  # fmt: skip


def test_no_run(tmp_path, capsys):
    assert evaluate.main([f"--workdir={tmp_path / 'none'}"]) == 2
    assert "there is no" in capsys.readouterr().err
