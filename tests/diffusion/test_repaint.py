"""RePaint: the published walk, exact rises, a slow loop, and the law that it is meant to draw from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.edits.inpainting import known_region
from ddpm_jax.diffusion.edits.repaint import repaint_table
from ddpm_jax.diffusion.exact import exact_model_fn, make_mixture
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys, sample_noise
from ddpm_jax.diffusion.samplers import (
    ancestral_table,
    ddim_table,
    dpmpp_table,
    initial_noise,
    sample_loop,
)
from ddpm_jax.diffusion.samplers.sampling_loop import (
    edit_noise,
    init_sampler_state,
    rise_noise,
    walk_rows,
)
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.runtime.errors import UserError

T, D = 100, 2
PROCESS = Process(make_schedule("cosine", num_steps=T), variance="fixed_small")
STEPS = spaced_steps(T, 12)
ABAR = PROCESS.schedule.host_alphas_bar
COVARIANCE = np.array([[0.3, 0.25], [0.25, 0.4]])
GAUSSIAN = make_mixture(np.zeros((1, D)), covariances=COVARIANCE[None])
# Two modes; what is known of the first number tells which.
MIXTURE = make_mixture(np.array([[-0.5, -0.6], [0.5, 0.6]]), std=0.25)
MASK, KNOWN = np.array([True, False]), np.array([0.4, 0.0], np.float32)
FALLING = {"ancestral": ancestral_table(PROCESS, steps=STEPS), "ddim": ddim_table(PROCESS.schedule, steps=STEPS)}
JUMPS = {"jump_length": 3, "num_resamplings": 4}
TABLE = repaint_table(FALLING["ancestral"], PROCESS, **JUMPS)


def denoise_fn_of(law):
    return make_denoiser(PROCESS, exact_model_fn(PROCESS, law), x_0_limit=None)


@jax.jit
def repaint(table, keys, x_0=KNOWN):
    edit_fn = known_region(PROCESS, x_0, MASK)
    return sample_loop(denoise_fn_of(GAUSSIAN), table, initial_noise(keys, (D,)), keys, edit_fn=edit_fn)


@jax.jit
def repaint_mixture(table, keys):
    edit_fn = known_region(PROCESS, KNOWN, MASK)
    return sample_loop(denoise_fn_of(MIXTURE), table, initial_noise(keys, (D,)), keys, edit_fn=edit_fn)


def keys_of(ids, seed=0):
    return sample_keys(jax.random.key(seed), jnp.asarray(ids))


def own_noise(keys, row, shape):
    """The sampler's."""
    return sample_noise(keys, row.row + 1, shape)


def published_walk(num_steps, jump_length, num_resamplings):
    """The steps visited, by counting down with a store of jumps (Lugmayr et al. 2022, appendix B); -1 is x_0."""
    left = {at: num_resamplings - 1 for at in range(0, num_steps - jump_length, jump_length)}
    at = num_steps - 1
    visited = [at]
    while at >= 0:
        at -= 1
        visited.append(at)
        if left.get(at, 0) > 0:
            left[at] -= 1
            at += jump_length
            visited.append(at)
    return visited


@pytest.mark.parametrize("num_steps, jump_length, num_resamplings", [(12, 3, 4), (12, 5, 2), (13, 3, 3), (5, 1, 2)])
def test_the_walk_is_the_published_one(num_steps, jump_length, num_resamplings):
    steps = spaced_steps(T, num_steps)
    table = repaint_table(
        ancestral_table(PROCESS, steps=steps), PROCESS, jump_length=jump_length, num_resamplings=num_resamplings
    )
    visited = published_walk(num_steps, jump_length, num_resamplings)
    falls = [(a, b) for a, b in zip(visited[:-1], visited[1:], strict=True) if b < a]
    t_of = lambda at: -1 if at < 0 else int(steps[::-1][at])  # noqa: E731
    assert [(int(t), int(s)) for t, s in zip(table.t, table.s, strict=True)] == [(t_of(a), t_of(b)) for a, b in falls]
    np.testing.assert_array_equal(table.row, np.arange(table.num_calls))
    rises = np.append(np.asarray(table.t[1:]) > np.asarray(table.s[:-1]), False)
    np.testing.assert_array_equal(np.asarray(table.rise_noise) > 0, rises)
    assert table.num_calls == num_steps + len(range(0, num_steps - jump_length, jump_length)) * (
        (num_resamplings - 1) * jump_length
    )


