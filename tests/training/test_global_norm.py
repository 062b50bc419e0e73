"""The global norm and the clip are those of Optax, with fewer programs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.training.optimizer import clip_by_global_norm, global_norm


@pytest.fixture(scope="module")
def tree():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (64, 32), "bias": (32,), "deep": {"kernel": (3, 3, 16, 16), "scale": (16,), "number": ()}}
    return jax.tree.map(
        lambda shape: np.float32(rng.standard_normal(shape)), shapes, is_leaf=lambda leaf: isinstance(leaf, tuple)
    )


@pytest.mark.parametrize("part", [lambda tree: tree, lambda tree: tree["kernel"], lambda tree: tree["bias"]])
def test_norm_is_the_root_of_all_squares(tree, part):
    squares = sum(float(np.sum(np.float64(leaf) ** 2)) for leaf in jax.tree.leaves(part(tree)))
    # Float32 sums of up to 4,400 squares, added in pairs or in blocks: a few units in the last place.
    np.testing.assert_allclose(global_norm(part(tree)), np.sqrt(squares), rtol=2e-6)


def test_small_arrays_take_one_sum_together(tree):
    program = str(jax.make_jaxpr(global_norm)(tree))
    assert program.count("reduce_sum") == 3  # two kernels, and all else


@pytest.mark.parametrize("max_norm", [1.0, 1e4])
def test_clip_is_that_of_optax(tree, max_norm):
    ours, theirs = clip_by_global_norm(max_norm), optax.clip_by_global_norm(max_norm)
    state = ours.init(tree)
    assert jax.tree.structure(state) == jax.tree.structure(theirs.init(tree))  # checkpoints of either can be read
    got, _ = ours.update(tree, state)
    expected, _ = theirs.update(tree, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), got, expected)
    if max_norm == 1e4:
        jax.tree.map(np.testing.assert_array_equal, got, tree)
    else:
        np.testing.assert_allclose(global_norm(got), max_norm, rtol=2e-6)


def test_a_norm_that_is_not_finite_shows(tree):
    broken = dict(tree, bias=jnp.asarray(tree["bias"]).at[3].set(jnp.nan))
    assert np.isnan(global_norm(broken))
