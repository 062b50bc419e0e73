"""PSNR, SSIM and consistency: slow loops and closed forms."""

import numpy as np
import pytest

from ddpm_jax.evaluation.super_resolution import inconsistency, psnr, ssim
from ddpm_jax.runtime.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 14, 12, 2), dtype=np.uint8)
OTHERS = np.clip(IMAGES.astype(int) + RNG.integers(-40, 41, IMAGES.shape), 0, 255).astype(np.uint8)


def slow_ssim(x, y):
    """Of one channel [H, W], window by window."""
    place = np.arange(11) - 5
    weights = np.exp(-(place[:, None] ** 2 + place[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c_1, c_2, found = 2.55**2, 7.65**2, []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = (image[i : i + 11, j : j + 11].astype(float) for image in (x, y))
            mean_a, mean_b = np.sum(weights * a), np.sum(weights * b)
            var_a, var_b = np.sum(weights * (a - mean_a) ** 2), np.sum(weights * (b - mean_b) ** 2)
            covariance = np.sum(weights * (a - mean_a) * (b - mean_b))
            found.append(
                (2 * mean_a * mean_b + c_1) * (2 * covariance + c_2)
                / ((mean_a**2 + mean_b**2 + c_1) * (var_a + var_b + c_2))
            )  # fmt: skip
    return np.mean(found)


def test_ssim_is_the_slow_loop():
    wanted = [np.mean([slow_ssim(x[..., c], y[..., c]) for c in range(2)]) for x, y in zip(IMAGES, OTHERS, strict=True)]
    np.testing.assert_allclose(ssim(IMAGES, OTHERS), wanted, rtol=1e-10)
    np.testing.assert_allclose(ssim(IMAGES, IMAGES), 1, rtol=1e-12)
    np.testing.assert_allclose(ssim(OTHERS, IMAGES), wanted, rtol=1e-10)


def test_ssim_of_flat_images_compares_their_brightness():
    flat = lambda level: np.full((1, 11, 11, 1), level, np.uint8)  # noqa: E731
    wanted = (2 * 100 * 50 + 2.55**2) / (100**2 + 50**2 + 2.55**2)
    np.testing.assert_allclose(ssim(flat(100), flat(50)), wanted, rtol=1e-10)


def test_psnr():
    assert np.all(np.isinf(psnr(IMAGES, IMAGES)))
    half = np.full((2, 4, 4, 1), 100, np.uint8)
    other = half.copy()
    other[1, :2] += 51  # a fifth of 255 in half of the pixels
    np.testing.assert_allclose(psnr(half, other), [np.inf, 10 * np.log10(25 * 2)], rtol=1e-12)


def test_inconsistency():
    small = RNG.integers(0, 256, (3, 4, 5, 2), dtype=np.uint8)
    large = small.repeat(3, axis=1).repeat(3, axis=2)
    np.testing.assert_array_equal(inconsistency(small, large), 0)
    large[1] = 0
    large[0, 0, 0, 0] ^= 128  # one of nine pixels of one of 40 blocks
    wanted = [np.sqrt((128 / 9) ** 2 / 40), np.sqrt(np.square(small[1].astype(float)).mean()), 0]
    np.testing.assert_allclose(inconsistency(small, large), wanted, rtol=1e-12)


def test_what_is_refused():
    with pytest.raises(UserError, match=r"results must have the shape of images, \[3, 14, 12, 2\]; got \[3, 14, 12\]"):
        psnr(IMAGES, OTHERS[..., 0])
    with pytest.raises(UserError, match=r"images must be uint8 \[N, H, W, C\]; got float64"):
        psnr(IMAGES / 1.0, OTHERS)
    with pytest.raises(UserError, match=r"images must be at least 11 x 11 for SSIM; got 10 x 12"):
        ssim(IMAGES[:, :10], OTHERS[:, :10])
    with pytest.raises(UserError, match=r"results must be larger than small, \[3, 7, 4, 2\], by one whole factor"):
        inconsistency(IMAGES[:, ::2, ::3], OTHERS)