def test_the_number_of_calls_of_the_paper():
    process = Process(make_schedule("linear"))
    table = repaint_table(ancestral_table(process, steps=spaced_steps(1000, 250)), process)
    assert table.num_calls == 2410


@pytest.mark.parametrize("name", ["linear", "cosine", "jsd"])
def test_a_rise_is_q_step_by_step(name):
    """Mean and variance, against each of the T single steps in turn, in float64."""
    process = Process(make_schedule(name, num_steps=T), prediction="v")
    betas, steps = np.asarray(1 - process.schedule.host_alphas_bar[1:] / process.schedule.host_alphas_bar[:-1]), STEPS
    table = repaint_table(ddim_table(process.schedule, steps=steps), process, **JUMPS)
    for i in np.flatnonzero(np.asarray(table.rise_noise) > 0):
        scale, variance = 1.0, 0.0
        for beta in betas[int(table.s[i]) : int(table.t[i + 1])]:
            scale, variance = scale * np.sqrt(1 - beta), (1 - beta) * variance + beta
        np.testing.assert_allclose(table.rise_scale[i], scale, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(table.rise_noise[i], np.sqrt(variance), rtol=1e-6)
    calm = np.asarray(table.rise_noise) == 0
    np.testing.assert_array_equal(np.asarray(table.rise_scale)[calm], np.ones(calm.sum()))


def test_fractional_steps():
    steps = np.array([90.5, 60.25, 30.0, 10.5, 0.0])
    table = repaint_table(ddim_table(PROCESS.schedule, steps=steps), PROCESS, jump_length=2, num_resamplings=2)
    i = int(np.flatnonzero(np.asarray(table.rise_noise) > 0)[0])
    (s, _), (t, _) = (PROCESS.levels(end[None], ndim=1) for end in (table.s[i], table.t[i + 1]))
    np.testing.assert_allclose(table.rise_scale[i], t[0] / s[0], rtol=1e-5)


@pytest.mark.parametrize("name", FALLING)
def test_one_resampling_is_replacement(name):
    once = repaint_table(FALLING[name], PROCESS, jump_length=3, num_resamplings=1)
    assert once.rise_scale is None
    np.testing.assert_array_equal(repaint(once, keys_of(range(6))), repaint(FALLING[name], keys_of(range(6))))


def test_a_slow_loop_with_the_same_noise():
    """Algorithm 1 in float64 from the published walk: ancestral steps, the known part, rises."""
    keys = keys_of(range(6))
    drawn = {
        draw: np.asarray(jax.lax.map(lambda row: draw(keys, row, (D,)), TABLE), np.float64)  # noqa: B023
        for draw in (own_noise, edit_noise, rise_noise)
    }
    levels = np.append(ABAR[STEPS[::-1]], 1.0)  # of step 0..S-1; the last, at index -1, is x_0
    visited = published_walk(len(STEPS), **JUMPS)
    x, row = np.asarray(initial_noise(keys, (D,)), np.float64), 0
    for at, to in zip(visited[:-1], visited[1:], strict=True):
        a, b = levels[at], levels[to]
        if to > at:
            x = np.sqrt(b / a) * x + np.sqrt(1 - b / a) * drawn[rise_noise][row - 1]
            continue
        x_0 = np.sqrt(a) * x @ np.linalg.inv(a * COVARIANCE + (1 - a) * np.eye(D)) @ COVARIANCE
        beta = 1 - a / b
        mean = np.sqrt(b) * beta / (1 - a) * x_0 + np.sqrt(1 - beta) * (1 - b) / (1 - a) * x
        x = mean + np.sqrt(beta * (1 - b) / (1 - a)) * drawn[own_noise][row]
        known = np.sqrt(b) * KNOWN + np.sqrt(1 - b) * drawn[edit_noise][row]
        x, row = np.where(MASK, known, x), row + 1
    assert row == TABLE.num_calls
    np.testing.assert_allclose(repaint(TABLE, keys), x, atol=5e-5)  # float32 over 39 rows


def test_each_noise_is_its_own():
    keys = keys_of(range(3))
    of_row = lambda row: [draw(keys, row, (D,)) for draw in (own_noise, edit_noise, rise_noise)]  # noqa: E731
    seen = np.asarray(jax.lax.map(of_row, TABLE))  # [3, R, B, D]
    first = np.asarray(initial_noise(keys, (D,)))
    assert len(np.unique(np.append(seen, first))) == seen.size + first.size


def test_what_is_known_is_kept_and_a_sample_does_not_depend_on_its_batch():
    whole = np.asarray(repaint(TABLE, keys_of(range(6))))
    np.testing.assert_array_equal(whole[:, 0], np.full(6, KNOWN[0]))
    np.testing.assert_allclose(repaint(TABLE, keys_of([4, 1])), whole[[4, 1]], atol=1e-5)


def test_parts_of_the_table_are_the_whole():
    """Padded to one length, with the number of rows known only on the device."""
    keys, edit_fn = keys_of(range(6)), known_region(PROCESS, KNOWN, MASK)
    whole = np.asarray(repaint(TABLE, keys))
    host = jax.tree.map(np.asarray, TABLE)
    denoise_fn, x_T = denoise_fn_of(GAUSSIAN), initial_noise(keys, (D,))
    walk = jax.jit(lambda rows, num, state: walk_rows(denoise_fn, rows, num, state, keys, edit_fn=edit_fn))
    state = init_sampler_state(host.padded(64, learns_variance=False, rises=True), x_T)
    for start, stop in ((0, 8), (8, 23), (23, 39)):
        assert stop == TABLE.num_calls or TABLE.rise_noise[stop - 1] > 0
        part = host.rows(start, stop)
        state = walk(part.padded(20, learns_variance=False, rises=True), np.int32(stop - start), state)
    np.testing.assert_allclose(state.x_t, whole, atol=1e-5)  # another program: roundings
    # A table without a rise runs in the same program.
    plain = jax.tree.map(np.asarray, FALLING["ancestral"]).padded(20, learns_variance=False, rises=True)
    calm = walk(plain, np.int32(len(STEPS)), init_sampler_state(plain, x_T))
    np.testing.assert_allclose(calm.x_t, repaint(FALLING["ancestral"], keys), atol=1e-5)
    assert walk._cache_size() == 1


def test_padding():
    plain = jax.tree.map(np.asarray, FALLING["ancestral"])
    assert plain.padded(20, learns_variance=False).rise_scale is None
    with pytest.raises(ValueError, match="rises=True"):
        TABLE.padded(64, learns_variance=False)


def test_it_is_nearer_to_the_exact_law_than_replacement():
    """The unknown number given the known one, by the Wasserstein distance in one dimension, of 4,000 draws."""
    exact = MIXTURE.given_observation(np.eye(D)[:1], KNOWN[:1])
    drawn = exact.sample(np.random.default_rng(0), 4000)[0][:, 1]
    falling = ancestral_table(PROCESS, steps=spaced_steps(T, 20))
    distances = []
    for table in (falling, repaint_table(falling, PROCESS, jump_length=4, num_resamplings=8)):
        samples = np.asarray(repaint_mixture(table, keys_of(range(4000))))[:, 1]
        distances.append(np.sqrt(np.mean((np.sort(samples) - np.sort(drawn)) ** 2)))
    replacement, resampled = distances
    assert resampled < 0.5 * replacement


@pytest.mark.parametrize(
    "table, settings, match",
    [
        (dpmpp_table(PROCESS.schedule, steps=STEPS, order=2), {}, "of first order.*looks back 1: take ancestral"),
        (TABLE, {}, "rises already"),
        (FALLING["ddim"].rows(0, 2).replace(t=np.array([0, 5]), s=np.array([5, -1])), {}, "fall step by step"),
        (FALLING["ddim"].rows(0, 6), {}, "fall step by step"),
        (FALLING["ddim"], {"jump_length": 12}, "jump_length must be below the sampler's 12"),
        (FALLING["ddim"], {"jump_length": 0}, "jump_length must be at least 1"),
        (FALLING["ddim"], {"num_resamplings": 0}, "num_resamplings must be at least 1"),
        (FALLING["ddim"], {"jump_length": 1, "num_resamplings": 10**8}, "at most 1,000,000.* are 1,100,000,001"),
    ],
)
def test_what_is_refused(table, settings, match):
    with pytest.raises(UserError, match=match):
        repaint_table(table, PROCESS, **JUMPS | settings)
