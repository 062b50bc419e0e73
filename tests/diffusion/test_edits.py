"""An edit after each row of any sampler's table: what is known is put back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys
from ddpm_jax.diffusion.samplers import ancestral_table, ddim_table, dpmpp_table, unipc_table
from ddpm_jax.diffusion.samplers.sampling_loop import edit_noise, p_sample_loop, watching
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import spaced_steps

T, D, NUM = 50, 3, 4000
PROCESS = Process(make_schedule("cosine", num_steps=T))
STEPS = spaced_steps(T, 25)
TABLES = {
    "ancestral": ancestral_table(PROCESS, steps=STEPS),
    "ddim": ddim_table(PROCESS.schedule, steps=STEPS),
    "dpmpp_2m": dpmpp_table(PROCESS.schedule, steps=STEPS, order=2),
    "unipc": unipc_table(PROCESS.schedule, steps=STEPS, order=2),
}
# Data N(0, COVARIANCE): knowing the first number tells of the others.
COVARIANCE = np.array([[0.3, 0.2, 0.1], [0.2, 0.4, 0.1], [0.1, 0.1, 0.3]])
KNOWN = jnp.array([[0.5, -0.3, 0.8]], jnp.float32)


def exact(x_t, t):
    """E[x_0 | x_t], and eps of it."""
    a, n = (level[0, 0] for level in PROCESS.levels(t, ndim=2))  # one t for all
    covariance = jnp.asarray(COVARIANCE, jnp.float32)
    gain = a * covariance @ jnp.linalg.inv(a**2 * covariance + n**2 * jnp.eye(D))
    return (x_t - a * (x_t @ gain.T)) / n


def replace_known(mask):
    """Replacement: where the mask is 1, x_s := q(x_s | what is known)."""

    def edit_fn(x_s, denoised, row, keys):
        signal, noise = PROCESS.levels(row.s[None], ndim=2)
        known = signal * KNOWN + noise * edit_noise(keys, row, x_s.shape[1:])
        return jnp.where(mask[None] == 1, known, x_s)

    return edit_fn


def draw(name, edit_fn=None, num=8, **settings):
    denoise_fn = make_denoiser(PROCESS, exact, x_0_limit=None)
    run = lambda key: p_sample_loop(  # noqa: E731
        denoise_fn, TABLES[name], key=key, num_samples=num, shape=(D,), edit_fn=edit_fn, **settings
    )
    return np.asarray(jax.jit(run)(jax.random.key(0)))


@pytest.mark.parametrize("name", TABLES)
def test_the_limits_of_a_mask(name):
    """All known is the image itself; nothing known is the sampler without an edit."""
    np.testing.assert_array_equal(draw(name, replace_known(jnp.ones(D))), np.repeat(KNOWN, 8, 0))
    np.testing.assert_array_equal(draw(name, replace_known(jnp.zeros(D))), draw(name))


def mean_by_hand(name):
    """The mean of the samples: every row and every edit is affine, so that it can be walked alone."""
    table = jax.tree.map(lambda column: np.asarray(column, np.float64), TABLES[name])
    abar = PROCESS.schedule.host_alphas_bar
    mean, history = np.zeros(D), [np.zeros(D)] * table.num_remembered
    for i, (t, s) in enumerate(zip(table.t.astype(int), table.s.astype(int), strict=True)):
        a, n2 = np.sqrt(abar[t]), 1 - abar[t]
        x_0 = a * COVARIANCE @ np.linalg.inv(a**2 * COVARIANCE + n2 * np.eye(D)) @ mean
        remembered = table.r_x_0[i] * x_0 + table.r_x_t[i] * mean if history else None
        mean = table.c_x_0[i] * x_0 + table.c_x_t[i] * mean
        mean = mean + sum((table.c_history[i, k] * value for k, value in enumerate(history)), np.zeros(D))
        history = [remembered, *history[:-1]] if history else []
        mean[0] = (np.sqrt(abar[s]) if s >= 0 else 1.0) * float(KNOWN[0, 0])
    return mean


@pytest.mark.parametrize("name", TABLES)
def test_what_is_known_is_kept_and_the_rest_follows(name):
    samples = draw(name, replace_known(jnp.array([1, 0, 0])), num=NUM)
    np.testing.assert_array_equal(samples[:, 0], np.full(NUM, KNOWN[0, 0]))
    error = samples.std(0) / np.sqrt(NUM)
    assert np.all(np.abs(samples.mean(0) - mean_by_hand(name))[1:] < 4 * error[1:])  # four deviations
    assert np.all(np.abs(mean_by_hand(name)[1:]) > 5 * error[1:])  # so that 0 would be told from it


def test_frames_are_those_after_the_edit():
    frames = draw("ddim", replace_known(jnp.ones(D)), num_frames=5)
    np.testing.assert_array_equal(frames[-1], np.repeat(KNOWN, 8, 0))
    np.testing.assert_array_equal(frames[1:], draw("ddim", replace_known(jnp.ones(D)), num_frames=5)[1:])


@pytest.mark.parametrize("name", TABLES)
def test_a_watcher_sees_each_row_and_changes_nothing(name):
    seen = []
    edit_fn = replace_known(jnp.array([1, 0, 0]))
    watched = draw(name, watching(lambda *row: seen.append(jax.tree.map(np.asarray, row)), edit_fn), num_frames=25)
    jax.effects_barrier()
    # Another program, in which sums may be fused otherwise: some roundings of values up to 5.
    np.testing.assert_allclose(watched, draw(name, edit_fn, num_frames=25), atol=1e-5)
    table = TABLES[name]
    assert [int(row) for row, *_ in seen] == list(range(25))
    for (_, t, s, x_s, x_0_hat), before, after in zip(seen, watched[:-1], watched[1:], strict=True):
        np.testing.assert_array_equal(x_s, after)
        x_0 = make_denoiser(PROCESS, exact, x_0_limit=None)(jnp.asarray(before), jnp.full(8, t)).x_0_hat
        np.testing.assert_allclose(x_0_hat, x_0, atol=1e-4 * np.abs(x_0).max())
        assert t in np.asarray(table.t) and s in np.asarray(table.s)


def test_the_noise_of_an_edit_is_its_own():
    keys = sample_keys(jax.random.key(0), jnp.arange(4))
    rows = [jax.tree.map(lambda column: column[i], TABLES["ddim"]) for i in (0, 1)]  # noqa: B023
    one, other = (np.asarray(edit_noise(keys, row, (D,))) for row in rows)
    assert len(np.unique(np.concatenate([one, other]))) == 8 * D
    np.testing.assert_array_equal(edit_noise(keys[2:], rows[0], (D,)), one[2:])


def test_the_levels_of_a_row():
    table = TABLES["ddim"]
    signal, noise = PROCESS.levels(table.s, ndim=2)
    np.testing.assert_allclose(signal[:, 0] ** 2 + noise[:, 0] ** 2, np.ones(25), rtol=1e-6)
    assert float(signal[-1, 0]) == 1 and float(noise[-1, 0]) == 0
    expected = np.asarray(PROCESS.schedule.sqrt_alphas_bar)[np.asarray(table.s[:-1])]
    np.testing.assert_array_equal(signal[:-1, 0], expected)
