"""JPEG files: the transform, the steps, and the images that Pillow (libjpeg) makes."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.diffusion.image_conditions import jpeg, jpeg_round_trip
from ddpm_jax.runtime.errors import UserError

QUALITIES = (5, 10, 30, 75, 95)
SUBSAMPLINGS = {"4:2:0": 2, "4:4:4": 0}  # Pillow's numbers


def file_of(levels, quality, subsampling):
    file = io.BytesIO()
    image = Image.fromarray(levels if levels.shape[2] == 3 else levels[..., 0])
    image.save(file, "JPEG", quality=quality, subsampling=SUBSAMPLINGS[subsampling])
    return Image.open(file)


def by_pillow(levels, quality, subsampling):
    return np.asarray(file_of(levels, quality, subsampling)).reshape(levels.shape).astype(int)


round_trip = jax.jit(jpeg_round_trip, static_argnames="subsampling")


def ours(levels, quality, subsampling):
    x_0 = round_trip(jnp.asarray(levels / 127.5 - 1, jnp.float32), quality, subsampling=subsampling)
    return np.round((np.asarray(x_0) + 1) * 127.5).astype(int)


@functools.cache
def photo(height, width, channels):
    """Waves of all directions, the longer the stronger, and grain, over most of the range; fine colours."""
    rng = np.random.default_rng(height + width + channels)
    row, column, image = *np.mgrid[:height, :width][..., None], 0
    for length in (60, 30, 15, 7, 4):
        angle, phase = rng.uniform(0, 2 * np.pi, (2, channels))
        wave = np.sin(2 * np.pi / length * (np.cos(angle) * row + np.sin(angle) * column) + phase)
        image = image + 0.9 * length**0.5 * 8 * wave
    return np.clip(np.round(image + rng.normal(128, 4, (height, width, channels))), 0, 255).astype(np.uint8)


def test_the_transform_is_orthonormal():
    basis = jpeg.cosine_basis().astype(np.float64) / np.sqrt(8)
    np.testing.assert_allclose(basis @ basis.T, np.eye(8), atol=2e-7)
    np.testing.assert_array_equal(np.abs(jpeg.cosine_basis()[[0, 4]]), 1)


def test_the_steps_of_every_quality():
    """Of Pillow's files: all 64 of both tables, for all 100 qualities."""
    steps_of = jax.jit(
        jax.vmap(lambda q: [jpeg._steps(t, jpeg._scale(q)) for t in (jpeg.LUMA_STEPS, jpeg.CHROMA_STEPS)])
    )
    luma, chroma = map(np.asarray, steps_of(jnp.arange(1, 101)))
    for quality in range(1, 101):
        tables = file_of(photo(8, 8, 3), quality, "4:2:0").quantization
        np.testing.assert_array_equal(luma[quality - 1].reshape(-1), tables[0])
        np.testing.assert_array_equal(chroma[quality - 1].reshape(-1), tables[1])


# 33 x 45: padded blocks; the last row and column have colours of their own. 40 x 4: too narrow for the triangle filter.
@pytest.mark.parametrize(
    "height, width, channels, subsampling",
    [(96, 96, 3, "4:2:0"), (96, 96, 3, "4:4:4"), (96, 96, 1, "4:2:0")] + [(33, 45, 3, "4:2:0"), (40, 4, 3, "4:2:0")],
)
def test_as_pillow(height, width, channels, subsampling):
    """libjpeg's transforms round on their way: a coefficient is off by one unit of 1/8 in perhaps a tenth of the cases,
    E|d| = 0.015. It then falls to another multiple of the step with probability E|d|/step, which changes the 64 levels
    of its block by about 0.8 step/8 on average: together 64 * 0.015 / 8 * 0.8 = 0.1 levels for each of the three
    planes, whatever the step. In small images one such coefficient is much more than the average; the rest is equal
    but for the roundings of the inverse transform and of the colours, up to 2 levels.
    """
    levels = photo(height, width, channels)
    apart = np.stack([np.abs(ours(levels, q, subsampling) - by_pillow(levels, q, subsampling)) for q in QUALITIES])
    of_each = np.mean(apart, axis=(1, 2, 3))
    assert of_each.max() < 0.8 and of_each.mean() < 0.3
    assert np.mean(apart > 2) < 0.04
    if height == 96:  # twice as much, if we did not round to 1/8 as well
        assert of_each[QUALITIES.index(95)] < (0.45 if channels == 3 else 0.25)
    assert np.mean(np.abs(ours(levels, 5, subsampling) - levels)) > 10  # there was something to agree in


@pytest.mark.parametrize("channels", [1, 3])
def test_flat_images_are_those_of_pillow(channels):
    """All is exact: only the first coefficient of each block, whose halves are rounded as libjpeg does."""
    rng = np.random.default_rng(0)
    for quality in (1, *QUALITIES, 100):
        for colour in (*rng.integers(0, 256, (6, channels)), [0] * channels, [255] * channels):
            levels = np.broadcast_to(np.asarray(colour, np.uint8), (9, 5, channels)).copy()
            np.testing.assert_array_equal(ours(levels, quality, "4:2:0"), by_pillow(levels, quality, "4:2:0"))


@pytest.mark.parametrize("channels, mean, most", [(1, 0.15, 2), (3, 1.0, 6)])
def test_quality_100_is_nearly_the_identity(channels, mean, most):
    """Steps of 1: the grey error has variance 1/12, and exceeds the 1/2 of the last rounding in 8 % of the pixels. With
    colours there are three roundings, and the blue error is sqrt(1/4 + 1.77^2/4 + 1/12) = 1.06 at most on average."""
    levels = np.random.default_rng(0).integers(20, 236, (64, 64, channels), dtype=np.uint8)
    apart = np.abs(ours(levels, 100, "4:4:4") - levels)
    assert apart.mean() < mean and apart.max() <= most


def test_the_triangle_filter_by_hand():
    """A slow loop over libjpeg's rule: 9, 3, 3 and 1 sixteenths, rounded up at even columns and down at odd ones."""
    plane = np.random.default_rng(0).integers(0, 256, (3, 5))
    got = jax.jit(jpeg._upsampled)(jnp.asarray(plane[None], jnp.float32))
    got = np.asarray(got)[0]
    assert got.shape == (6, 10)
    for row in range(6):
        for column in range(10):
            near = row // 2, column // 2
            far = np.clip([near[0] + 2 * (row % 2) - 1, near[1] + 2 * (column % 2) - 1], 0, [2, 4])
            total = 9 * plane[near] + 3 * plane[far[0], near[1]] + 3 * plane[near[0], far[1]] + plane[tuple(far)]
            assert got[row, column] == (total + (8 if column % 2 == 0 else 7)) // 16


def test_one_program_serves_every_quality():
    before = round_trip._cache_size()
    for quality in (3, 42):
        ours(photo(9, 10, 3), quality, "4:2:0")
    assert round_trip._cache_size() == before + 1


def test_what_is_refused():
    x_0 = jnp.zeros((8, 8, 3))
    with pytest.raises(UserError, match=r"x_0 must have 1 channel \(grey\) or 3 \(RGB\); got 2"):
        jpeg_round_trip(x_0[..., :2], 50)
    with pytest.raises(UserError, match="subsampling must be one of"):
        jpeg_round_trip(x_0, 50, subsampling="4:2:2")
    for quality in (0, 101):
        with pytest.raises(UserError, match="quality must be at "):
            jpeg_round_trip(x_0, quality)
