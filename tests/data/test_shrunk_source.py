"""`data.area_factor`: small images that are the means of blocks, those that a network of super-resolution is shown."""

import jax
import numpy as np
import pytest

from ddpm_jax.codecs.pixels import to_model_scale, to_uint8
from ddpm_jax.data import image_source
from ddpm_jax.data.image_source import ArraySource, DecodedSource
from ddpm_jax.data.wrapped_sources import ShrunkSource
from ddpm_jax.diffusion.image_conditions import shrunk
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.runtime.errors import UserError


@pytest.mark.parametrize("factor", (2, 3, 4))
def test_the_small_images_are_those_of_super_resolution(factor):
    """To the last level, with all sums of 2x2 pixels, of which a quarter are halves."""
    images = np.random.default_rng(0).integers(0, 256, (50, 6 * factor, 4 * factor, 3), dtype=np.uint8)
    images[0, :factor, :factor] = 0
    images[0, 0, 0] = factor**2 // 2  # a half, or the whole number below it
    small = ShrunkSource(ArraySource(images), factor)
    assert small.image_shape == (6, 4, 3) and len(small) == 50
    wanted = to_uint8(jax.vmap(lambda x_0: shrunk(x_0, factor))(to_model_scale(images)))
    np.testing.assert_array_equal(small.load(np.arange(50)), wanted)
    assert small.load(np.arange(1))[0, 0, 0, 0] == (1 if factor % 2 == 0 else 0)


def test_the_config_loads_larger_images(tiny_config):
    source = build_experiment(tiny_config("data.image_size=4,4", "data.area_factor=2")).source()
    large = build_experiment(tiny_config()).source()
    assert source.image_shape == (4, 4, 1) and len(source) == len(large)
    np.testing.assert_array_equal(source.labels, large.labels)
    blocks = large.load(np.arange(20)).reshape(20, 4, 2, 4, 2, 1).astype(float).mean((2, 4))
    assert np.all(np.abs(source.load(np.arange(20)) - blocks) <= 0.5)


def test_images_that_are_decoded_for_each_batch(monkeypatch):
    """As of a data set that does not fit in memory."""
    monkeypatch.setattr(image_source, "MEMORY_BUDGET_BYTES", 0)
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), dtype=np.uint8)
    decoded = DecodedSource(lambda indices: (images[n] for n in indices), num_examples=5, image_shape=(4, 4, 1))
    assert decoded.load(np.arange(0)).shape == (0, 4, 4, 1)
    small = ShrunkSource(decoded, 2)
    np.testing.assert_array_equal(small.load([3, 1]), ShrunkSource(ArraySource(images), 2).load([3, 1]))


def test_other_data_are_refused(tiny_config):
    with pytest.raises(UserError, match="area_factor must be 1 for other data than uint8 images"):
        ShrunkSource(ArraySource(np.zeros((3, 4, 1), np.uint8)), 2)
    with pytest.raises(UserError, match="data.area_factor must be at least 1; got 0"):
        build_experiment(tiny_config("data.area_factor=0")).source()
