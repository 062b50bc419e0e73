"""The variational bound against closed forms, quadrature, SciPy in float64 and a slow NumPy loop."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_ndtr

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.forward_process import q_sample
from ddpm_jax.diffusion.losses import make_loss_fn
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys, sample_noise
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.variational_bound import (
    bits_per_dim,
    discretised_gaussian_log_likelihood,
    normal_kl,
    prior_term,
    vlb_term,
    vlb_terms,
)

ULP = 2.0**-23
PIXELS = np.arange(256) / 127.5 - 1
HALF_BIN = 1 / 255
VARIANCES = pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])


def kl(*arguments):
    return np.asarray(normal_kl(*(jnp.float32(a) for a in arguments)), np.float64)


@pytest.mark.parametrize("mean_1,std_1,mean_2,std_2", [(0, 1, 0, 1), (0.3, 0.5, -1, 2), (2, 1.5, 1, 0.7)])
def test_kl_is_the_integral(mean_1, std_1, mean_2, std_2):
    x = np.linspace(mean_1 - 12 * std_1, mean_1 + 12 * std_1, 20_001)
    log_p, log_q = (
        -0.5 * ((x - m) / s) ** 2 - np.log(s) - 0.5 * np.log(2 * np.pi)
        for m, s in ((mean_1, std_1), (mean_2, std_2))
    )
    # The trapezoid rule is exact to float64 for a function that falls to nothing at both ends.
    integral = np.sum(np.exp(log_p) * (log_p - log_q)) * (x[1] - x[0])
    got = kl(mean_1, 2 * np.log(std_1), mean_2, 2 * np.log(std_2))
    np.testing.assert_allclose(got, integral, rtol=8 * ULP, atol=1e-12)


def test_kl_of_equals_is_exactly_0_and_small_ones_keep_their_digits():
    log_var = np.linspace(-40, 10, 101).astype(np.float32)
    assert np.all(kl(log_var, log_var, log_var, log_var) == 0)
    # Variances that differ by r: KL = r^2/4 (1 + O(r)); a sum with a 1 in it would lose a tenth.
    r = np.float32(7e-4)  # no power of 2: there 1 + r + r^2/2 happens to be a float32
    assert kl(0, r, 0, 0) == pytest.approx(r**2 / 4, rel=1e-3)
    assert kl(1e-3, 0, 0, 0) == pytest.approx(0.5e-6, rel=4 * ULP)


def pairs_of(means, stds):
    return list(itertools.product(means, stds))


def decoder_inputs(pixels, pairs):
    """x_0, mean and log_var, float32 [pixels, pairs]: every pixel value with every (mean, std)."""
    mean, std = np.array(pairs).T
    columns = np.broadcast_arrays(pixels[:, None], mean, 2 * np.log(std))
    return [np.asarray(column, np.float32) for column in columns]


def in_float64(inputs):
    return (np.asarray(array, np.float64) for array in inputs)


@jax.jit
def decoder(x_0, mean, log_var):
    return discretised_gaussian_log_likelihood(x_0, mean=mean, log_var=log_var)


def check(is_right, pairs, hint=""):
    """Fails with the (mean, std) at which `is_right`, [..., pairs], is not true throughout."""
    wrong = [pair for i, pair in enumerate(pairs) if not np.all(is_right[..., i])]
    assert not wrong, f"at (mean, std) = {wrong} {hint}"


def edges(x_0, mean, log_var):
    """z of the bin's two ends, float64; infinite at the outer end of pixel values 0 and 255."""
    lower = np.where(x_0 < -1 + HALF_BIN, -np.inf, (x_0 - mean - HALF_BIN) * np.exp(-log_var / 2))
    upper = np.where(x_0 > 1 - HALF_BIN, np.inf, (x_0 - mean + HALF_BIN) * np.exp(-log_var / 2))
    return lower, upper


def log_mass_in_float64(lower, upper):
    mirror = lower + upper > 0
    low, high = np.where(mirror, -upper, lower), np.where(mirror, -lower, upper)
    return log_ndtr(high) + np.log(-np.expm1(log_ndtr(low) - log_ndtr(high)))


def allowed_error(lower, upper, mean, log_var):
    """What float32 inputs and one pass of float32 arithmetic may do to log_mass."""
    std = np.exp(log_var / 2)
    z = np.where(np.isfinite(lower), np.abs(lower), 0) + np.where(np.isfinite(upper), np.abs(upper), 0)
    # z errs by the rounding of exp(-log_var/2) and by that of x_0 - mean, divided by std; the mass follows by
    # at most its logarithmic slope, |z| + 1. A narrow bin is a difference: it loses the digits of its width.
    error_z = z * (np.abs(log_var) / 2 + 4) * ULP + 4 * ULP * np.maximum(1, np.abs(mean)) / std
    return (z + 1) * error_z + 8 * ULP * (1 + std / HALF_BIN)


