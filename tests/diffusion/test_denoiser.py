"""From outputs to x_0_hat: every prediction, whole and fractional steps, thresholds, variances at t = 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.forward_process import q_posterior_mean, q_sample, v_from_x_0
from ddpm_jax.diffusion.parameterisations import PREDICTIONS
from ddpm_jax.diffusion.process import VARIANCES, Process
from ddpm_jax.diffusion.schedules import make_schedule, rescale_zero_terminal_snr
from ddpm_jax.runtime.errors import UserError

LINEAR = make_schedule("linear")
T = jnp.array([0, 1, 17, 500, 999])


def case():
    rng = np.random.default_rng(0)
    x_0, eps = (jnp.asarray(rng.uniform(-1, 1, (5, 6)), jnp.float32) for _ in range(2))
    return x_0, eps, q_sample(LINEAR, x_0=x_0, t=T, eps=eps)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_truth_in_every_prediction_gives_x_0(prediction):
    x_0, eps, x_t = case()
    truth = {
        "eps": eps,
        "x_0": x_0,
        "v": v_from_x_0(LINEAR, x_0=x_0, t=T, eps=eps),
        "mean": q_posterior_mean(LINEAR, x_0=x_0, x_t=x_t, t=T),
    }[prediction]
    denoise_fn = make_denoiser(Process(LINEAR, prediction=prediction), lambda x_t, t: truth, x_0_limit=None)
    # 1/sqrt(alpha-bar) = 157 at t = 999; the mean holds x_0 with a weight of 1e-4 there.
    atol = {"eps": 1e-4, "mean": 5e-3}.get(prediction, 2e-6)
    np.testing.assert_allclose(denoise_fn(x_t, T).x_0_hat, x_0, atol=atol)


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
def test_a_whole_step_may_be_written_as_a_float(prediction):
    x_t = case()[2]
    denoise_fn = jax.jit(
        make_denoiser(Process(LINEAR, prediction=prediction), lambda x_t, t: 0.3 * x_t, x_0_limit=None)
    )
    whole, fractional = denoise_fn(x_t, T).x_0_hat, denoise_fn(x_t, T.astype(jnp.float32)).x_0_hat
    np.testing.assert_allclose(fractional, whole, rtol=1e-4, atol=1e-5)


def test_the_previous_mean_is_for_whole_steps():
    denoise_fn = make_denoiser(Process(LINEAR, prediction="mean"), lambda x_t, t: x_t)
    with pytest.raises(ValueError, match="the previous mean is only defined at whole steps t"):
        denoise_fn(jnp.zeros((1, 2)), jnp.array([0.5]))


def test_dynamic_threshold():
    x_0 = np.random.default_rng(0).normal(0, 1, (3, 4, 5)) * np.array([0.2, 1.0, 4.0]).reshape(3, 1, 1)
    denoise_fn = make_denoiser(
        Process(LINEAR, prediction="x_0"), lambda x_t, t: jnp.asarray(x_0, jnp.float32), dynamic_threshold=0.9
    )
    got = denoise_fn(jnp.zeros((3, 4, 5)), jnp.zeros(3, jnp.int32)).x_0_hat
    limit = np.maximum(np.quantile(np.abs(x_0).reshape(3, -1), 0.9, axis=1), 1).reshape(3, 1, 1)
    assert limit[0] == 1 and limit[2] > 3
    np.testing.assert_allclose(got, np.clip(x_0, -limit, limit) / limit, rtol=1e-5)
    with pytest.raises(UserError, match=r"^dynamic_threshold must be in \[0, 1\], 0 for none; got 1.5"):
        make_denoiser(Process(LINEAR), lambda x_t, t: x_t, dynamic_threshold=1.5)


@pytest.mark.parametrize("num_steps", [1, 2, 1000, 4000])
def test_variances_at_t_0_are_finite_and_repaired(num_steps):
    schedule = make_schedule("cosine", num_steps=num_steps)
    betas, bar = np.array(schedule.betas_float64), schedule.host_alphas_bar
    repaired = np.log(betas[1] * (1 - bar[0]) / (1 - bar[1]) if num_steps > 1 else betas[0])
    values = {"learned": -3.0, "learned_range": -1.0}
    expected = {"learned": -3.0}
    for variance in VARIANCES:
        told = jnp.full((1, 2), values.get(variance, 0.0))
        got = Process(schedule, variance=variance).log_var(jnp.zeros(1, jnp.int32), ndim=2, var_values=told)
        np.testing.assert_allclose(got, expected.get(variance, repaired), rtol=1e-6)


def test_zero_terminal_snr():
    betas = np.array(LINEAR.betas_float64)
    bar = np.cumprod(1 - rescale_zero_terminal_snr(betas))
    old = np.sqrt(LINEAR.host_alphas_bar)
    assert bar[-1] == 0 and bar[0] == pytest.approx(1 - betas[0], rel=1e-12)
    # Affine in sqrt(alpha-bar).
    np.testing.assert_allclose(np.sqrt(bar), (old - old[-1]) * old[0] / (old[0] - old[-1]), atol=1e-12)
    with pytest.raises(UserError, match="^zero_terminal_snr=True needs num_steps of at least 2"):
        make_schedule("constant", num_steps=1, zero_terminal_snr=True)
    schedule = make_schedule("linear", zero_terminal_snr=True)
    for prediction in ("eps", "v"):
        if prediction == "eps":
            with pytest.raises(UserError, match="'eps' says nothing about x_0 where alpha-bar falls to 0"):
                make_denoiser(Process(schedule), lambda x_t, t: x_t)
            continue
        denoise_fn = make_denoiser(Process(schedule, prediction=prediction), lambda x_t, t: 0.5 * x_t)
        assert np.all(np.isfinite(denoise_fn(jnp.ones((1, 2)), jnp.array([999])).x_0_hat))
