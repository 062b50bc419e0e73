"""Bits per dimension of a run: the command, and the stream against the bound computed at once."""

import json

import jax
import numpy as np
import pytest

from ddpm_jax import evaluate, factories
from ddpm_jax.denoiser import make_denoiser
from ddpm_jax.devices import make_mesh
from ddpm_jax.evaluation.bits import build_bits_per_dim
from ddpm_jax.keys import seed_keys
from ddpm_jax.likelihood import bits_per_dim
from ddpm_jax.pixel_scale import to_model_scale
from ddpm_jax.runs import open_run


def measure(run, batch_size, max_images, num_devices):
    bits = build_bits_per_dim(
        run.config, "test", make_mesh(num_devices), seed=0, batch_size=batch_size, max_images=max_images
    )
    calls = []
    measured = bits.measure(run.params, on_chunk=calls.append)
    assert sum(calls) == bits.num_calls
    return measured


def test_the_stream_is_the_bound_whatever_the_batches_and_devices(straight_run):
    run = open_run(str(straight_run))
    config = run.config
    schedule, model = factories.build_schedule(config), factories.build_model(config)
    images = factories.build_source(config, "test").load(np.arange(12))
    denoise_fn = make_denoiser(schedule, lambda x_t, t: model.apply({"params": run.params}, x_t, t))
    whole = jax.jit(
        lambda images: bits_per_dim(
            schedule,
            denoise_fn,
            x_0=to_model_scale(images),
            key=seed_keys(0).eval,
            variance=config.diffusion.variance,
        )
    )(images)
    one = measure(run, batch_size=12, max_images=12, num_devices=1)
    # Same noise, other batch shapes: convolutions sum in another order, some 1e-6 of each term.
    np.testing.assert_allclose(one.total, whole["total"], rtol=1e-4)
    np.testing.assert_allclose(one.terms.T, whole["terms"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(one.x_0_mse, whole["x_0_mse"].mean(axis=1), rtol=1e-3)
    np.testing.assert_allclose(one.eps_mse, whole["eps_mse"].mean(axis=1), rtol=1e-3)
    # Batches of 8 on 8 devices: the last one is filled up, and the filling does not count.
    eight = measure(run, batch_size=8, max_images=12, num_devices=8)
    assert eight.total.shape == (12,)
    np.testing.assert_allclose(eight.total, one.total, rtol=1e-4)
    summary = one.summary()
    assert summary["total"] == pytest.approx(summary["decoder"] + summary["kl"] + summary["prior"])
    assert summary["standard_error"] == pytest.approx(np.std(one.total, ddof=1) / 12**0.5)


def test_the_command_prints_a_table_and_writes_json(straight_run, tmp_path, capsys):
    out = tmp_path / "deep" / "bits.json"
    argv = [f"--workdir={straight_run}", "--max_images=8", "--batch_size=8", f"--out={out}"]
    assert evaluate.main(argv) == 0
    facts = json.loads(out.read_text())
    assert facts["split"] == "test" and facts["num_images"] == 8 and facts["weights"] == "ema"
    num_steps = open_run(str(straight_run)).config.schedule.num_steps
    assert {len(values) for values in facts["by_step"].values()} == {num_steps}
    assert facts["total"] == pytest.approx(sum(facts["by_step"]["terms"]) + facts["prior"])
    assert f"| {facts['total']:.4f} |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weights=exponential"], "--weights must be one of ['ema', 'raw']"),
        (["--max_images=-1"], "--max_images must be at least 0; got -1"),
        (["--seed=-1"], "--seed must be in 0..2^32-1; got -1"),
        (["--split=holdout"], "holdout"),
        (["--step=12345"], "--step must be one of"),
        (["--best", "--step=8"], "give one of them"),
    ],
)
def test_what_does_not_fit_is_one_line(straight_run, capsys, flags, message):
    assert evaluate.main([f"--workdir={straight_run}", *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_no_run(tmp_path, capsys):
    assert evaluate.main([f"--workdir={tmp_path / 'none'}"]) == 2
    assert "there is no" in capsys.readouterr().err
