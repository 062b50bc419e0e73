"""Random holes: their share, shapes, and how often each kind comes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.edits.masks import make_mask
from ddpm_jax.diffusion.image_conditions import free_form_mask, random_masks, uncropping_mask

NUM = 1000
SHARE = (0.1, 0.6)


def holes(make):
    """The holes of 1000 keys, bool [NUM, H, W]."""
    return ~np.asarray(jax.jit(jax.vmap(make))(jax.random.split(jax.random.key(0), NUM)))[..., 0]


@functools.cache
def free_form(height, width, share):
    return holes(lambda key: free_form_mask(key, height, width, share))


def test_the_share_of_a_hole_is_uniform_in_its_range():
    shares = free_form(28, 28, SHARE).mean(axis=(1, 2))
    assert SHARE[0] <= shares.min() and shares.max() <= SHARE[1]
    # Five standard errors of a mean of 1000 uniform numbers, and of the counts of tenths; a row of rectangles beside.
    width = SHARE[1] - SHARE[0]
    assert abs(shares.mean() - np.mean(SHARE)) < 5 * width / np.sqrt(12 * NUM) + 1 / 28
    counts = np.histogram(shares, bins=5, range=SHARE)[0]
    assert np.all(np.abs(counts - 200) < 5 * np.sqrt(NUM * 0.2 * 0.8))


def test_holes_have_no_specks():
    """Strokes are wider than a pixel: nearly all pixels of a hole have a neighbour in it, to the side and above or
    below."""
    hole = np.pad(free_form(28, 28, SHARE), ((0, 0), (1, 1), (1, 1)), mode="edge")
    inner = hole[:, 1:-1, 1:-1]
    beside = hole[:, 1:-1, :-2] | hole[:, 1:-1, 2:]
    above = hole[:, :-2, 1:-1] | hole[:, 2:, 1:-1]
    assert np.mean((beside & above)[inner]) > 0.97


def test_every_pixel_is_in_some_holes():
    """None is always known, or never; the share is 0.35 on average, and less in the corners."""
    at_pixels = free_form(28, 28, SHARE).mean(axis=0)
    assert 0.1 < at_pixels.min() and at_pixels.max() < 0.5


def test_something_is_unknown_and_something_known():
    hole = free_form(2, 3, (0.001, 0.999))
    assert set(hole.sum(axis=(1, 2))) == {1, 2, 3, 4, 5}


def test_strokes_have_the_very_number_of_pixels_and_rectangles_up_to_a_row_or_column():
    """And the two kinds have their probabilities, up to five standard deviations."""
    number = free_form(10, 26, (0.25, 0.25)).sum(axis=(1, 2))
    assert np.abs(number - 65).max() <= 26
    deviation = 5 * np.sqrt(NUM * 0.6 * 0.4)
    # Not more rectangles than one in five, by chance.
    assert 0.6 * NUM - deviation < np.sum(number == 65) < (0.6 + 0.4 / 5) * NUM + deviation


def test_rectangles(monkeypatch):
    """What is reached by one that grows is a rectangle around its centre, with the ratio of the image up to 1/2..2."""
    monkeypatch.setattr(random_masks, "MAX_RECTANGLES", 1)
    factors = jax.jit(jax.vmap(lambda key: random_masks._rectangle_factors(key, 40, 80)))
    factors = np.asarray(factors(jax.random.split(jax.random.key(0), 200)))
    hole = factors <= np.quantile(factors, 0.2, axis=(1, 2), keepdims=True)
    rows, columns = hole.any(axis=2), hole.any(axis=1)
    np.testing.assert_array_equal(hole, rows[:, :, None] & columns[:, None, :])
    for along in (rows, columns):
        np.testing.assert_array_equal(np.abs(np.diff(along.astype(int), axis=1)).sum(axis=1) <= 2, True)
    inside = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1])
    ratio = columns.sum(axis=1)[inside] / rows.sum(axis=1)[inside]
    assert inside.sum() > 20 and np.all((0.9 < ratio) & (ratio < 4.4))  # 1..4, and roundings of sides of 10 and more
    assert ratio.min() < 1.3 and ratio.max() > 3


def test_distances_to_segments():
    """A slow loop: the nearest of 10001 points of the segment, 1e-4 of its length apart."""
    rng = np.random.default_rng(0)
    starts, ends = rng.uniform(0, 9, (2, 4, 2)).astype(np.float32)
    ends[3] = starts[3]  # a point
    got = jax.jit(random_masks._squared_distances, static_argnums=(2, 3))(jnp.asarray(starts), jnp.asarray(ends), 5, 7)
    for segment, (start, end) in enumerate(zip(starts, ends, strict=True)):
        points = start + np.linspace(0, 1, 10001)[:, None] * (end - start)
        for row in range(5):
            for column in range(7):
                wanted = np.min(np.sum((points - [row + 0.5, column + 0.5]) ** 2, axis=1))
                np.testing.assert_allclose(got[segment, row, column], wanted, atol=1e-4)


def test_strokes_stay_in_the_image_and_are_no_longer_than_a_quarter_of_the_diagonal():
    zigzags = jax.jit(jax.vmap(lambda key: random_masks._zigzags(key, 40, 96)))
    starts, ends = map(np.asarray, zigzags(jax.random.split(jax.random.key(0), 50)))
    for vertices in (starts, ends):
        assert np.all((vertices >= 0) & (vertices <= np.array([40, 96])))
    np.testing.assert_array_equal(starts[:, :, 1:], ends[:, :, :-1])
    # Each turns back by 2 (2 pi / 5 +- 2 pi / 15), which is 96 degrees at least, but at the border.
    steps = ends - starts
    assert np.mean(np.sum(steps[:, :, 1:] * steps[:, :, :-1], axis=-1) < 0) > 0.75
    lengths = np.linalg.norm(ends - starts, axis=-1)
    # The border folds a segment, which makes it shorter; roundings of coordinates up to 192 beside.
    assert lengths.max() <= np.hypot(40, 96) / 4 + 1e-4 and 0.5 < lengths.mean() / (np.hypot(40, 96) / 8) < 1.1


@pytest.mark.parametrize("size", [(28, 28), (40, 96), (7, 5), (2, 2)])
def test_uncropping(size):
    """One of five masks, all four sides in half of the cases, and about half of the image."""
    height, width = size
    hole = holes(lambda key: uncropping_mask(key, *size))
    counts = []
    for side in ("top", "bottom", "left", "right"):
        wanted = ~make_mask(side, *size)[..., 0]
        counts.append(np.all(hole == wanted, axis=(1, 2)).sum())
        assert abs(wanted.mean() - 0.5) <= 0.5 / min(size)  # the smaller half of an odd size
    others = hole[~np.any([np.all(hole == ~make_mask(s, *size)[..., 0], axis=(1, 2))
                           for s in ("top", "bottom", "left", "right")], axis=0)]  # fmt: skip
    np.testing.assert_array_equal(others, np.broadcast_to(others[:1], others.shape))
    # Roundings of both sides of the known part by at most half a pixel.
    assert abs(others[0].mean() - 0.5) <= np.sqrt(0.5) * (0.5 / height + 0.5 / width) + 0.25 / (height * width)
    deviation = 5 * np.sqrt(NUM * 0.5 * 0.5)
    assert abs(len(others) - NUM / 2) < deviation and np.all(np.abs(np.array(counts) - NUM / 8) < deviation)
    if size == (28, 28):
        known = ~others[0]
        np.testing.assert_array_equal(np.argwhere(known)[[0, -1]], [[4, 4], [23, 23]])
