"""The prior, the decoder term, the errors of x_0 and eps, and the whole bound for Gaussian data and the exact
network, against quadrature in float64. The KL terms have their closed form in test_variational_bound.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_ndtr

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.variational_bound import bits_per_dim, prior_term, vlb_term

M, S, T = 0.1, 0.3, 200
VARIANCES = pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])


def schedule_of_the_tests():
    """Ends at alpha-bar = 0.13: the prior term counts."""
    return make_schedule("linear", num_steps=T, beta_end=0.004)


def exact_denoiser(schedule):
    def model_fn(x_t, t):
        bar, noise = (table[t][:, None] for table in (schedule.alphas_bar, schedule.one_minus_alphas_bar))
        return jnp.sqrt(noise) * (x_t - jnp.sqrt(bar) * M) / (bar * S**2 + noise)

    return make_denoiser(Process(schedule), model_fn, x_0_limit=None)


def normal_grid(num_points):
    """Points and weights of E[f(z)], z ~ N(0, 1): the trapezoid rule, exact to float64 for a smooth f."""
    z = np.linspace(-9, 9, num_points)
    weights = np.exp(-(z**2) / 2)
    return z, weights / weights.sum()


def log_mass(lower, upper):
    mirror = lower + upper > 0
    low, high = np.where(mirror, -upper, lower), np.where(mirror, -lower, upper)
    return log_ndtr(high) + np.log(-np.expm1(log_ndtr(low) - log_ndtr(high)))


def decoder_bits(schedule, pixels):
    """E[-log2 P(x_0 | x_1)] over the noise of x_1, for each x_0 of [N], in float64."""
    bar, noise = schedule.host_alphas_bar[0], schedule.host_one_minus_alphas_bar[0]
    betas = np.array(schedule.betas_float64)
    # Both fixed variances at t = 0 are beta-tilde at t = 1.
    std = np.sqrt(betas[1] * noise / (1 - schedule.host_alphas_bar[1]))
    z, weights = normal_grid(4001)
    x_t = np.sqrt(bar) * pixels[:, None] + np.sqrt(noise) * z
    x_0_hat = M + np.sqrt(bar) * S**2 * (x_t - np.sqrt(bar) * M) / (bar * S**2 + noise)  # also the mean of p
    lower, upper = ((pixels[:, None] - x_0_hat + side / 255) / std for side in (-1, 1))
    lower = np.where(pixels[:, None] < -0.999, -np.inf, lower)
    upper = np.where(pixels[:, None] > 0.999, np.inf, upper)
    return -(log_mass(lower, upper) @ weights) / np.log(2)


@VARIANCES
def test_the_decoder_term_is_the_integral(variance):
    schedule = schedule_of_the_tests()
    pixels = np.array([0, 1, 100, 128, 200, 254, 255]) / 127.5 - 1
    z, weights = normal_grid(2001)
    x_0 = np.repeat(pixels, len(z))[:, None]
    noise = np.tile(z, len(pixels))[:, None]
    x_t = np.sqrt(schedule.host_alphas_bar[0]) * x_0 + np.sqrt(schedule.host_one_minus_alphas_bar[0]) * noise
    terms, _ = vlb_term(
        Process(schedule, variance=variance), exact_denoiser(schedule), x_0=jnp.asarray(x_0, jnp.float32),
        x_t=jnp.asarray(x_t, jnp.float32), t=jnp.zeros(len(x_0), jnp.int32),
    )  # fmt: skip
    got = np.asarray(terms, np.float64).reshape(len(pixels), -1) @ weights
    expected = decoder_bits(schedule, pixels)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert expected.max() / expected.min() > 1.05  # far pixels cost more


def test_the_prior_is_the_integral():
    """E over x_0 of KL(N(a x_0, n^2) || N(0, 1)), the KL itself as an integral over x_T."""
    schedule = schedule_of_the_tests()
    a = np.sqrt(schedule.host_alphas_bar[-1])
    n = np.sqrt(schedule.host_one_minus_alphas_bar[-1])
    z, weights = normal_grid(401)
    x_0 = M + S * z
    x_T = a * x_0[:, None] + n * z
    log_ratio = -(z**2) / 2 - np.log(n) + x_T**2 / 2
    expected = weights @ log_ratio @ weights / np.log(2)
    got = np.asarray(prior_term(schedule, jnp.asarray(x_0[:, None], jnp.float32)), np.float64) @ weights
    assert got == pytest.approx(expected, rel=1e-5)
    assert got == pytest.approx(0.5 * (-(a**2) - 2 * np.log(n) + a**2 * (M**2 + S**2)) / np.log(2), rel=1e-5)
    assert got > 1e-3


@VARIANCES
def test_total_terms_and_errors_are_their_expectations(variance):
    schedule = schedule_of_the_tests()
    draws = np.clip(M + S * np.random.default_rng(0).standard_normal((24, 1024)), -1, 1)
    x_0 = np.rint((draws + 1) * 127.5) / 127.5 - 1
    out = jax.jit(
        lambda x_0: bits_per_dim(
            Process(schedule, variance=variance), exact_denoiser(schedule), x_0=x_0, key=jax.random.key(0)
        )
    )(jnp.asarray(x_0, jnp.float32))
    out = {name: np.asarray(array, np.float64) for name, array in out.items()}

    betas, bar, noise = np.array(schedule.betas_float64), schedule.host_alphas_bar, schedule.host_one_minus_alphas_bar
    mse = S**2 * noise / (bar * S**2 + noise)  # E (x_0 - E[x_0 | x_t])^2
    posterior = betas[1:] * noise[:-1] / noise[1:]
    sigma_2 = posterior if variance == "fixed_small" else betas[1:]
    ratio = posterior / sigma_2
    kl = 0.5 * (ratio - 1 - np.log(ratio) + betas[1:] ** 2 * bar[:-1] / noise[1:] ** 2 * mse[1:] / sigma_2) / np.log(2)
    # The 256 values by how often data N(M, S^2) take them.
    pixels = np.arange(256) / 127.5 - 1
    edges = [np.where(pixels < -0.999, -np.inf, (pixels - M - 1 / 255) / S),
             np.where(pixels > 0.999, np.inf, (pixels - M + 1 / 255) / S)]  # fmt: skip
    decoder = np.exp(log_mass(*edges)) @ decoder_bits(schedule, pixels)
    prior = 0.5 * (-bar[-1] - np.log(noise[-1]) + bar[-1] * (M**2 + S**2)) / np.log(2)

    def agree(images, expected):
        mean, error = images.mean(axis=-1), images.std(axis=-1, ddof=1) / np.sqrt(images.shape[-1])
        # 200 steps are compared at once: 5 standard errors, and what float32 may do.
        assert np.all(np.abs(mean - expected) < 5 * error + 1e-4 * np.abs(expected)), np.abs(mean - expected) / error

    agree(out["total"], prior + decoder + kl.sum())
    agree(out["terms"], np.append(decoder, kl))
    agree(out["x_0_mse"], mse)
    agree(out["eps_mse"], mse * bar / noise)
    assert out["total"].std() < 0.02 * out["total"].mean()  # a sharp comparison
