"""Saturation, hue, and explained colour: closed forms, and the formulas of Pillow."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.evaluation.colour_statistics import chroma, colour_statistics, explained_colour, hue_distance
from ddpm_jax.runtime.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)


def test_chroma_is_that_of_pillow():
    wanted = np.asarray(Image.fromarray(IMAGES[0]).convert("YCbCr"), np.float64)[..., 1:]
    # It rounds down, from tables in steps of 1/64.
    np.testing.assert_allclose(chroma(IMAGES[0]) * 255 + 128, wanted + 0.5, atol=0.55)


def test_grey_has_no_colour():
    grey = np.repeat(IMAGES[..., :1], 3, axis=-1)
    found = colour_statistics(grey)
    assert found.saturation == 0 and found.saturation_of_images == (0, 0, 0) and not found.hues.any()
    with pytest.raises(UserError, match="images must have more than one colour"):
        explained_colour(grey, grey[:, None])


def test_hues_follow_the_circle():
    ramp = np.array([colorsys.hsv_to_rgb(hue, 1, 1) for hue in (0, 1 / 3, 2 / 3)])
    each = [colour_statistics(np.full((1, 2, 2, 3), np.round(255 * colour), np.uint8)) for colour in ramp]
    assert [np.count_nonzero(one.hues) for one in each] == [1, 1, 1]
    assert hue_distance(each[0], each[1]) == 1 and hue_distance(each[0], each[0]) == 0
    # Half of the saturation has another hue.
    both = colour_statistics(np.stack([np.full((2, 2, 3), 255 * ramp[i], np.uint8) for i in (0, 1)]))
    weights = each[0].saturation, each[1].saturation
    np.testing.assert_allclose(hue_distance(each[0], both), weights[1] / sum(weights), rtol=1e-12)


def test_explained_colour():
    assert explained_colour(IMAGES, IMAGES[:, None]) == 1
    colours = chroma(IMAGES)
    grey = np.repeat(IMAGES[..., :1], 3, axis=-1)[:, None]
    mean, spread = colours.reshape(-1, 2).mean(0), colours.reshape(-1, 2).var(0).sum()
    np.testing.assert_allclose(explained_colour(IMAGES, grey), -(mean**2).sum() / spread, rtol=1e-9)
    both = np.stack([IMAGES, np.repeat(grey, 1, axis=1)[:, 0]], axis=1)  # the mean of the two is half the colour
    halves = 1 - np.square(colours / 2).sum() / (spread * colours[..., 0].size)
    np.testing.assert_allclose(explained_colour(IMAGES, both), halves, rtol=1e-9)
    with pytest.raises(UserError, match=r"results must be \[N, K, H, W, 3\] for images \[5, 8, 6, 3\]; got \[5, 8"):
        explained_colour(IMAGES, IMAGES)
    with pytest.raises(UserError, match=r"images must be uint8 \[..., H, W, 3\]; got float64"):
        chroma(IMAGES / 1.0)
