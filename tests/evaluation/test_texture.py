"""Total variation, speckle and salt: against loops over pixels, and of images where each is known."""

import itertools

import numpy as np
import pytest

from ddpm_jax.evaluation.texture import STRAY_LEVELS, texture_numbers, texture_of


def slow_texture(image):
    """The same of one image [H, W, C], pixel by pixel."""
    height, width, channels = image.shape
    x = image.astype(int)
    differences, outside = [], []
    for i, j, c in itertools.product(range(height), range(width), range(channels)):
        differences += [abs(x[i, j, c] - x[k, m, c]) for k, m in ((i + 1, j), (i, j + 1)) if k < height and m < width]
        others = [
            x[k, m, c]
            for k, m in itertools.product(range(i - 1, i + 2), range(j - 1, j + 2))
            if 0 <= k < height and 0 <= m < width and (k, m) != (i, j)
        ]
        outside.append(max(x[i, j, c] - max(others), min(others) - x[i, j, c], 0))
    return [np.mean(differences), np.mean(outside), np.mean([levels >= STRAY_LEVELS for levels in outside])]


@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 4, 1), (6, 1, 2), (2, 2, 1)])
def test_against_a_loop_over_pixels(shape):
    images = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
    # Half of them with few levels, so that neighbours are equal, and with the ends of the scale.
    images[2:] = images[2:] // 128 * 255
    np.testing.assert_allclose(texture_of(images), [slow_texture(image) for image in images], rtol=1e-6)


def test_images_of_known_texture():
    flat = np.full((4, 4, 1), 200, np.uint8)
    edge = np.where(np.arange(4) < 2, 0, 255).astype(np.uint8)[None, :, None].repeat(4, axis=0)
    stray, near = flat.copy(), flat.copy()
    stray[1, 2], near[1, 2] = 200 - STRAY_LEVELS, 200 - STRAY_LEVELS + 1
    # 24 pairs of 4x4 pixels: an edge crosses 4 of them, a pixel inside is in 4.
    wanted = [
        (0, 0, 0),
        (4 * 255 / 24, 0, 0),  # a contour is no grain
        (4 * STRAY_LEVELS / 24, STRAY_LEVELS / 16, 1 / 16),
        (4 * (STRAY_LEVELS - 1) / 24, (STRAY_LEVELS - 1) / 16, 0),
    ]
    np.testing.assert_allclose(texture_of(np.stack([flat, edge, stray, near])), wanted, rtol=1e-6)
    np.testing.assert_array_equal(texture_of(np.full((2, 1, 1, 3), 7, np.uint8)), 0)  # without any neighbour


def test_of_real_images_one_in_a_hundred_lies_beyond():
    real = np.random.default_rng(0).random((1000, 3)).astype(np.float32)
    numbers = texture_numbers(real, real)
    assert numbers["total_variation"]["ratio"] == 1
    assert numbers["speckled"]["share"] == numbers["salted"]["share"] == pytest.approx(0.01, abs=0.0011)
    rough = real * np.float32([1.5, 1, 2])
    numbers = texture_numbers(rough, real)
    assert numbers["total_variation"]["ratio"] == pytest.approx(1.5) and numbers["speckled"]["share"] < 0.011
    assert numbers["salted"]["share"] == pytest.approx(0.5, abs=0.05)  # 3 standard errors of a share
    # Equal values, as of images without any salt, are not beyond.
    assert texture_numbers(0 * real, 0 * real)["salted"]["share"] == 0
    assert np.isnan(texture_numbers(real, 0 * real)["total_variation"]["ratio"])
