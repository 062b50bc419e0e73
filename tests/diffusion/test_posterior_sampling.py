"""DPS: on Gaussian data every step is affine, and known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.edits import average_measurement, channel_measurement, pixel_measurement, posterior_sampling
from ddpm_jax.diffusion.exact import exact_model_fn, make_mixture
from ddpm_jax.diffusion.guidance import classifier_free_guidance, make_guidance
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys
from ddpm_jax.diffusion.samplers import ancestral_table, ddim_table, dpmpp_table, sample_loop
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.runtime.errors import UserError

T, SHAPE, NUM, D = 60, (2, 2, 3), 5, 12
PROCESS = Process(make_schedule("cosine", num_steps=T), variance="fixed_small")
STEPS = spaced_steps(T, 10)
ABAR = PROCESS.schedule.host_alphas_bar
RNG = np.random.default_rng(0)
FACTOR = RNG.standard_normal((D, D)) / 6
COVARIANCE, MEAN = FACTOR @ FACTOR.T + 0.01 * np.eye(D), RNG.uniform(-0.4, 0.4, D)
LAW = make_mixture(MEAN.reshape(1, *SHAPE), covariances=COVARIANCE[None])
MODEL_FN = exact_model_fn(PROCESS, LAW)
FREE = make_denoiser(PROCESS, MODEL_FN, x_0_limit=None)
X_T = jnp.asarray(RNG.standard_normal((NUM, *SHAPE)), jnp.float32)
NOISES = jnp.asarray(RNG.standard_normal((len(STEPS), NUM, *SHAPE)), jnp.float32)
KEYS = sample_keys(jax.random.key(0), jnp.arange(NUM))
X_0 = jnp.asarray(LAW.sample(RNG, NUM)[0].reshape(NUM, *SHAPE), jnp.float32)
MEASUREMENTS = {
    "pixels": pixel_measurement(np.array([[1, 0], [0, 1]], bool)[..., None]),
    "averages": average_measurement(2),
    "channels": channel_measurement(np.array([[0.299, 0.587, 0.114]])),
}
TABLES = {
    "ancestral": ancestral_table(PROCESS, steps=STEPS),
    "ddim": ddim_table(PROCESS.schedule, steps=STEPS),
    "dpmpp_2m": dpmpp_table(PROCESS.schedule, steps=STEPS, order=2),
}


@jax.jit
def free(table, x_t):
    return sample_loop(FREE, table, x_t, KEYS, noises=NOISES)


@functools.cache
def denoised_of(name):
    """(x_t, t, y, zeta) -> Denoised, compiled once."""
    one = MEASUREMENTS[name]
    return jax.jit(
        lambda x_t, t, y, zeta: posterior_sampling(FREE, one.measure, y, zeta=zeta)(x_t, jnp.full(len(x_t), t))
    )


@functools.cache
def dps(name):
    one = MEASUREMENTS[name]

    @jax.jit
    def draw(table, x_t, y, zeta, noises=NOISES):
        denoise_fn = posterior_sampling(FREE, one.measure, y, zeta=zeta)
        return sample_loop(denoise_fn, table, x_t, KEYS[: len(x_t)], noises=noises)

    return draw


def matrix_of(name):
    """A, [M, D], float64."""
    units = MEASUREMENTS[name].measure(jnp.eye(D).reshape(D, *SHAPE))
    return np.asarray(units, np.float64).reshape(D, -1).T


def gain(t):
    """K of x_0_hat = m + K (x_t - a m)."""
    return np.sqrt(ABAR[t]) * COVARIANCE @ np.linalg.inv(ABAR[t] * COVARIANCE + (1 - ABAR[t]) * np.eye(D))


def x_0_by_hand(x, t):
    return MEAN + (x - np.sqrt(ABAR[t]) * MEAN) @ gain(t).T


def shift_by_hand(x, t, matrix, y, zeta):
    """-zeta / |r| grad |r|^2, with r = y - A (m + K (x - a m)), so that the gradient is -2 K^T A^T r."""
    residual = y - x_0_by_hand(x, t) @ matrix.T
    return 2 * zeta / np.linalg.norm(residual, axis=1, keepdims=True) * residual @ matrix @ gain(t)


def of_samples(array):
    return np.asarray(array, np.float64).reshape(NUM, -1)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_the_whole_sampler_is_the_loop(name):
    """Algorithm 1 in float64."""
    matrix, y, zeta = matrix_of(name), MEASUREMENTS[name].measure(X_0), 0.4
    x = of_samples(X_T)
    for t, s, z in zip(STEPS, [*STEPS[1:], -1], NOISES, strict=True):
        a, b = ABAR[t], ABAR[s] if s >= 0 else 1.0
        beta = 1 - a / b
        mean = np.sqrt(b) * beta / (1 - a) * x_0_by_hand(x, t) + np.sqrt(1 - beta) * (1 - b) / (1 - a) * x
        drawn = mean + np.sqrt(beta * (1 - b) / (1 - a)) * of_samples(z)
        x = drawn + shift_by_hand(x, t, matrix, of_samples(y), zeta)
    got = dps(name)(TABLES["ancestral"], X_T, y, jnp.float32(zeta))
    # x_0_hat of float32 at the first step, from eps: 1/sqrt(alpha-bar) = 60 times 6e-8 of values up to 3.
    np.testing.assert_allclose(of_samples(got), x, atol=5e-5)
    assert np.abs(of_samples(free(TABLES["ancestral"], X_T)) - x).max() > 0.1


@pytest.mark.parametrize("name", MEASUREMENTS)
@pytest.mark.parametrize("t", [3, 30, 50])
def test_the_shift_is_that_of_finite_differences(name, t):
    """Central differences of |y - A x_0_hat(x)|^2, a square form in x, in float64: exact but for rounding."""
    matrix, y, zeta, step = matrix_of(name), of_samples(MEASUREMENTS[name].measure(X_0)), 0.7, 1e-4
    misfit = lambda x: np.sum((y - x_0_by_hand(x, t) @ matrix.T) ** 2, axis=1)  # noqa: E731
    x, units = of_samples(X_T), step * np.eye(D)
    gradient = np.stack([(misfit(x + unit) - misfit(x - unit)) / (2 * step) for unit in units], axis=1)
    wanted = -zeta / np.sqrt(misfit(x))[:, None] * gradient
    got = denoised_of(name)(X_T, t, MEASUREMENTS[name].measure(X_0), zeta)
    np.testing.assert_allclose(of_samples(got.x_s_shift), wanted, atol=2e-5)
    np.testing.assert_allclose(shift_by_hand(x, t, matrix, y, zeta), wanted, atol=1e-8)


@pytest.mark.parametrize("sampler", TABLES)
def test_zeta_0_is_no_measurement_and_more_fits_better(sampler):
    name, table = "averages", TABLES[sampler]
    draw, y = dps(name), MEASUREMENTS[name].measure(X_0)
    unconditional = free(table, X_T)
    # Another program: a few roundings of values up to 3.
    np.testing.assert_allclose(draw(table, X_T, y, jnp.float32(0)), unconditional, atol=2e-6)
    programs = draw._cache_size()
    misfits = [
        float(jnp.mean((MEASUREMENTS[name].measure(samples) - y) ** 2))
        for samples in (unconditional, *(draw(table, X_T, y, jnp.float32(zeta)) for zeta in (0.1, 0.5)))
    ]
    assert misfits[2] < 0.5 * misfits[1] < 0.5 * misfits[0]
    assert draw._cache_size() == programs


def test_zeta_0_bit_for_bit():
    """Operation by operation, where no compiler fuses: the same x_0_hat, and nothing added to x_s."""
    one = MEASUREMENTS["averages"]
    guided = posterior_sampling(FREE, one.measure, one.measure(X_0), zeta=jnp.float32(0))
    for t in (3, 55):
        got, free_of_y = guided(X_T, jnp.full(NUM, t)), FREE(X_T, jnp.full(NUM, t))
        np.testing.assert_array_equal(got.x_0_hat, free_of_y.x_0_hat)
        np.testing.assert_array_equal(got.x_s_shift, jnp.zeros_like(X_T))


def test_samples_do_not_mix_and_zeta_is_of_each():
    draw, y = dps("channels"), MEASUREMENTS["channels"].measure(X_0)
    zetas = jnp.linspace(0, 0.8, NUM)
    whole = draw(TABLES["ancestral"], X_T, y, zetas)
    for i in (0, 3):
        one = slice(i, i + 1)
        alone = draw(TABLES["ancestral"], X_T[one], y[one], zetas[i], NOISES[:, one])
        np.testing.assert_allclose(alone[0], whole[i], atol=1e-5)  # the rounding of 60 x at the first step
    # One y for all.
    shared = draw(TABLES["ancestral"], X_T, y[2], zetas)
    np.testing.assert_allclose(shared[2], whole[2], atol=1e-5)


def test_a_measurement_that_fits_already():
    """|y - A x_0_hat| = 0 has no direction: nothing is added, and no NaN."""
    said = jnp.full((NUM, *SHAPE), 0.25)
    denoise_fn = make_denoiser(Process(PROCESS.schedule, "x_0"), lambda x_t, t: said + 0 * x_t)
    y = jnp.full((NUM, 1, 1, 3), 0.25).at[1].set(0.5)
    got = posterior_sampling(denoise_fn, MEASUREMENTS["averages"].measure, y)(X_T, jnp.full(NUM, 9))
    np.testing.assert_array_equal(got.x_s_shift, jnp.zeros_like(X_T))
    network = make_denoiser(Process(PROCESS.schedule, "x_0"), lambda x_t, t: 0.5 * x_t)
    y = MEASUREMENTS["averages"].measure(network(X_T, jnp.full(NUM, 9)).x_0_hat).at[1].add(0.5)
    shift = posterior_sampling(network, MEASUREMENTS["averages"].measure, y)(X_T, jnp.full(NUM, 9)).x_s_shift
    assert np.all(np.isfinite(shift)) and np.all(shift[1] != 0)
    np.testing.assert_array_equal(shift[2:], jnp.zeros_like(X_T[2:]))


def test_one_call_of_the_network():
    calls = []

    def model_fn(x_t, t):
        calls.append(t)
        return MODEL_FN(x_t, t)

    denoise_fn = make_denoiser(PROCESS, model_fn)
    jax.make_jaxpr(posterior_sampling(denoise_fn, lambda x: x, X_0))(X_T, jnp.full(NUM, 9))
    assert len(calls) == 1


def test_x_0_hat_is_that_of_the_denoiser_guided_and_limited():
    """Two predictions 0.5 x and 0.2 x at scale 3: x_0_hat = 1.1 x, limited; the gradient of |y - x_0_hat|^2 by hand."""
    process = Process(PROCESS.schedule, "x_0")
    model_fn = lambda x_t, t, condition: (0.2 + 0.3 * condition["told"][:, None, None, None]) * x_t  # noqa: E731
    guide = classifier_free_guidance(process, make_guidance({"told": jnp.zeros(NUM)}, scale=3.0))
    denoise_fn = make_denoiser(process, model_fn, condition={"told": jnp.ones(NUM)}, guide=guide)
    got = posterior_sampling(denoise_fn, lambda x: x, X_0, zeta=0.5)(X_T, jnp.full(NUM, 9))
    x_0_hat = np.clip(1.1 * of_samples(X_T), -1, 1)
    np.testing.assert_allclose(of_samples(got.x_0_hat), x_0_hat, atol=1e-6)
    residual = of_samples(X_0) - x_0_hat
    inside = np.abs(1.1 * of_samples(X_T)) < 1
    wanted = 0.5 / np.linalg.norm(residual, axis=1, keepdims=True) * 2 * 1.1 * np.where(inside, residual, 0)
    np.testing.assert_allclose(of_samples(got.x_s_shift), wanted, atol=1e-6)
    assert 0.2 < inside.mean() < 0.8


def test_two_measurements_add():
    ys = {name: MEASUREMENTS[name].measure(X_0) for name in ("averages", "channels")}
    alone = [denoised_of(name)(X_T, 20, ys[name], 0.5) for name in ys]
    both = FREE
    for name in ys:
        both = posterior_sampling(both, MEASUREMENTS[name].measure, ys[name])
    wanted = sum(one.x_s_shift for one in alone)
    np.testing.assert_allclose(jax.jit(both)(X_T, jnp.full(NUM, 20)).x_s_shift, wanted, atol=1e-6)


def test_a_measurement_that_is_not_linear():
    """y = |x_0|, of which the sign is unknown."""
    y, zeta = jnp.abs(X_0), 0.3
    got = jax.jit(posterior_sampling(FREE, jnp.abs, y, zeta=zeta))(X_T, jnp.full(NUM, 20)).x_s_shift
    x_0_hat = x_0_by_hand(of_samples(X_T), 20)
    residual = of_samples(y) - np.abs(x_0_hat)
    rate = 2 * zeta / np.linalg.norm(residual, axis=1, keepdims=True)
    np.testing.assert_allclose(of_samples(got), rate * (residual * np.sign(x_0_hat)) @ gain(20), atol=1e-5)


def test_self_conditioning_carries_its_estimate():
    """The network sees the estimate of the row before, and the gradient takes it as given."""
    process = Process(PROCESS.schedule, "x_0")
    model_fn = lambda both, t: 0.5 * both[..., :3] + 0.25 * both[..., 3:]  # noqa: E731
    denoise_fn = make_denoiser(process, model_fn, self_conditioning=True, x_0_limit=None, x_0_prev_limit=None)
    guided = posterior_sampling(denoise_fn, lambda x: x, X_0)
    np.testing.assert_allclose(guided(X_T, jnp.full(NUM, 9), X_0).carry, 0.5 * X_T + 0.25 * X_0, atol=1e-6)
    walk = lambda denoise_fn: sample_loop(  # noqa: E731
        denoise_fn, TABLES["ancestral"], X_T, KEYS, noises=NOISES, self_conditioning=True
    )
    assert np.abs(walk(guided) - walk(denoise_fn)).max() > 0.1


def test_what_is_refused():
    measure = MEASUREMENTS["averages"].measure
    with pytest.raises(UserError, match="y must be floats"):
        posterior_sampling(FREE, measure, np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(UserError, match="y must be finite"):
        posterior_sampling(FREE, measure, np.full((1, 1, 3), np.nan, np.float32))
    for zeta in (-1.0, np.nan, np.inf):
        with pytest.raises(UserError, match="zeta must be finite and at least 0"):
            posterior_sampling(FREE, measure, np.zeros((1, 1, 3), np.float32), zeta=zeta)
    with pytest.raises(UserError, match="y must have the shape"):
        posterior_sampling(FREE, measure, X_0)(X_T, jnp.full(NUM, 9))