# The widest of use is 1 (pure noise), the smallest below any beta-tilde; means as a wild network's.
MEANS, STDS = [0.0, 0.1, -0.9987, 0.997, 1.02, -1.3, 5.0, -100.0], [1e-10, 1e-6, 1e-4, 0.0074, 0.05, 0.3, 1.0]


def test_decoder_against_float64_in_every_bin():
    pairs = pairs_of(MEANS, STDS)
    inputs = decoder_inputs(PIXELS, pairs)
    got = np.asarray(decoder(*inputs), np.float64)
    x_0, mean, log_var = in_float64(inputs)
    lower, upper = edges(x_0, mean, log_var)
    expected = log_mass_in_float64(lower, upper)
    check(np.isfinite(got) & (got <= 4 * ULP), pairs)
    # In the far tail the answer itself is z^2/2: its relative digits are what is left to compare.
    tolerance = allowed_error(lower, upper, mean, log_var) + 8 * ULP * np.abs(expected)
    error = np.abs(got - expected)
    check(error <= tolerance, pairs, f"the largest error is {np.max(error / tolerance):.3g} times what is allowed")


def test_the_256_masses_sum_to_1():
    pairs = pairs_of([0.002, 0.1, -0.9987, 0.997, 1.02, -1.3, 5.0], [1e-10, 1e-4, 0.001, 0.0074, 0.05, 0.3, 1.0, 3.0])
    inputs = decoder_inputs(PIXELS, pairs)
    mass = np.exp(np.asarray(decoder(*inputs), np.float64))
    x_0, mean, log_var = in_float64(inputs)
    lower, upper = edges(x_0, mean, log_var)
    # An edge that its two bins round differently leaves a gap or an overlap of its density; besides, each bin
    # errs by its own arithmetic: that of z^2/2, and the digits that a difference over a narrow bin loses.
    near = np.where(lower > 0, lower, np.where(upper < 0, upper, 0))
    std = np.exp(log_var / 2)
    gaps = np.exp(-0.5 * lower[1:] ** 2) * (4 * np.maximum(1, np.abs(mean)) / std + 2 * np.abs(lower))[1:]
    tolerance = ULP * (gaps.sum(0) + np.sum(mass * (near**2 + 8 * (1 + std / HALF_BIN)), 0))
    check(tolerance < 0.01, pairs)
    error = np.abs(mass.sum(0) - 1)
    check(error <= tolerance, pairs, f"the largest error is {np.max(error / tolerance):.3g} times what is allowed")


def test_decoder_gradients_are_right_however_far_out():
    """A network's mean that is far off is pulled back by about z/std: never by 0, infinity or NaN."""
    pairs = pairs_of([0.0, 0.1, 0.9, -1.5, 5.0, 100.0], [1e-10, 1e-5, 1e-3, 0.0074, 0.1, 1.0])
    inputs = decoder_inputs(PIXELS[[0, 1, 100, 254, 255]], pairs)
    gradients = jax.jit(jax.grad(lambda *inputs: decoder(*inputs).sum(), (1, 2)))(*inputs)
    by_mean, by_log_var = in_float64(gradients)
    check(np.isfinite(by_mean) & np.isfinite(by_log_var), pairs)
    x_0, mean, log_var = in_float64(inputs)
    lower, upper = edges(x_0, mean, log_var)
    std = np.exp(log_var / 2)
    near = np.where(lower > 0, lower, np.where(upper < 0, upper, 0))  # 0: the mean is inside the bin
    far_out = np.abs(near) > 20
    # Far out, phi(near)/mass is |near| + 1/|near| - ..., and the other end counts for nothing where the bin
    # is a few |1/near| wide: the slope is near/std, to 1/near^2.
    wide = far_out & (2 * HALF_BIN / std * np.abs(near) > 16)
    assert wide.any() and not far_out.all()
    for gradient, slope in ((by_mean, near / std), (by_log_var, 0.5 * near**2)):
        check(~wide | np.isclose(gradient, slope, rtol=1 / 20**2 + 1e-4, atol=0), pairs)
    # Elsewhere: the difference of two densities over the mass.
    log_mass = log_mass_in_float64(lower, upper)
    with np.errstate(over="ignore", invalid="ignore"):  # far out, where it is not used
        density = [np.exp(-0.5 * z**2 - 0.5 * np.log(2 * np.pi) - log_mass) for z in (lower, upper)]
        expected = (density[0] - density[1]) / std
    scale = (density[0] + density[1]) / std
    tolerance = 4 * allowed_error(lower, upper, mean, log_var) * (scale + 1 / std)
    check(far_out | (np.abs(by_mean - expected) <= tolerance), pairs)


