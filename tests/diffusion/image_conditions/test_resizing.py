"""Smaller and larger images: slow loops, closed forms, Pillow. tests/parity/test_parity_resizing.py has PyTorch."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.diffusion.image_conditions import area_mean, enlarged, shrunk
from ddpm_jax.diffusion.image_conditions.resizing import UPSAMPLINGS
from ddpm_jax.runtime.errors import UserError

RNG = np.random.default_rng(0)
SMALL = jnp.asarray(RNG.uniform(-1, 1, (3, 5, 2)), jnp.float32)
run = jax.jit(enlarged, static_argnames=("factor", "upsampling"))


def slow_value(line, place, upsampling):
    """The value of a line of pixels at a place in pixels, 0 the centre of the first; borders are repeated."""
    below = math.floor(place)
    d = place - below
    if upsampling == "bicubic":
        a = -0.75
        near = lambda x: ((a + 2) * x - (a + 3)) * x * x + 1  # noqa: E731
        far = lambda x: ((a * x - 5 * a) * x + 8 * a) * x - 4 * a  # noqa: E731
        weights = {-1: far(d + 1), 0: near(d), 1: near(1 - d), 2: far(2 - d)}
    else:
        weights = {0: 1 - d, 1: d}
    return sum(weight * line[min(max(below + tap, 0), len(line) - 1)] for tap, weight in weights.items())


def slow(image, factor, upsampling):
    """One axis after the other, pixel by pixel, in float64."""
    for axis in (0, 1):
        lines = np.moveaxis(np.asarray(image, np.float64), axis, 0)
        size = len(lines)
        places = [(i + 0.5) / factor - 0.5 for i in range(size * factor)]
        if upsampling == "nearest":
            larger = [lines[i // factor] for i in range(size * factor)]
        else:
            if upsampling == "bilinear_corners":
                places = [i * (size - 1) / (size * factor - 1) for i in range(size * factor)]
            larger = [slow_value(lines, place, upsampling) for place in places]
        image = np.moveaxis(np.stack(larger), 0, axis)
    return image


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("factor", [2, 3])
def test_each_rule_is_the_slow_loop(upsampling, factor):
    got = run(SMALL, factor, upsampling)
    assert got.shape == (3 * factor, 5 * factor, 2) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, slow(SMALL, factor, upsampling), atol=1e-6)  # sums of 16 products below 3


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_what_each_rule_keeps(upsampling):
    """Constants; ramps inside; one pixel alone; and the corners, where they coincide."""
    np.testing.assert_allclose(run(jnp.full((2, 3, 1), 0.7), 3, upsampling), 0.7, atol=2e-7)
    np.testing.assert_array_equal(run(jnp.full((1, 1, 1), 0.7), 4, upsampling), np.full((4, 4, 1), np.float32(0.7)))
    ramp = run(jnp.arange(6.0)[:, None, None], 4, upsampling)[:, 0, 0]
    steps = np.diff(ramp)[8:-8]  # bicubic needs two pixels on each side
    if upsampling in ("bilinear", "bilinear_corners"):
        np.testing.assert_allclose(steps, 0.25 if upsampling == "bilinear" else 5 / 23, atol=1e-6)
    np.testing.assert_allclose(ramp + ramp[::-1], 5, atol=1e-5)  # mirrored alike
    if upsampling == "bilinear_corners":
        corners = ([0, 0, -1, -1], [0, -1, 0, -1])
        np.testing.assert_allclose(run(SMALL, 3, upsampling)[corners], SMALL[corners], atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_means_of_blocks(factor):
    x = RNG.uniform(-1, 1, (3 * factor, 2 * factor, 3)).astype(np.float32)
    wanted = [[x[i * factor : (i + 1) * factor, j * factor : (j + 1) * factor].mean((0, 1), np.float64)
               for j in range(2)] for i in range(3)]  # fmt: skip
    np.testing.assert_allclose(area_mean(jnp.asarray(x), factor), wanted, atol=1e-6)
    again = area_mean(run(SMALL, factor, "nearest"), factor)
    np.testing.assert_allclose(again, SMALL, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_small_image_has_256_levels(factor):
    """Halves upwards. Pillow's `reduce` rounds the same, but only where the factor is a power of 2."""
    levels = RNG.integers(0, 256, (6 * factor, 4 * factor), dtype=np.uint8)
    levels[:factor, :factor] = np.arange(factor * factor).reshape(factor, factor) % 2  # a mean of 1/2, or below
    got = (np.asarray(shrunk(jnp.asarray(levels[..., None] / 127.5 - 1, jnp.float32), factor))[..., 0] + 1) * 127.5
    np.testing.assert_allclose(got, np.round(got), atol=3e-5)
    sums = levels.astype(int).reshape(6, factor, 4, factor).sum((1, 3))
    wanted = np.array([[math.floor(value / factor**2 + 0.5) for value in row] for row in sums])
    np.testing.assert_array_equal(np.round(got), wanted)
    if factor % 2 == 0:
        assert wanted[0, 0] == 1
        np.testing.assert_array_equal(wanted, np.asarray(Image.fromarray(levels).reduce(factor)))


def test_sizes_that_do_not_fit_and_other_rules_are_refused():
    for shrink in (area_mean, shrunk):
        with pytest.raises(UserError, match="factor must divide the size of the images, 3 x 5; got 2"):
            shrink(SMALL, 2)
    with pytest.raises(UserError, match="upsampling must be one of .*; got 'cubic'; did you mean 'bicubic'"):
        enlarged(SMALL, 2, "cubic")


def test_x64_changes_no_number():
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    before = [run(SMALL, 3, rule) for rule in UPSAMPLINGS]
    with enable_x64(True):
        after = [jax.jit(functools.partial(enlarged, factor=3, upsampling=rule))(SMALL) for rule in UPSAMPLINGS]
    for one, other in zip(before, after, strict=True):
        assert other.dtype == jnp.float32
        np.testing.assert_array_equal(one, other)
