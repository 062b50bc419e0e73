"""The forward process, its posterior and the conversions, against algebra in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.forward_process import (
    at_step,
    eps_from_x_0,
    q_posterior_mean,
    q_sample,
    signal_and_noise,
    v_from_x_0,
    x_0_from_eps,
    x_0_from_mean,
    x_0_from_v,
)
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.runtime.errors import UserError

LINEAR, COSINE = make_schedule("linear"), make_schedule("cosine", num_steps=4000)
SCHEDULES = pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine4000"])
STEPS = np.array([0, 1, 2, 10, 100, 500, 998, 999])
ULP = 2.0**-23


def normals(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((len(STEPS), *shape)), jnp.float32)


def column(table, ndim=2):
    return np.asarray(table, np.float64)[STEPS].reshape(-1, *[1] * (ndim - 1))


@SCHEDULES
def test_one_step_kernels_compose_to_q_of_x_t_given_x_0(schedule):
    """x_t = sqrt(alpha_t) x_(t-1) + sqrt(beta_t) z: mean and variance, followed through all T steps."""
    mean, variance = 1.0, 0.0
    means, variances = [], []
    for beta in schedule.betas_float64:
        mean, variance = np.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        means.append(mean)
        variances.append(variance)
    t = jnp.arange(schedule.num_steps)
    ones, zeros = jnp.ones((schedule.num_steps, 1)), jnp.zeros((schedule.num_steps, 1))
    # One rounding of the table to float32, and 4000 of float64 in this loop.
    np.testing.assert_allclose(q_sample(schedule, x_0=ones, t=t, eps=zeros)[:, 0], means, rtol=ULP)
    deviation = q_sample(schedule, x_0=zeros, t=t, eps=ones)[:, 0]
    np.testing.assert_allclose(deviation, np.sqrt(variances), rtol=ULP)


@SCHEDULES
def test_the_posterior_is_bayes_rule(schedule):
    """q(x_(t-1) | x_t, x_0) ~ q(x_t | x_(t-1)) q(x_(t-1) | x_0): precisions add, so do weighted means."""
    x_0, x_t = normals(3), normals(3, seed=1)
    beta = np.asarray(schedule.betas_float64)[STEPS]
    prev = np.append(1.0, schedule.host_alphas_bar)[STEPS]
    mean = q_posterior_mean(schedule, x_0=x_0, x_t=x_t, t=jnp.asarray(STEPS))
    for i, t in enumerate(STEPS):
        if t == 0:  # x_(-1) is x_0 itself
            np.testing.assert_array_equal(mean[i], x_0[i])
            assert schedule.posterior_var[0] == 0
            continue
        precision = (1 - beta[i]) / beta[i] + 1 / (1 - prev[i])
        weighted = np.sqrt(1 - beta[i]) / beta[i] * np.float64(x_t[i])
        weighted += np.sqrt(prev[i]) / (1 - prev[i]) * np.float64(x_0[i])
        # Two products and a sum of numbers up to 4: a few ulp of 4 where they cancel.
        np.testing.assert_allclose(mean[i], weighted / precision, rtol=4 * ULP, atol=4 * 4 * ULP)
        np.testing.assert_allclose(schedule.posterior_var[t], 1 / precision, rtol=2 * ULP)


@SCHEDULES
def test_the_conversions_undo_q_sample(schedule):
    """From x_t, each of x_0, eps, v gives the others, with the rounding that the formula itself amplifies."""
    x_0, eps, t = normals(4, 2), normals(4, 2, seed=1), jnp.asarray(STEPS)
    signal, noise = column(schedule.sqrt_alphas_bar, 3), column(schedule.sqrt_one_minus_alphas_bar, 3)
    x_t = q_sample(schedule, x_0=x_0, t=t, eps=eps)
    np.testing.assert_allclose(x_t, signal * x_0 + noise * eps, rtol=0, atol=4 * 4 * ULP)
    # x_t carries some ulp of its size (4 at most); the inversion divides them by the answer's coefficient.
    error = 4 * 4 * ULP
    assert_within(x_0_from_eps(schedule, x_t=x_t, t=t, eps=eps), x_0, 2 * error / signal)
    assert_within(eps_from_x_0(schedule, x_t=x_t, t=t, x_0=x_0), eps, 2 * error / noise)
    v = v_from_x_0(schedule, x_0=x_0, t=t, eps=eps)
    np.testing.assert_allclose(v, signal * eps - noise * x_0, rtol=0, atol=error)
    # v and x_t are a rotation of eps and x_0: nothing is amplified.
    assert_within(x_0_from_v(schedule, x_t=x_t, t=t, v=v), x_0, 2 * error)


def assert_within(got, expected, tolerance):
    assert np.all(np.abs(np.asarray(got, np.float64) - expected) <= tolerance)


@pytest.mark.parametrize("shape", [(), (5,), (4, 6), (4, 6, 3), (2, 3, 4, 5)])
def test_any_rank_is_the_flat_one_reshaped(shape):
    x_0, eps, t = normals(*shape), normals(*shape, seed=1), jnp.asarray(STEPS)
    flat = [a.reshape(len(STEPS), -1) for a in (x_0, eps)]
    x_t = q_sample(LINEAR, x_0=x_0, t=t, eps=eps)
    assert x_t.shape == x_0.shape and x_t.dtype == jnp.float32
    np.testing.assert_array_equal(
        x_t.reshape(len(STEPS), -1), q_sample(LINEAR, x_0=flat[0], t=t, eps=flat[1])
    )
    assert q_posterior_mean(LINEAR, x_0=x_0, x_t=x_t, t=t).shape == x_0.shape


@pytest.mark.parametrize("t", [-1, -1000, -(2**31), 1000, 2**31 - 1])
def test_there_is_no_step_outside(t):
    """In every function that takes t, and for fractional t, too: never the last step for -1."""
    x, t = jnp.ones((1, 2)), jnp.array([t], jnp.int32)
    given, respaced = dict(x_t=x, t=t), Process(LINEAR).respaced(np.array([0, 500]))
    for value in (
        q_sample(LINEAR, x_0=x, t=t, eps=x), q_posterior_mean(LINEAR, x_0=x, **given),
        x_0_from_eps(LINEAR, eps=x, **given), eps_from_x_0(LINEAR, x_0=x, **given), x_0_from_v(LINEAR, v=x, **given),
        x_0_from_mean(LINEAR, mean=x, **given), v_from_x_0(LINEAR, x_0=x, t=t, eps=x),
        *signal_and_noise(LINEAR, t, 2), *signal_and_noise(LINEAR, t.astype(jnp.float32), 2),
        respaced.predict(lambda x_t, t: jnp.where(t == 0, x_t, jnp.nan), x, t).value,
    ):  # fmt: skip
        assert np.all(np.isnan(value))
    with pytest.raises(TypeError, match="t must be whole steps here; got float32|Type-check error"):
        at_step(LINEAR.betas, t.astype(jnp.float32), 2)


def test_at_step_is_nan_past_the_end():
    got = at_step(LINEAR.betas, jnp.array([0, 999, 1000, 5000]), 4)
    assert got.shape == (4, 1, 1, 1)
    np.testing.assert_array_equal(np.isnan(got[:, 0, 0, 0]), [False, False, True, True])
    np.testing.assert_array_equal(got[:2, 0, 0, 0], LINEAR.betas[np.array([0, 999])])


def test_fixed_variances():
    t = jnp.array([0, 1, 500, 999])
    small = jnp.exp(Process(LINEAR, variance="fixed_small").log_var(t, ndim=1))
    large = jnp.exp(Process(LINEAR, variance="fixed_large").log_var(t, ndim=1))
    # exp of a float32 logarithm around -10 multiplies its rounding by 10.
    np.testing.assert_allclose(small[1:], LINEAR.posterior_var[t[1:]], rtol=10 * ULP)
    np.testing.assert_allclose(large[1:], LINEAR.betas[t[1:]], rtol=10 * ULP)
    assert small[0] == large[0] == small[1]
    assert Process(LINEAR, variance="fixed_small").log_var(t, ndim=3).shape == (4, 1, 1)
    with pytest.raises(UserError, match="^variance .* got 'fixed_smal'; did you mean 'fixed_small'"):
        Process(LINEAR, variance="fixed_smal")


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
def test_a_perfect_network_is_denoised_to_x_0(prediction):
    x_0, eps, t = jnp.tanh(normals(6)), normals(6, seed=1), jnp.asarray(STEPS)
    x_t = q_sample(LINEAR, x_0=x_0, t=t, eps=eps)
    truth = {"eps": eps, "x_0": x_0, "v": v_from_x_0(LINEAR, x_0=x_0, t=t, eps=eps)}[prediction]
    seen = []
    denoise_fn = make_denoiser(Process(LINEAR, prediction=prediction), lambda x, s: seen.append((x, s)) or truth)
    tolerance = 32 * ULP / (column(LINEAR.sqrt_alphas_bar) if prediction == "eps" else 1)
    assert_within(denoise_fn(x_t, t).x_0_hat, x_0, tolerance)
    assert seen[0][0] is x_t and seen[0][1] is t


def test_x_0_is_clipped_where_asked_and_only_there():
    model_fn = lambda x_t, t: x_t  # noqa: E731
    x_t, t = jnp.array([[-3.0, -0.5, 0.5, 3.0]]), jnp.array([7])
    clipped = make_denoiser(Process(LINEAR, prediction="x_0"), model_fn)(x_t, t).x_0_hat
    np.testing.assert_array_equal(clipped, [[-1, -0.5, 0.5, 1]])
    free = make_denoiser(Process(LINEAR, prediction="x_0"), model_fn, x_0_limit=None)(x_t, t).x_0_hat
    np.testing.assert_array_equal(free, x_t)


def test_predictions_that_are_refused():
    with pytest.raises(UserError, match="^prediction .* got 'epsilon'"):
        make_denoiser(Process(LINEAR, prediction="epsilon"), lambda x_t, t: x_t)


@pytest.mark.parametrize("settings", [("jsd", 100, 0.02), ("constant", 10_000, 0.02)])
def test_eps_is_refused_where_it_says_nothing_about_x_0(settings):
    """At alpha-bar = 0 (in float32), x_0 = inf - inf: a NaN sample from every sampler, without this."""
    name, num_steps, beta_end = settings
    schedule = make_schedule(name, num_steps=num_steps, beta_end=beta_end)
    with pytest.raises(UserError, match="predict 'x_0' or 'v'"):
        make_denoiser(Process(schedule), lambda x_t, t: x_t)
    denoise_fn = make_denoiser(Process(schedule, prediction="v"), lambda x_t, t: x_t)
    assert np.isfinite(denoise_fn(jnp.ones((1, 2)), jnp.array([num_steps - 1])).x_0_hat).all()


def test_shapes_are_checked(pytestconfig):
    """`--jaxtyping-packages` is at work: without it this would broadcast to [2, 2, 3]."""
    if not pytestconfig.getoption("jaxtyping_packages"):
        pytest.skip("shapes are not checked: see pyproject.toml")
    with pytest.raises(Exception, match="(?i)type-check"):
        q_sample(LINEAR, x_0=jnp.ones((2, 3)), t=jnp.array([0, 1]), eps=jnp.ones((2, 2, 3)))


def test_gradients_and_jit():
    t = jnp.array([0, 999])
    f = jax.jit(lambda x: jnp.sum(q_sample(LINEAR, x_0=x, t=t, eps=x)))
    signal, noise = LINEAR.sqrt_alphas_bar[t], LINEAR.sqrt_one_minus_alphas_bar[t]
    np.testing.assert_allclose(jax.grad(f)(jnp.ones((2, 1)))[:, 0], signal + noise, rtol=2 * ULP)