def exact_eps(schedule, mean, std):
    """eps_hat(x_t, t) = E[eps | x_t] for data N(mean, std^2), in float32."""

    def model_fn(x_t, t):
        shape = (-1,) + (1,) * (x_t.ndim - 1)
        bar, noise = (a[t].reshape(shape) for a in (schedule.alphas_bar, schedule.one_minus_alphas_bar))
        return jnp.sqrt(noise) * (x_t - jnp.sqrt(bar) * mean) / (bar * std**2 + noise)

    return model_fn


def closed_form_terms(schedule, mean, std, variance):
    """E[L_t] in nats and sigma_t^2 for t = 1..T-1, for data N(mean, std^2) and the exact network."""
    beta = np.asarray(schedule.betas_float64)[1:]
    bar, prev = schedule.host_alphas_bar[1:], schedule.host_alphas_bar[:-1]
    posterior = beta * (1 - prev) / (1 - bar)
    sigma2 = posterior if variance == "fixed_small" else beta
    ratio = posterior / sigma2
    mse = std**2 * (1 - bar) / (bar * std**2 + 1 - bar)  # E (x_0 - E[x_0 | x_t])^2
    nats = 0.5 * (ratio - 1 - np.log(ratio)) + 0.5 * (beta**2 * prev / (1 - bar) ** 2) * mse / sigma2
    return nats, sigma2


@VARIANCES
def test_kl_terms_of_gaussian_data_equal_their_closed_form(variance):
    """Data N(m, s^2) and the exact network: every E[L_t] is known.

    L_t is a quadratic in (x_0, eps), so its expectation is its mean over the four points m +- s, +-1.
    """
    m, s = 0.2, 0.5
    schedule = make_schedule("linear", num_steps=1000)
    t = jnp.arange(1, 1000)
    x_0 = jnp.tile(jnp.array([[m + s, m + s, m - s, m - s]]), (999, 1))
    eps = jnp.tile(jnp.array([[1.0, -1.0, 1.0, -1.0]]), (999, 1))
    x_t = q_sample(schedule, x_0=x_0, t=t, eps=eps)
    denoise_fn = make_denoiser(Process(schedule), exact_eps(schedule, m, s), x_0_limit=None)
    terms, _ = vlb_term(Process(schedule, variance=variance), denoise_fn, x_0=x_0, x_t=x_t, t=t)

    nats, sigma2 = closed_form_terms(schedule, m, s, variance)
    # Two means of size 1 are subtracted: 4 ulp of error on a difference d that counts as d^2/(2 sigma^2).
    difference = np.sqrt(2 * nats * sigma2)
    tolerance = (8 * ULP * difference + (8 * ULP) ** 2) / sigma2 + 1e-4 * nats + 10 * ULP * np.sqrt(nats)
    assert np.all(np.abs(np.asarray(terms) * np.log(2) - nats) <= tolerance)


@VARIANCES
def test_the_whole_bound_on_gaussian_pixels_is_just_above_their_entropy(variance):
    m, s, T = 0.1, 0.3, 1000
    schedule = make_schedule("linear", num_steps=T)
    draws = np.clip(m + s * np.random.default_rng(0).standard_normal((16, 1024)), -1, 1)
    x_0 = jnp.asarray(np.rint((draws + 1) * 127.5) / 127.5 - 1, jnp.float32)
    denoise_fn = make_denoiser(Process(schedule), exact_eps(schedule, m, s), x_0_limit=None)
    out = jax.jit(
        lambda x_0: bits_per_dim(Process(schedule, variance=variance), denoise_fn, x_0=x_0, key=jax.random.key(0))
    )(x_0)
    entropy = np.log2(s * np.sqrt(2 * np.pi * np.e) * 127.5)
    # A bound on the entropy, up to the scatter of 16,384 pixels: 0.72 bits each, so 0.02 at four deviations.
    assert entropy - 0.02 < float(jnp.mean(out["total"])) < entropy + 1
    # Without the decoder's term (tested by itself), the sum of the closed forms, up to their scatter.
    kls = np.asarray(out["total"] - out["terms"][0], np.float64)
    bar = schedule.host_alphas_bar[-1]
    prior = 0.5 * (-bar - np.log(1 - bar) + bar * (m**2 + s**2))
    expected = (closed_form_terms(schedule, m, s, variance)[0].sum() + prior) / np.log(2)
    assert abs(kls.mean() - expected) < 4 * kls.std(ddof=1) / np.sqrt(len(kls))
    assert kls.std() < 0.02 * expected


