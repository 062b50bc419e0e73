"""The likelihood of the probability flow against the closed form of Gaussian data, and its order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.forward_process import signal_and_noise
from ddpm_jax.diffusion.ode_likelihood import bits_of_density, dequantise, ode_bits_per_dim, ode_grid
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.runtime.errors import UserError

MEAN = np.array([0.2, -0.1, 0.05, 0.3])
ROOT = np.array([[0.5, 0.0, 0.0, 0.0], [0.3, 0.2, 0.0, 0.0], [-0.1, 0.1, 0.4, 0.0], [0.2, -0.2, 0.1, 0.05]])
COV = ROOT @ ROOT.T
SHAPE = (2, 2, 1)


def exact_network(schedule, prediction="eps"):
    """The best network for data N(MEAN, COV): eps_hat = n (a^2 COV + n^2)^-1 (x_t - a MEAN), any t."""
    values, vectors = (jnp.asarray(part, jnp.float32) for part in np.linalg.eigh(COV))
    mean = jnp.asarray(MEAN, jnp.float32)

    def model_fn(x_t, t):
        signal, noise = signal_and_noise(schedule, t, 2)
        x = x_t.reshape(-1, 4)
        centred = (x - signal * mean[None]) @ vectors
        gain = noise / (signal**2 * values[None] + noise**2)
        eps = (centred * gain) @ vectors.T
        x_0 = mean[None] + (centred * signal * values[None] / (signal**2 * values[None] + noise**2)) @ vectors.T
        return {"eps": eps, "x_0": x_0, "v": signal * eps - noise * x_0}[prediction].reshape(x_t.shape)

    return make_denoiser(Process(schedule, prediction=prediction), model_fn, x_0_limit=None)


def pictures(num_images):
    draws = np.random.default_rng(0).multivariate_normal(MEAN, COV, num_images)
    x_0 = np.rint((np.clip(draws, -1, 1) + 1) * 127.5) / 127.5 - 1
    return jnp.asarray(x_0.reshape(-1, *SHAPE), jnp.float32)


def closed_form(schedule, y):
    """(bits/dim of the flow, bits/dim of the data with the lowest noise), float64, for the exact network.

    The flow of Gaussian data is linear: along an eigenvector of COV, y - MEAN grows as sqrt(eigenvalue + sigma^2).
    """
    y = np.asarray(y, np.float64).reshape(-1, 4)
    values, vectors = np.linalg.eigh(COV)
    sigma_2 = (schedule.host_one_minus_alphas_bar / schedule.host_alphas_bar)[[0, -1]]
    centred = (y - MEAN) @ vectors
    growth = np.sqrt((values + sigma_2[1]) / (values + sigma_2[0]))
    end = (centred * growth) @ vectors.T + MEAN
    log_normal = lambda x, var: -0.5 * np.sum(x**2 / var + np.log(2 * np.pi * var), axis=-1)  # noqa: E731
    flow = log_normal(end, 1 + sigma_2[1] * np.ones(4)) + np.log(growth).sum()
    data = log_normal(centred, values + sigma_2[0])
    return tuple(-log_p / (4 * np.log(2)) + np.log2(127.5) for log_p in (flow, data))


def measured(schedule, prediction="eps", num_images=6, **settings):
    x_0, keys = pictures(num_images), sample_keys(jax.random.key(1), jnp.arange(num_images))
    denoise_fn = exact_network(schedule, prediction)
    bits = jax.jit(lambda x_0: ode_bits_per_dim(Process(schedule), denoise_fn, x_0=x_0, keys=keys, **settings))(x_0)
    return np.asarray(bits, np.float64), dequantise(x_0, keys)


@pytest.mark.parametrize(
    ("name", "num_steps", "prediction"), [("linear", 1000, "eps"), ("cosine", 1000, "v"), ("cosine", 100, "x_0")]
)
def test_gaussian_data_have_their_closed_form(name, num_steps, prediction):
    schedule = make_schedule(name, num_steps=num_steps)
    bits, y = measured(schedule, prediction, num_ode_steps=100, num_probes=0)
    flow, data = closed_form(schedule, y)
    np.testing.assert_allclose(bits, flow, atol=1e-3)
    # The flow ends in N(0, I), the data nearly there.
    np.testing.assert_allclose(bits, data, atol=2e-3)
    assert flow.std() > 0.1  # there is something to tell apart


def test_a_lowest_noise_that_counts():
    """alpha-bar = 0.6 at t = 0: the picture is y = x_t/sqrt(alpha-bar), and the change of scale is no small part."""
    schedule = make_schedule("constant", num_steps=8, beta_end=0.4)
    bits, y = measured(schedule, num_ode_steps=20, num_probes=0)
    np.testing.assert_allclose(bits, closed_form(schedule, y)[0], atol=1e-3)


def test_a_flow_that_is_not_linear():
    """Data from two normals, +-0.4 with deviation 0.1: the density is known, and paths bend apart."""
    schedule = make_schedule("linear", num_steps=1000)
    centres, std = jnp.array([[-0.4, 0.4]]), 0.1

    def x_0_hat(x_t, t):
        signal, noise = signal_and_noise(schedule, t, 2)
        var = signal**2 * std**2 + noise**2
        weights = jax.nn.softmax(-((x_t - signal * centres) ** 2) / (2 * var), axis=1)
        means = centres + signal * std**2 * (x_t - signal * centres) / var
        return jnp.sum(weights * means, axis=1, keepdims=True)

    denoise_fn = make_denoiser(Process(schedule, prediction="x_0"), x_0_hat, x_0_limit=None)
    x_0 = jnp.linspace(-0.7, 0.7, 40)[:, None]
    keys = sample_keys(jax.random.key(1), jnp.arange(40))
    flow = jax.jit(
        lambda x_0, n: ode_bits_per_dim(
            Process(schedule), denoise_fn, x_0=x_0, keys=keys, num_ode_steps=n, num_probes=0
        ),
        static_argnums=1,
    )
    coarse, middle, fine = (np.asarray(flow(x_0, n), np.float64) for n in (12, 24, 96))
    y = np.asarray(dequantise(x_0, keys), np.float64)
    var = std**2 + schedule.host_one_minus_alphas_bar[0] / schedule.host_alphas_bar[0]
    density = np.mean(np.exp(-((y - np.array([-0.4, 0.4])) ** 2) / (2 * var)), axis=1) / np.sqrt(2 * np.pi * var)
    np.testing.assert_allclose(fine, -np.log2(density / 127.5), atol=2e-3)
    order = np.log2(np.linalg.norm(coarse - fine) / np.linalg.norm(middle - fine))
    assert 3.4 < order < 5, order


def test_the_order_is_4():
    schedule = make_schedule("linear", num_steps=1000)
    errors = []
    for num_ode_steps in (12, 24, 48):
        bits, y = measured(schedule, num_ode_steps=num_ode_steps, num_probes=0)
        errors.append(np.abs(bits - closed_form(schedule, y)[0]).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all((orders > 3.5) & (orders < 4.5)), (orders, errors)


def test_hutchinson_is_unbiased_and_falls_as_the_root_of_the_probes():
    schedule = make_schedule("linear", num_steps=50)
    settings = {"num_images": 64, "num_ode_steps": 6}
    exact, _ = measured(schedule, num_probes=0, **settings)
    one, many = (measured(schedule, num_probes=n, **settings)[0] - exact for n in (1, 16))
    assert one.std() > 1e-3  # COV is not diagonal: the probes matter
    assert abs(many.mean()) < 4 * many.std(ddof=1) / 8
    assert 2 < one.std() / many.std() < 8  # 4 for 16 times the probes


@pytest.mark.parametrize("num_probes", [0, 2])
def test_a_picture_has_its_number_whatever_the_batch(num_probes):
    schedule = make_schedule("linear", num_steps=50)
    denoise_fn, x_0 = exact_network(schedule), pictures(3)
    keys = sample_keys(jax.random.key(1), jnp.arange(3))
    settings = {"num_ode_steps": 4, "num_probes": num_probes}
    whole = ode_bits_per_dim(Process(schedule), denoise_fn, x_0=x_0, keys=keys, **settings)
    alone = ode_bits_per_dim(Process(schedule), denoise_fn, x_0=x_0[1:2], keys=keys[1:2], **settings)
    np.testing.assert_allclose(alone, whole[1:2], rtol=1e-5)
    assert abs(float(whole[0] - whole[1])) > 1e-2


def test_dequantised_pixels_fill_their_bins():
    x_0 = jnp.full((4, 500), 1.0)
    y = np.asarray(dequantise(x_0, sample_keys(jax.random.key(0), jnp.arange(4))))
    assert 1 - 1 / 255 <= y.min() < 1 - 0.9 / 255 and 1 + 0.9 / 255 < y.max() <= 1 + 1 / 255 + 1e-7
    assert abs(y.mean() - 1) < 4 * (2 / 255) / np.sqrt(12 * y.size)


def test_even_pixels_cost_8_bits():
    """The density that is even over the 256 bins, each 2/255 wide."""
    log_density = jnp.full((1,), 3 * np.log(255 / 512))
    assert float(bits_of_density(log_density, 3)[0]) == pytest.approx(8, abs=1e-5)


def test_the_grid_runs_from_the_lowest_to_the_highest_noise():
    schedule = make_schedule("cosine", num_steps=100)
    t = ode_grid(schedule, 7)
    assert t[0] == 0 and t[-1] == 99 and len(t) == 15 and np.all(np.diff(t) > 0)
    level = np.interp(t, np.arange(100), 0.5 * np.log(schedule.host_alphas_bar / schedule.host_one_minus_alphas_bar))
    np.testing.assert_allclose(np.diff(level), np.diff(level)[0], rtol=1e-6)
    # Where the last alpha-bar is 0, the step before is the last of the flow.
    assert ode_grid(make_schedule("linear", num_steps=100, zero_terminal_snr=True), 7)[-1] == 98


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_ode_steps": 0}, "ode_steps must be at least 1; got 0"),
     ({"num_probes": -1}, "ode_probes must be at least 0 (exact); got -1")],
)  # fmt: skip
def test_what_does_not_fit(settings, message):
    schedule = make_schedule("linear", num_steps=50)
    keys = sample_keys(jax.random.key(1), jnp.arange(1))
    with pytest.raises(UserError) as error:
        ode_bits_per_dim(Process(schedule), exact_network(schedule), x_0=pictures(1), keys=keys, **settings)
    assert message in str(error.value)
