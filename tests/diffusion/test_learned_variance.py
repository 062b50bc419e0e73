"""Learned variances and L_hybrid against a slow NumPy float64 implementation, and at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_ndtr

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.losses import make_loss_fn
from ddpm_jax.diffusion.process import LEARNED_VARIANCES, VARIANCES, Process
from ddpm_jax.diffusion.rng import sample_keys, sample_noise
from ddpm_jax.diffusion.samplers.ancestral import ancestral_table
from ddpm_jax.diffusion.samplers.sampling_loop import p_sample_loop, sample_loop
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import respaced, spaced_steps
from ddpm_jax.diffusion.variational_bound import bits_per_dim

LEARNED = pytest.mark.parametrize("variance", LEARNED_VARIANCES)


def slow_term(betas, t, x_0, eps, network, variance):
    """L_t of one image in bits/dim, float64, from the equations; `network(x_t, t)` -> (eps_hat, values)."""
    bar = np.cumprod(1 - betas)
    prev = bar[t - 1] if t else 1.0
    x_t = np.sqrt(bar[t]) * x_0 + np.sqrt(1 - bar[t]) * eps
    eps_hat, values = network(x_t, t)
    x_0_hat = (x_t - np.sqrt(1 - bar[t]) * eps_hat) / np.sqrt(bar[t])

    def mean(x):
        return (
            np.sqrt(prev) * betas[t] / (1 - bar[t]) * x + np.sqrt(1 - betas[t]) * (1 - prev) / (1 - bar[t]) * x_t
        )

    tilde = betas[t] * (1 - prev) / (1 - bar[t])
    if t == 0:  # the repair
        tilde = betas[1] * (1 - bar[0]) / (1 - bar[1]) if len(betas) > 1 else betas[0]
    log_var = {
        "fixed_small": np.log(tilde),
        "fixed_large": np.log(tilde if t == 0 else betas[t]),
        "learned": values,
        "learned_range": (values + 1) / 2 * np.log(betas[t]) + (1 - values) / 2 * np.log(tilde),
    }[variance]
    if t > 0:
        nats = 0.5 * (
            log_var - np.log(tilde) - 1 + np.exp(np.log(tilde) - log_var)
            + (mean(x_0) - mean(x_0_hat)) ** 2 * np.exp(-log_var)
        )  # fmt: skip
    else:
        low = np.where(x_0 < -0.999, -np.inf, (x_0 - mean(x_0_hat) - 1 / 255) * np.exp(-log_var / 2))
        high = np.where(x_0 > 0.999, np.inf, (x_0 - mean(x_0_hat) + 1 / 255) * np.exp(-log_var / 2))
        flip = low + high > 0
        low, high = np.where(flip, -high, low), np.where(flip, -low, high)
        nats = -(log_ndtr(high) + np.log(-np.expm1(log_ndtr(low) - log_ndtr(high))))
    return np.mean(nats) / np.log(2), np.mean((eps - eps_hat) ** 2)


def network(x_t, t, np=np):
    """A made-up network, eps_hat and values: values of a learned log variance must be near log beta."""
    return 0.7 * x_t + 0.05 * np.sin(t), np.tanh(2 * x_t) - 0.1


def model_fn(x_t, t):
    t = t.reshape((-1,) + (1,) * (x_t.ndim - 1)).astype(jnp.float32)
    return jnp.concatenate(network(x_t, t, jnp), axis=-1)


def pictures(rng, *shape):
    x_0 = rng.integers(0, 256, shape) / 127.5 - 1
    x_0[:, 0], x_0[:, -1] = -1.0, 1.0  # pixel values 0 and 255 are in every one
    return x_0


@pytest.mark.parametrize("num_steps", [1, 2, 40, 4000])
@pytest.mark.parametrize("variance", VARIANCES)
def test_hybrid_and_vlb_are_the_slow_ones(variance, num_steps):
    schedule = make_schedule("cosine" if num_steps > 1 else "constant", num_steps=num_steps, beta_end=0.3)
    betas, rng = np.array(schedule.betas_float64), np.random.default_rng(num_steps)
    t = np.unique([0, num_steps - 1, min(1, num_steps - 1), num_steps // 2, num_steps // 10])
    x_0, eps = pictures(rng, len(t), 4, 3), rng.standard_normal((len(t), 4, 3))
    x_0, eps = np.float64(np.float32(x_0)), np.float64(np.float32(eps))
    terms, simple = np.transpose(
        [slow_term(betas, s, x, e, network, variance) for s, x, e in zip(t, x_0, eps, strict=True)]
    )
    learned = variance in LEARNED_VARIANCES
    fn = model_fn if learned else lambda x_t, t: model_fn(x_t, t)[..., :3]
    arguments = dict(x_0=jnp.asarray(x_0, jnp.float32), t=jnp.asarray(t), eps=jnp.asarray(eps, jnp.float32))

    def losses(loss):
        return jax.jit(
            lambda: make_loss_fn(Process(schedule, variance=variance), loss=loss, vlb_lambda=0.01)(fn, **arguments)
        )()

    # x_0_hat = (x_t - ...)/sqrt(alpha-bar): float32 rounding, which alpha-bar_T = 1e-9 makes large, over sigma.
    bar = np.cumprod(1 - betas)[t]
    tolerance = 3e-5 * (1 + np.abs(terms)) / np.sqrt(bar.clip(1e-3))
    vlb = losses("vlb")["loss"]
    assert np.all(np.abs(vlb - terms) <= tolerance), (vlb, terms)
    np.testing.assert_allclose(losses("rescaled_vlb")["loss"], num_steps * vlb, rtol=1e-5)
    if learned:
        hybrid = losses("hybrid")
        np.testing.assert_allclose(hybrid["simple"], simple, rtol=1e-5)
        np.testing.assert_allclose(hybrid["vlb"], num_steps * vlb, rtol=1e-5)
        np.testing.assert_allclose(hybrid["loss"], hybrid["simple"] + 0.01 * hybrid["vlb"], rtol=1e-6)


@LEARNED
def test_the_bound_of_hybrid_trains_the_variance_alone(variance):
    schedule = make_schedule("cosine", num_steps=50)
    x_0, eps = (jnp.asarray(np.random.default_rng(i).standard_normal((4, 6)), jnp.float32) for i in (0, 1))
    t = jnp.array([0, 1, 20, 49])

    def gradient(part, **settings):
        def f(a, b):
            fn = lambda x_t, t: jnp.concatenate([a * x_t, b * jnp.ones_like(x_t)], axis=-1)  # noqa: E731
            return jnp.sum(
                make_loss_fn(Process(schedule, variance=variance), **settings)(fn, x_0=x_0, t=t, eps=eps)[part]
            )

        return np.array(jax.grad(f, (0, 1))(jnp.float32(0.5), jnp.float32(-0.3)))

    simple, vlb = gradient("simple", loss="hybrid"), gradient("vlb", loss="hybrid")
    assert simple[0] != 0 and simple[1] == 0
    assert vlb[0] == 0 and vlb[1] != 0
    # The same derivative by the variance as of the whole bound, in which the mean is free.
    whole = gradient("loss", loss="rescaled_vlb")
    assert whole[0] != 0 and whole[1] == pytest.approx(vlb[1], rel=1e-5)
    total = gradient("loss", loss="hybrid", vlb_lambda=0.01)
    np.testing.assert_allclose(total, simple + 0.01 * vlb, rtol=1e-5)


def test_the_ends_of_a_learned_range_are_beta_tilde_and_beta():
    schedule = make_schedule("linear")
    t = jnp.arange(1000)
    process = Process(schedule, variance="learned_range")
    low = process.log_var(t, ndim=2, var_values=-jnp.ones((1000, 1)))[:, 0]
    high = process.log_var(t, ndim=2, var_values=jnp.ones((1000, 1)))[:, 0]
    np.testing.assert_allclose(low, schedule.log_var_fixed_small, rtol=1e-6)
    np.testing.assert_allclose(high, np.log(schedule.betas_float64), rtol=1e-6)
    assert np.all(high > low) and np.all(np.isfinite(low))
    beyond = process.log_var(t, ndim=2, var_values=3 * jnp.ones((1000, 1)))[:, 0]
    np.testing.assert_allclose(beyond, 2 * high - low, rtol=1e-5)  # not cut off: a gradient is left


def fixed_as_learned(schedule, variance):
    """Values with which a learned variance is beta-tilde or beta, for t > 0."""
    if variance == "learned":
        return lambda t: jnp.asarray(schedule.log_var_fixed_small)[t]
    return lambda t: -jnp.ones(t.shape)


@LEARNED
def test_a_variance_learned_to_be_beta_tilde_is_fixed_small(variance):
    """The bound, all its terms, and ancestral samples, noise for noise."""
    schedule, values = make_schedule("cosine", num_steps=30), None
    values = fixed_as_learned(schedule, variance)

    def learned_fn(x_t, t):
        return jnp.concatenate([0.4 * x_t, jnp.broadcast_to(values(t)[:, None], x_t.shape)], axis=-1)

    learned = make_denoiser(Process(schedule, variance=variance), learned_fn)
    fixed = make_denoiser(Process(schedule), lambda x_t, t: 0.4 * x_t)
    x_0 = jnp.asarray(pictures(np.random.default_rng(0), 3, 5), jnp.float32)
    arguments = dict(x_0=x_0, key=jax.random.key(0))
    one = bits_per_dim(Process(schedule, variance=variance), learned, **arguments)
    other = bits_per_dim(Process(schedule, variance="fixed_small"), fixed, **arguments)
    np.testing.assert_allclose(one["total"], other["total"], rtol=1e-5)
    np.testing.assert_allclose(one["terms"], other["terms"], rtol=1e-4, atol=1e-6)
    grids = [None] if variance == "learned" else [None, spaced_steps(30, 7)]
    for steps in grids:
        draw = dict(key=jax.random.key(1), num_samples=4, shape=(5,))
        got = p_sample_loop(learned, ancestral_table(Process(schedule, variance=variance), steps=steps), **draw)
        expected = p_sample_loop(fixed, ancestral_table(Process(schedule, variance="fixed_small"), steps=steps), **draw)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_learned_range_of_the_kept_steps_lies_between_their_own_beta_tilde_and_beta():
    """At +1 the noise is that of "fixed_large" of the same steps, whose betas are those of the respaced process."""
    schedule, steps = make_schedule("linear"), spaced_steps(1000, 10)
    table = ancestral_table(Process(schedule, variance="learned_range"), steps=steps)
    betas = np.array(respaced(schedule, steps).betas_float64)[::-1]
    at_1 = np.exp(0.5 * (np.asarray(table.log_var_shift) + np.asarray(table.log_var_scale)))
    np.testing.assert_allclose(at_1, np.sqrt(betas), rtol=1e-5)
    at_minus_1 = np.exp(0.5 * (np.asarray(table.log_var_shift) - np.asarray(table.log_var_scale)))
    small = np.asarray(ancestral_table(Process(schedule, variance="fixed_small"), steps=steps).sigma)
    np.testing.assert_allclose(at_minus_1[:-1], small[:-1], rtol=1e-5)
    assert table.sigma.tolist() == [1.0] * 9 + [0.0]
    keys = sample_keys(jax.random.key(0), jnp.arange(2))
    denoise_fn = make_denoiser(
        Process(schedule, variance="learned_range"), lambda x_t, t: jnp.concatenate([x_t, jnp.ones_like(x_t)], -1)
    )
    one = sample_loop(denoise_fn, table.rows(0, 1), jnp.zeros((2, 3)), keys)
    np.testing.assert_allclose(one, np.sqrt(betas[0]) * sample_noise(keys, 1, (3,)), rtol=1e-5)


def test_the_network_must_be_twice_as_wide():
    schedule = make_schedule("linear", num_steps=100)
    denoise_fn = make_denoiser(Process(schedule, variance="learned"), lambda x_t, t: x_t)
    with pytest.raises(ValueError, match="the network must give 6 channels; got 3"):
        denoise_fn(jnp.zeros((1, 3)), jnp.zeros(1, jnp.int32))


@pytest.mark.parametrize("variance", VARIANCES)
def test_a_term_is_never_negative(variance):
    """KL and -log of a mass are not; rounding may not make them so."""
    schedule = make_schedule("linear")
    rng = np.random.default_rng(0)
    x_0 = jnp.asarray(pictures(rng, 1000, 4), jnp.float32)
    eps = jnp.asarray(rng.standard_normal((1000, 4)), jnp.float32)
    t = jnp.arange(1000)
    values = {"learned": jnp.asarray(schedule.log_var_fixed_small)[:, None] * jnp.ones((1, 4))}
    for scale in (0.0, 1e-3, 1.0):

        def fn(x_t, t):
            exact = eps + scale * jnp.sin(40 * x_t)  # noqa: B023
            if variance not in LEARNED_VARIANCES:
                return exact
            return jnp.concatenate([exact, values.get(variance, -jnp.ones((1000, 4)))], axis=-1)

        terms = make_loss_fn(Process(schedule, variance=variance), loss="vlb")(fn, x_0=x_0, t=t, eps=eps)["loss"]
        assert np.all(np.asarray(terms) >= 0)