def slow_bits_per_dim(betas, model, x_0, noise, variance):
    """Ho et al. 2020, equation 5, step by step in NumPy float64; model(x_t, t) is eps_hat."""
    T, bar = len(betas), np.cumprod(1 - betas)
    terms = []
    for t in range(T):
        prev = bar[t - 1] if t else 1.0
        x_t = np.sqrt(bar[t]) * x_0 + np.sqrt(1 - bar[t]) * noise[t]
        x_0_hat = np.clip((x_t - np.sqrt(1 - bar[t]) * model(x_t, t)) / np.sqrt(bar[t]), -1, 1)
        mean = lambda x: (  # noqa: E731
            np.sqrt(prev) * betas[t] / (1 - bar[t]) * x  # noqa: B023
            + np.sqrt(1 - betas[t]) * (1 - prev) / (1 - bar[t]) * x_t  # noqa: B023
        )
        posterior = lambda t: betas[t] * (1 - bar[t - 1]) / (1 - bar[t])  # noqa: E731
        var = posterior(max(t, 1)) if variance == "fixed_small" or t == 0 else betas[t]
        if t == 0:
            lower, upper = edges(x_0, mean(x_0_hat), np.log(var))
            nats = -log_mass_in_float64(lower, upper)
        else:
            q = posterior(t)
            nats = 0.5 * (q / var - 1 - np.log(q / var) + (mean(x_0) - mean(x_0_hat)) ** 2 / var)
        terms.append(nats.reshape(len(x_0), -1).mean(1) / np.log(2))
    prior = 0.5 * ((1 - bar[-1]) - 1 - np.log(1 - bar[-1]) + bar[-1] * x_0**2)
    return np.array(terms), prior.reshape(len(x_0), -1).mean(1) / np.log(2)


@VARIANCES
def test_bits_per_dim_is_the_slow_loop(variance):
    # Ends at alpha-bar = 0.35: the prior term is no small part of the total.
    schedule = make_schedule("linear", num_steps=60, beta_end=0.002)
    rng, key = np.random.default_rng(0), jax.random.key(3)
    x_0 = rng.integers(0, 256, (3, 4, 2, 3)) / 127.5 - 1
    keys = sample_keys(key, jnp.arange(3))
    noise = [np.asarray(sample_noise(keys, t, x_0.shape[1:]), np.float64) for t in range(60)]
    model = lambda x_t, t: 0.6 * x_t + 0.01 * t  # noqa: E731
    denoise_fn = make_denoiser(Process(schedule), lambda x_t, t: model(x_t, t.reshape(-1, 1, 1, 1)))
    out = jax.jit(
        lambda x: bits_per_dim(Process(schedule, variance=variance), denoise_fn, x_0=x, key=key)
    )(jnp.asarray(x_0, jnp.float32))
    terms, prior = slow_bits_per_dim(np.array(schedule.betas_float64), model, x_0, noise, variance)
    # Means of size 1 err by 4 ulp; over the smallest deviation (0.014 at t=1) and times a |z| of some 10.
    tolerance = dict(rtol=16 * ULP, atol=4 * ULP / 0.014 * 10)
    np.testing.assert_allclose(out["terms"], terms, **tolerance)
    np.testing.assert_allclose(out["prior"], prior, rtol=16 * ULP)
    np.testing.assert_allclose(out["total"], terms.sum(0) + prior, **tolerance)
    assert out["terms"].shape == out["x_0_mse"].shape == out["eps_mse"].shape == (60, 3)


def test_the_reported_errors_are_those_of_the_network():
    """With eps_hat = eps + 0.5 the errors in eps and x_0 are known: 0.25 and 0.25 (1 - abar)/abar."""
    schedule = make_schedule("linear", num_steps=50)
    x_0, key = jnp.full((2, 8), 0.25), jax.random.key(0)

    def model_fn(x_t, t):
        bar = schedule.alphas_bar[t][:, None]
        return (x_t - jnp.sqrt(bar) * x_0) / jnp.sqrt(1 - bar) + 0.5

    out = bits_per_dim(
        Process(schedule, variance="fixed_large"),
        make_denoiser(Process(schedule), model_fn, x_0_limit=None),
        x_0=x_0,
        key=key,
    )
    np.testing.assert_allclose(out["eps_mse"], 0.25, rtol=1e-3)
    bar = schedule.host_alphas_bar[:, None]
    np.testing.assert_allclose(out["x_0_mse"], 0.25 * (1 - bar) / bar * np.ones((1, 2)), rtol=1e-3)


