"""SDEdit: a part of a table, from an image with noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.edits.repaint import repaint_table
from ddpm_jax.diffusion.edits.sdedit import noised_start, partial_table
from ddpm_jax.diffusion.exact import exact_model_fn, make_mixture
from ddpm_jax.diffusion.forward_process import q_sample
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys
from ddpm_jax.diffusion.samplers import ancestral_table, ddim_table, dpmpp_table, initial_noise, sample_loop
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.runtime.errors import UserError

T, SHAPE, NUM = 50, (2,), 4
PROCESS = Process(make_schedule("cosine", num_steps=T))
TABLE = ancestral_table(PROCESS, steps=spaced_steps(T, 10))
LAW = make_mixture(np.array([[-0.5, -0.6], [0.5, 0.6]]), std=0.2)
DENOISE_FN = make_denoiser(PROCESS, exact_model_fn(PROCESS, LAW), x_0_limit=None)
X_0 = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (NUM, *SHAPE)), jnp.float32)
KEYS = sample_keys(jax.random.key(0), jnp.arange(NUM))


@jax.jit
def sdedit(table, x_0, keys):
    return sample_loop(DENOISE_FN, table, noised_start(PROCESS, table, x_0, keys), keys)


def test_no_strength_is_the_image_and_full_strength_the_whole_table():
    none, whole = partial_table(TABLE, 0.0), partial_table(TABLE, 1.0)
    assert none.num_calls == 0
    np.testing.assert_array_equal(sdedit(none, X_0, KEYS), X_0)
    jax.tree.map(np.testing.assert_array_equal, whole, TABLE)


@pytest.mark.parametrize("strength, kept", [(0.3, 3), (0.7, 7), (0.99, 9), (0.05, 0)])
def test_the_rows_of_a_strength(strength, kept):
    part = partial_table(TABLE, strength)
    jax.tree.map(np.testing.assert_array_equal, part, TABLE.rows(10 - kept, 10))


def test_each_hundredth_of_a_hundred_steps():
    table = jax.tree.map(np.asarray, ddim_table(make_schedule("linear", num_steps=100)))
    assert [partial_table(table, part / 100).num_calls for part in range(101)] == list(range(101))


def test_the_start_is_q():
    part = partial_table(TABLE, 0.5)
    start = noised_start(PROCESS, part, X_0, KEYS)
    t, eps = jnp.full(NUM, part.t[0]), initial_noise(KEYS, SHAPE)
    np.testing.assert_allclose(start, q_sample(PROCESS.schedule, x_0=X_0, t=t, eps=eps), atol=1e-6)
    shared = noised_start(PROCESS, part, X_0[:1], KEYS)
    np.testing.assert_allclose(shared[0], start[0], atol=1e-6)
    assert shared.shape == X_0.shape


def test_it_is_the_rest_of_a_walk():
    """From x_t of a walk through the first rows, the part goes on as the whole does."""
    x_T = initial_noise(KEYS, SHAPE)
    walk = jax.jit(lambda table, x_t: sample_loop(DENOISE_FN, table, x_t, KEYS))
    rest = walk(partial_table(TABLE, 0.5), walk(TABLE.rows(0, 5), x_T))
    np.testing.assert_allclose(rest, walk(TABLE, x_T), atol=1e-5)


def test_the_distance_grows_with_the_strength():
    keys = sample_keys(jax.random.key(0), jnp.arange(500))
    x_0 = jnp.asarray(LAW.sample(np.random.default_rng(1), 500)[0], jnp.float32)
    little, much = (float(jnp.mean((sdedit(partial_table(TABLE, part), x_0, keys) - x_0) ** 2)) for part in (0.2, 0.8))
    assert little < 0.1 < 0.5 < much


def test_a_sample_does_not_depend_on_its_batch():
    part = partial_table(TABLE, 0.5)
    of_two = np.asarray(sdedit(part, X_0[2:], KEYS[2:]))
    np.testing.assert_allclose(of_two, np.asarray(sdedit(part, X_0, KEYS))[2:], atol=1e-6)


def test_with_resampling():
    table = repaint_table(partial_table(TABLE, 0.6), PROCESS, jump_length=2, num_resamplings=2)
    assert table.num_calls == 6 + 2 * 2 and int(table.t[0]) == int(TABLE.t[4])


def test_what_is_refused():
    for strength in (-0.1, 1.1, np.nan):
        with pytest.raises(UserError, match="strength must be in"):
            partial_table(TABLE, strength)
    with pytest.raises((UserError, TypeError), match="strength"):  # where the tests check types
        partial_table(TABLE, "a")
    with pytest.raises(UserError, match=r"looks back 1: make the table from the last of its steps: steps="):
        partial_table(dpmpp_table(PROCESS.schedule, order=2), 0.5)
    with pytest.raises(UserError, match="x_0 must have the shape"):
        noised_start(PROCESS, TABLE, X_0[:3], KEYS)
    with pytest.raises(UserError, match="x_0 must be floats"):
        noised_start(PROCESS, TABLE, np.zeros((NUM, *SHAPE), np.uint8), KEYS)
