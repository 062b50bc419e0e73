"""The uniform initialiser: Flax's own alone, and numbers of one's own for every tensor where all are drawn together."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from ddpm_jax.models import initialisers
from ddpm_jax.models.initialisers import INIT, fan_avg_uniform, shared_draws

SHAPES = [(5, 7), (3, 3, 4, 4), (40, 50), (1, 1), (3, 3, 8, 2)]


def limits(shape):
    *kernel, fan_in, fan_out = shape
    return np.sqrt(6 / (np.prod(kernel) * (fan_in + fan_out)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 1e-10])
def test_alone_it_is_flaxs(shape, scale):
    key = jax.random.key(3)
    expected = nn.initializers.variance_scaling(scale, "fan_avg", "uniform")(key, shape)
    np.testing.assert_allclose(fan_avg_uniform(scale)(key, shape), expected, rtol=1e-6)


@pytest.mark.parametrize("first_draw,longest", [(64, 128), (300, 10**6), (10**6, 10**6)])
def test_together_no_number_is_given_twice(first_draw, longest, monkeypatch):
    """Draws too short for one tensor, for some, and long enough for all; each tensor fills its -l..l evenly."""
    monkeypatch.setattr(initialisers, "_FIRST_DRAW", first_draw)
    monkeypatch.setattr(initialisers, "_LONGEST_DRAW", longest)
    key = jax.random.key(0)

    @jax.jit
    def draw(key):
        with shared_draws(key):
            return [INIT(jax.random.key(9), shape) for shape in SHAPES]

    parts = [np.asarray(x) / limits(x.shape) for x in draw(key)]
    assert [part.shape for part in parts] == SHAPES
    numbers = np.concatenate([part.ravel() for part in parts])
    # Of 2,000 numbers out of 2^23 a fourth of a pair is the same by chance.
    assert len(np.unique(numbers)) >= numbers.size - 4
    assert np.all(np.abs(numbers) <= 1 + 1e-6)
    # U(-1, 1): deviation 1/sqrt(3); the mean of its squares scatters by sqrt(4/45 / n).
    assert abs(np.mean(numbers)) < 5 / np.sqrt(3 * numbers.size)
    assert abs(np.mean(numbers**2) - 1 / 3) < 5 * np.sqrt(4 / 45 / numbers.size)
    assert all(np.any(a != b) for a, b in zip(draw(key), draw(jax.random.key(1)), strict=True))


def test_what_is_drawn_afterwards_is_drawn_alone():
    key = jax.random.key(0)
    alone = INIT(key, (4, 4))
    with pytest.raises(ZeroDivisionError), shared_draws(jax.random.key(1)):
        assert np.any(INIT(key, (4, 4)) != alone)
        raise ZeroDivisionError
    np.testing.assert_array_equal(INIT(key, (4, 4)), alone)