def test_the_prior_of_a_known_case():
    """One step of variance 0.36: q(x_T | x_0) = N(0.8 x_0, 0.36)."""
    schedule = make_schedule("constant", num_steps=1, beta_end=0.36)
    nats = 0.5 * (0.36 - 1 - np.log(0.36) + 0.64 * 0.25)
    got = prior_term(schedule, jnp.full((2, 3, 1), 0.5))
    np.testing.assert_allclose(got, [nats / np.log(2)] * 2, rtol=8 * ULP)


@VARIANCES
@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
def test_the_vlb_loss_summed_over_t_is_the_bound(variance, prediction):
    """T E_t[loss] + prior, with t running through all steps and the noise of bits_per_dim."""
    T, key = 40, jax.random.key(5)
    schedule = make_schedule("linear", num_steps=T)
    model_fn = lambda x_t, t: 0.3 * x_t + 0.1  # noqa: E731
    x_0 = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 5)) / 127.5 - 1, jnp.float32)
    denoise_fn = make_denoiser(Process(schedule, prediction=prediction), model_fn, x_0_limit=None)
    out = bits_per_dim(Process(schedule, variance=variance), denoise_fn, x_0=x_0, key=key)
    loss_fn = make_loss_fn(Process(schedule, prediction=prediction, variance=variance), loss="vlb")
    losses = [
        loss_fn(
            model_fn,
            x_0=x_0,
            t=jnp.full(2, t),
            eps=sample_noise(sample_keys(key, jnp.arange(2)), t, (5,)),
        )["loss"]
        for t in range(T)
    ]
    bound = T * np.mean(losses, axis=0) + out["prior"]
    np.testing.assert_allclose(bound, out["total"], rtol=1e-5)  # the same sums, jitted and not


def test_the_vlb_gradient_is_finite_at_every_step():
    """Both branches of t == 0 are computed: neither may put a NaN into the other's gradient."""
    schedule = make_schedule("cosine", num_steps=4000)
    loss_fn = make_loss_fn(Process(schedule, prediction="x_0"), loss="vlb")
    t = jnp.arange(4000)
    x_0 = jnp.ones((4000, 2))
    for scale in (0.0, 1.0, 1e4):
        f = lambda w: jnp.sum(loss_fn(lambda x_t, t: w * x_t, x_0=x_0, t=t, eps=x_0)["loss"])  # noqa: E731
        assert np.isfinite(jax.grad(f)(jnp.float32(scale)))


def test_terms_of_some_steps_are_those_of_all():
    schedule, key = make_schedule("cosine", num_steps=12), jax.random.key(1)
    x_0 = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 4)) / 127.5 - 1, jnp.float32)
    denoise_fn = make_denoiser(Process(schedule), lambda x_t, t: 0.4 * x_t)
    whole = bits_per_dim(Process(schedule, variance="fixed_small"), denoise_fn, x_0=x_0, key=key)
    # Images 1 and 2 alone, some steps alone: image i's noise depends on the key and i.
    keys = sample_keys(key, jnp.arange(1, 3))
    process = Process(schedule, variance="fixed_small")
    part = vlb_terms(process, denoise_fn, x_0=x_0[1:], keys=keys, steps=jnp.array([0, 7]))
    for name in ("terms", "x_0_mse", "eps_mse"):
        np.testing.assert_allclose(part[name], whole[name][jnp.array([0, 7]), 1:], rtol=4 * ULP)
    # The same noise, given.
    noises = jnp.stack([sample_noise(keys, step, (4,)) for step in (0, 7)])
    given = vlb_terms(process, denoise_fn, x_0=x_0[1:], keys=keys, steps=jnp.array([0, 7]), noises=noises)
    np.testing.assert_allclose(given["terms"], part["terms"], rtol=4 * ULP)
    half = bits_per_dim(process, denoise_fn, x_0=x_0, key=key, noises=jnp.zeros((12, 3, 4)))
    np.testing.assert_array_equal(half["eps_mse"] > 0, True)
    assert np.any(half["total"] != whole["total"])
