"""Mixtures whose score is known: each closed form against another way to the same number, in float64 on the host."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.exact import (
    blur,
    downsample,
    exact_class_log_probs_fn,
    exact_model_fn,
    greyscale,
    make_empirical,
    make_mixture,
    observation_matrix,
)
from ddpm_jax.diffusion.exact.exact_model import exact_posterior
from ddpm_jax.diffusion.parameterisations import PREDICTIONS
from ddpm_jax.diffusion.process import LEARNED_VARIANCES, Process
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.runtime.errors import UserError

RNG = np.random.default_rng(0)
ROOTS = 0.3 * RNG.standard_normal((4, 2, 2))
# Two components of class 0, one of each of the others.
LAW = make_mixture(
    np.array([[0.7, 0.1], [-0.5, 0.6], [-0.2, -0.6], [0.4, -0.4]]),
    covariances=ROOTS @ ROOTS.transpose(0, 2, 1) + 0.01 * np.eye(2),
    weights=np.array([4.0, 1.0, 3.0, 2.0]),
    classes=np.array([0, 1, 0, 2]),
)
DIAGONAL = make_mixture(LAW.means, std=np.array([0.3, 0.1, 0.2, 0.4]), weights=LAW.weights, classes=LAW.classes)
POINTS = make_empirical(LAW.means, LAW.classes)
ALIKE = make_mixture(np.zeros((2, 2)), std=1.0)  # two classes that nothing tells apart
PROCESS = Process(make_schedule("cosine", num_steps=50))
X_T = RNG.standard_normal((6, 2))
LEVELS = [(0.99, 0.14), (0.6, 0.8), (0.05, 0.9987)]

SIDE = np.linspace(-6, 6, 601)
GRID = np.stack(np.meshgrid(SIDE, SIDE, indexing="ij"), axis=-1).reshape(-1, 2)
CELL = (SIDE[1] - SIDE[0]) ** 2


def moments_on_grid(log_density):
    """Mean and covariance of a density on the grid, which need not be normalised."""
    p = np.exp(log_density - log_density.max())
    p /= p.sum()
    mean = p @ GRID
    return mean, ((GRID - mean) * p[:, None]).T @ (GRID - mean)


def derivatives(log_p, x, step=1e-4):
    """Gradient and second derivatives [B, D], by central differences."""
    first, second = np.empty_like(x), np.empty_like(x)
    for d in range(x.shape[1]):
        ahead, back = (log_p(x + sign * step * np.eye(x.shape[1])[d]) for sign in (1, -1))
        first[:, d], second[:, d] = (ahead - back) / (2 * step), (ahead - 2 * log_p(x) + back) / step**2
    return first, second


def test_the_density_is_normalised_and_has_the_moments():
    log_p = LAW.log_prob(GRID)
    assert np.exp(log_p).sum() * CELL == pytest.approx(1, abs=1e-6)
    for got, wanted in zip(moments_on_grid(log_p), LAW.moments(), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    log_by_class = LAW.class_log_probs(GRID[::997])
    np.testing.assert_allclose(np.exp(log_by_class).sum(1), 1)
    # p(class) p(x | class) = p(x) p(class | x)
    for label, p_class in enumerate((0.7, 0.1, 0.2)):
        of_class = LAW.given_class(label).log_prob(GRID[::997]) + math.log(p_class)
        np.testing.assert_allclose(of_class - LAW.log_prob(GRID[::997]), log_by_class[:, label], atol=1e-9)


@pytest.mark.parametrize("law", [LAW, DIAGONAL])
def test_samples_have_the_moments_and_the_classes(law):
    num = 40_000
    x_0, classes = law.sample(np.random.default_rng(1), num)
    mean, covariance = law.moments()
    error = np.sqrt(np.diag(covariance) / num)
    assert np.all(np.abs(x_0.mean(0) - mean) < 5 * error)
    # The standard error of a covariance of bounded kurtosis is at most a few times its size over sqrt(num).
    np.testing.assert_allclose(np.cov(x_0.T), covariance, atol=5 * 2 * np.diag(covariance).max() / math.sqrt(num))
    np.testing.assert_allclose(np.bincount(classes) / num, [0.7, 0.1, 0.2], atol=5 * 0.5 / math.sqrt(num))
    # Each component alone: a covariance turned the wrong way keeps the moments of a whole that is round.
    one = law.given_class(2)
    np.testing.assert_allclose(
        np.cov(one.sample(np.random.default_rng(2), num)[0].T), one.covariances()[0],
        atol=5 * 2 * np.diag(one.covariances()[0]).max() / math.sqrt(num),
    )  # fmt: skip


@pytest.mark.parametrize(("signal", "noise"), LEVELS)
@pytest.mark.parametrize("law", [LAW, DIAGONAL, POINTS])
def test_the_posterior_is_that_of_tweedie(law, signal, noise):
    """E[eps] = -n grad log p, E[x_0] = (x + n^2 grad log p)/a, Var[x_0] = n^2/a^2 (1 + n^2 second derivative)."""
    score, second = derivatives(lambda x: law.log_prob(x, signal=signal, noise=noise), X_T)
    known = exact_posterior(law, jnp.asarray(X_T, jnp.float32), signal=jnp.full(6, signal), noise=jnp.full(6, noise))
    size = 1 / signal  # Tweedie's x_0 loses digits where the signal is small; of the second differences 1e-8/step^2
    np.testing.assert_allclose(known.eps_hat, -noise * score, atol=2e-5)
    np.testing.assert_allclose(known.x_0_hat, (X_T + noise**2 * score) / signal, atol=2e-5 * size)
    np.testing.assert_allclose(
        known.var, (noise / signal) ** 2 * (1 + noise**2 * second), atol=3e-5 * (noise / signal) ** 2 + 3e-6
    )
    np.testing.assert_allclose(
        known.log_r, law.log_joint(X_T, signal=signal, noise=noise)
        - law.log_prob(X_T, signal=signal, noise=noise)[:, None], atol=1e-4, rtol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_parameterisation_says_the_same_x_0(prediction):
    process = Process(PROCESS.schedule, prediction)
    model_fn = exact_model_fn(process, LAW)
    x_t, condition = jnp.asarray(X_T, jnp.float32), {"label": jnp.array([0, 1, 2, 3, 3, 0])}
    for t in (2, 25, 45):
        steps = jnp.full(6, t)
        predicted = process.predict(lambda x_t, t: model_fn(x_t, t, condition), x_t, steps)
        got = process.x_0_hat(predicted.value, x_t=x_t, t=steps)
        a, n = (level[:1, 0] for level in process.levels(steps[:1], ndim=2))
        for i, label in enumerate((0, 1, 2, 3, 3, 0)):
            law = LAW if label == 3 else LAW.given_class(label)
            wanted = exact_posterior(law, x_t[i : i + 1], signal=a, noise=n).x_0_hat[0]
            np.testing.assert_allclose(got[i], wanted, atol=2e-6 / a[0] ** 2)


def test_a_label_beyond_those_of_the_law_is_nan():
    x_t = jnp.zeros((1, 2))
    assert np.all(np.isnan(exact_model_fn(PROCESS, LAW)(x_t, jnp.array([3]), {"label": jnp.array([4])})))


@pytest.mark.parametrize("variance", LEARNED_VARIANCES)
@pytest.mark.parametrize("t", [0, 1, 20, 49])
def test_the_learned_variance_is_that_of_the_step(variance, t):
    """Var[x_(t-1) | x_t] by summing q(x_t | x_(t-1)) q(x_(t-1)) over a fine line."""
    law = make_mixture(np.array([[-0.6], [0.5]]), std=np.array([0.1, 0.3]), weights=np.array([0.3, 0.7]))
    process = Process(make_schedule("linear", num_steps=50), variance=variance)
    schedule = process.schedule
    line = np.linspace(-6, 6, 200_001)[:, None]
    a, n = (
        (1.0, 0.0) if t == 0 else np.sqrt([schedule.host_alphas_bar[t - 1], schedule.host_one_minus_alphas_bar[t - 1]])
    )
    beta, x_t = np.asarray(schedule.betas_float64)[t], 0.3
    log_p = law.log_prob(line, signal=a, noise=n) - (x_t - math.sqrt(1 - beta) * line[:, 0]) ** 2 / (2 * beta)
    p = np.exp(log_p - log_p.max())
    mean = np.sum(p * line[:, 0]) / p.sum()
    wanted = np.sum(p * (line[:, 0] - mean) ** 2) / p.sum()
    predicted = process.predict(exact_model_fn(process, law), jnp.full((1, 1), x_t), jnp.array([t]))
    got = process.log_var(jnp.array([t]), ndim=2, var_values=predicted.var_values)
    assert float(got[0, 0]) == pytest.approx(math.log(wanted), abs=2e-3)


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
def test_between_two_steps_no_variance_is_learned(prediction):
    process = Process(PROCESS.schedule, prediction, variance="learned_range")
    predicted = process.predict(exact_model_fn(process, LAW), jnp.asarray(X_T, jnp.float32), jnp.full(6, 2.5))
    np.testing.assert_array_equal(predicted.var_values, 0)
    a, n = process.levels(jnp.full(6, 2.5), ndim=2)
    wanted = exact_posterior(LAW, jnp.asarray(X_T, jnp.float32), signal=a, noise=n).x_0_hat
    got = process.x_0_hat(predicted.value, x_t=jnp.asarray(X_T, jnp.float32), t=jnp.full(6, 2.5))
    np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_the_classifier_of_noised_data():
    fn = jax.jit(exact_class_log_probs_fn(PROCESS, LAW))
    for t in (3, 30):
        a, n = (float(level[0, 0]) for level in PROCESS.levels(jnp.array([t]), ndim=2))
        got = fn(jnp.asarray(X_T, jnp.float32), jnp.full(6, t))
        np.testing.assert_allclose(got, LAW.class_log_probs(X_T, signal=a, noise=n), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("noise_std", [0.0, 0.2])
def test_an_observation_makes_the_law_of_bayes(noise_std):
    """Mean and covariance of p(x | y) on the grid; without noise on the line that the observation leaves."""
    matrix, values = np.array([[0.6, -0.8]]), np.array([0.25])
    given = LAW.given_observation(matrix, values, noise_std=noise_std)
    mean, covariance = given.moments()
    if noise_std:
        log_p = LAW.log_prob(GRID) - (GRID @ matrix[0] - values[0]) ** 2 / (2 * noise_std**2)
        wanted_mean, wanted_covariance = moments_on_grid(log_p)
    else:
        along = np.linspace(-8, 8, 8001)
        line = values[0] * matrix[0] + along[:, None] * np.array([0.8, 0.6])
        p = np.exp(LAW.log_prob(line))
        p /= p.sum()
        wanted_mean = p @ line
        wanted_covariance = ((line - wanted_mean) * p[:, None]).T @ (line - wanted_mean)
    np.testing.assert_allclose(mean, wanted_mean, atol=1e-7)
    np.testing.assert_allclose(covariance, wanted_covariance, atol=1e-7)


def test_two_observations_in_a_row_are_one():
    matrix, values = RNG.standard_normal((2, 2)), np.array([0.3, -0.4])
    at_once = LAW.given_observation(matrix, values, noise_std=0.3)
    in_a_row = LAW
    for i, row in enumerate(matrix):
        in_a_row = in_a_row.given_observation(row[None], values[i : i + 1], noise_std=0.3)
    np.testing.assert_allclose(at_once.weights, in_a_row.weights, atol=1e-12)
    np.testing.assert_allclose(at_once.means, in_a_row.means, atol=1e-12)
    np.testing.assert_allclose(at_once.covariances(), in_a_row.covariances(), atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_sharpened_samples_have_the_moments_of_the_sharpened_density(scale):
    num = 20_000
    got, classes = LAW.sample_sharpened(np.random.default_rng(3), num, label=0, scale=scale)
    mean, covariance = moments_on_grid(LAW.log_prob(GRID) + scale * LAW.class_log_probs(GRID)[:, 0])
    assert got.shape == (num, 2) and (scale < 1) == bool(np.any(classes != 0))
    assert np.all(np.abs(got.mean(0) - mean) < 5 * np.sqrt(np.diag(covariance) / num))
    np.testing.assert_allclose(np.cov(got.T), covariance, atol=5 * 2 * np.diag(covariance).max() / math.sqrt(num))


def test_images_keep_their_shape():
    law = make_mixture(RNG.standard_normal((3, 4, 4, 3)), std=0.5)
    x_0, _ = law.sample(np.random.default_rng(4), 5)
    assert x_0.shape == (5, 4, 4, 3)
    assert exact_model_fn(PROCESS, law)(jnp.asarray(x_0, jnp.float32), jnp.full(5, 9)).shape == (5, 4, 4, 3)
    low = observation_matrix(lambda image: downsample(image, 2), (4, 4, 3))
    given = law.given_observation(low, downsample(x_0[0], 2))
    drawn, _ = given.sample(np.random.default_rng(5), 3)
    for one in drawn:
        np.testing.assert_allclose(downsample(one, 2), downsample(x_0[0], 2), atol=1e-7)


def test_the_observations():
    image = RNG.standard_normal((4, 4, 3))
    assert downsample(image, 2)[1, 0, 2] == pytest.approx(image[2:, :2, 2].mean())
    assert greyscale(image)[3, 1, 0] == pytest.approx(image[3, 1].mean())
    np.testing.assert_allclose(blur(np.ones((4, 4, 1)), 1.3), 1)
    np.testing.assert_allclose(blur(image, 0.01), image)
    unit = np.zeros((5, 5, 1))
    unit[2, 2] = 1
    weights = np.exp(-0.5 * np.array([4, 1, 0, 1, 4.0]) / 0.7**2)
    assert blur(unit, 0.7)[2, 2, 0] == pytest.approx(1 / weights.sum() ** 2)
    for observe in (lambda x: downsample(x, 2), greyscale, lambda x: blur(x, 0.8), lambda x: x[:2]):
        matrix = observation_matrix(observe, image.shape)
        np.testing.assert_allclose(matrix @ image.reshape(-1), observe(image).reshape(-1), atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_mixture(np.zeros(3), std=1.0), r"means must be finite and \[K, \*shape\]; got shape \[3\]"),
        (lambda: make_mixture(np.full((2, 2), np.nan), std=1.0), "means must be finite"),
        (lambda: make_mixture(np.zeros((2, 2))), "either std or covariances"),
        (lambda: make_mixture(np.zeros((2, 2)), std=np.ones(3)), r"std must be .*\[2\] or \[2, 2\]; got .*\[3\]"),
        (lambda: make_mixture(np.zeros((2, 2)), std=-1.0), "std must be finite and at least 0"),
        (lambda: make_mixture(np.zeros((1, 2)), covariances=np.eye(2)), r"covariances must be \[1, 2, 2\]; got"),
        (lambda: make_mixture(np.zeros((1, 2)), covariances=-np.eye(2)[None]), "no negative eigenvalue; got -1"),
        (lambda: make_mixture(np.zeros((2, 2)), std=1.0, weights=np.zeros(2)), r"weights must be \[2\]"),
        (lambda: make_mixture(np.zeros((2, 2)), std=1.0, classes=np.array([0.0, 1.0])), r"classes must be \[2\] whole"),
        (lambda: LAW.given_class(3), r"label must be a class with a component, of \[0, 1, 2\]; got 3"),
        (lambda: LAW.given_observation(np.eye(2), np.zeros(1)), r"matrix must be \[1, 2\].*got \[2, 2\]"),
        (lambda: POINTS.given_observation(np.eye(2)[:1], np.zeros(1)), "noise_std must be above 0"),
        (lambda: POINTS.log_prob(X_T), "points without noise have no density"),
        (lambda: LAW.sample_sharpened(RNG, 5, label=0, scale=-1.0), "scale must be finite and at least 0; got -1"),
        (lambda: ALIKE.sample_sharpened(RNG, 5, label=1, scale=40.0), "fewer than one of 1000 proposals is accepted"),
        (lambda: observation_matrix(lambda x: x**2, (2,)), "observe must be linear"),
        (lambda: downsample(np.zeros((4, 4, 1)), 3), "factor must divide 4 and 4; got 3"),
        (lambda: blur(np.zeros((4, 4, 1)), 0.0), "std must be above 0; got 0"),
    ],
)  # fmt: skip
def test_errors_say_what_is_allowed(make, message):
    with pytest.raises(UserError, match=message):
        make()
