"""Gaussian blur: closed forms, and SciPy's filter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from ddpm_jax.diffusion.image_conditions import gaussian_blur
from ddpm_jax.diffusion.image_conditions.blur import MIN_STD, smoothed
from ddpm_jax.runtime.errors import UserError

X = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (9, 14, 3)), jnp.float32)
run = jax.jit(smoothed, static_argnames="radius")
blur = jax.jit(functools.partial(gaussian_blur, highest_std=3.0))


def test_a_constant_stays():
    for level in (0, 77, 255):
        x_0 = np.full(X.shape, level / 127.5 - 1, np.float32)
        np.testing.assert_allclose(blur(x_0, 1.7), x_0, atol=1e-6)


def test_an_impulse_becomes_the_gaussian():
    """Normalised: with std = 1.5 a sum of the density over whole numbers is 1 up to exp(-2 pi^2 std^2) = 5e-20; what is
    beyond 4 * 1.5 pixels is 6e-5."""
    x_0 = jnp.zeros((31, 31, 1)).at[15, 12].set(1.0)
    row, column = np.mgrid[:31, :31]
    wanted = np.exp(-((row - 15) ** 2 + (column - 12) ** 2) / (2 * 1.5**2)) / (2 * np.pi * 1.5**2)
    np.testing.assert_allclose(run(x_0, 1.5, radius=6)[..., 0], wanted, atol=2 * 6e-5 * wanted.max())


# Radius 40: the image is mirrored several times.
@pytest.mark.parametrize("std, radius", [(0.5, 2), (1.3, 12), (3.0, 12), (10.0, 40)])
def test_as_scipy(std, radius):
    wanted = gaussian_filter(np.asarray(X, np.float64), (std, std, 0), mode="reflect", radius=(radius, radius, 0))
    np.testing.assert_allclose(run(X, std, radius=radius), wanted, atol=1e-6)


def test_the_mean_stays():
    blurred = run(X, 2.0, radius=12)
    np.testing.assert_allclose(blurred.mean(axis=(0, 1)), X.mean(axis=(0, 1)), atol=1e-6)
    assert np.std(blurred) < 0.5 * np.std(X)


def test_the_result_has_256_levels():
    levels = (np.asarray(blur(X, 1.0), np.float64) + 1) * 127.5
    np.testing.assert_allclose(levels, np.round(levels), atol=3e-5)  # 127.5 times half of float32's last digit of 1
    plain = (np.asarray(run(X, 1.0, radius=12), np.float64) + 1) * 127.5
    assert np.abs(levels - plain).max() <= 0.5 + 1e-4


def test_one_program_serves_every_standard_deviation():
    blur(X, 0.5)
    before = blur._cache_size()
    blur(X, 3.0)
    assert blur._cache_size() == before


def test_the_least_standard_deviation_keeps_the_image():
    np.testing.assert_array_equal(blur(X, MIN_STD), blur(X, 0.1))
    np.testing.assert_allclose(blur(X, MIN_STD), X, atol=0.5 / 127.5 + 1e-6)  # rounded to a level


@pytest.mark.parametrize("std", [0.0, 1e-9, -1.0, 3.1, float("nan")])
def test_what_is_refused(std):
    with pytest.raises(UserError, match="std must be at least 0.01 and at most highest_std, 3.0; got"):
        gaussian_blur(X, std, highest_std=3.0)
