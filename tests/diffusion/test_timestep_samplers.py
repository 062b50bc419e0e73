"""Samplers of t: what they draw, what they remember, and that their weights keep the mean loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.timestep_samplers import HISTORY, TIMESTEP_SAMPLERS, UNIFORM_PART, make_timestep_sampler
from ddpm_jax.runtime.errors import UserError


def test_uniform_and_stratified_draw_every_step_equally():
    for name in ("uniform", "stratified"):
        sampler = make_timestep_sampler(name, 7)
        draw = jax.jit(jax.vmap(lambda key: sampler.sample(None, key, 16)[0]))  # noqa: B023
        t = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
        assert t.min() == 0 and t.max() == 6 and t.dtype == np.int32
        # 32,000 draws: five deviations of a count of 4,571.
        assert np.all(np.abs(np.bincount(t.reshape(-1)) - 32000 / 7) < 5 * np.sqrt(32000 / 7))
        _, weights = sampler.sample(None, jax.random.key(0), 16)
        np.testing.assert_array_equal(weights, 1.0)


def test_stratified_has_one_in_every_part():
    t, _ = make_timestep_sampler("stratified", 1000).sample(None, jax.random.key(1), 50)
    np.testing.assert_array_equal(np.asarray(t) // 20, np.arange(50))
    assert len(set((np.asarray(t) % 20).tolist())) > 5


def slow_history(num_steps, batches):
    """The same, one loss after another."""
    history = [[] for _ in range(num_steps)]
    for t, losses in batches:
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            history[step] = [*history[step], loss][-HISTORY:]
    return history


def test_the_history_is_that_of_a_loop():
    num_steps, rng = 4, np.random.default_rng(0)
    sampler = make_timestep_sampler("loss_second_moment", num_steps)
    update, history, batches = jax.jit(sampler.update), sampler.init(), []
    for size in (5, 5, 64, 5, 30, 30, 30):  # in the third and later batches a t comes more than 10 times
        t, losses = rng.integers(0, num_steps, size), rng.random(size).astype(np.float32)
        batches.append((t, losses))
        history = update(history, jnp.asarray(t, jnp.int32), jnp.asarray(losses))
        for step, expected in enumerate(slow_history(num_steps, batches)):
            seen = int(history.counts[step])
            assert min(seen, HISTORY) == len(expected) and seen < 2 * HISTORY
            got = np.asarray(history.losses[step])[: len(expected)]
            np.testing.assert_array_equal(np.sort(got), np.sort(np.float32(expected)))


def filled(losses):
    """A history in which step t always lost losses[t]."""
    sampler = make_timestep_sampler("loss_second_moment", len(losses))
    t = jnp.tile(jnp.arange(len(losses)), HISTORY)
    return sampler, sampler.update(sampler.init(), t, jnp.asarray(losses, jnp.float32)[t])


def test_large_losses_are_drawn_more_often_and_weigh_less():
    losses = np.array([1.0, 2.0, 0.0, 5.0])
    sampler, history = filled(losses)
    t, weights = jax.jit(lambda key: sampler.sample(history, key, 40_000))(jax.random.key(0))
    p = (1 - UNIFORM_PART) * losses / losses.sum() + UNIFORM_PART / 4
    counts = np.bincount(np.asarray(t), minlength=4)
    assert np.all(np.abs(counts - 40_000 * p) < 5 * np.sqrt(40_000 * p) + 1)
    np.testing.assert_allclose(weights, (1 / (4 * p))[np.asarray(t)], rtol=1e-5)
    # Unbiased: the weighted mean is the mean over uniform t.
    assert np.mean(np.asarray(weights) * losses[np.asarray(t)]) == pytest.approx(losses.mean(), rel=0.01)


def test_uniform_until_every_step_has_been_seen_ten_times():
    sampler = make_timestep_sampler("loss_second_moment", 3)
    history = sampler.update(sampler.init(), jnp.array([0] * 30 + [1] * 30 + [2] * 9), jnp.full(69, 4.0))
    _, weights = sampler.sample(history, jax.random.key(0), 8)
    np.testing.assert_allclose(weights, 1.0, rtol=1e-6)
    history = sampler.update(history, jnp.array([2]), jnp.array([9.0]))
    _, weights = sampler.sample(history, jax.random.key(0), 64)
    assert len(np.unique(np.asarray(weights))) == 2
    sampler, history = filled([0.0, 0.0])  # nothing to prefer, and no 0/0
    np.testing.assert_allclose(sampler.sample(history, jax.random.key(0), 8)[1], 1.0, rtol=1e-6)


def test_a_wrong_name():
    with pytest.raises(UserError, match="^name must be one of"):
        make_timestep_sampler("importance", 10)
    assert len(TIMESTEP_SAMPLERS) == 3
