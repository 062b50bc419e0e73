"""Replacement: what is known is kept exactly, and what is unknown is as without an edit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.edits.inpainting import known_region
from ddpm_jax.diffusion.exact import exact_model_fn, make_mixture
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys
from ddpm_jax.diffusion.samplers import ancestral_table, ddim_table, dpmpp_table, heun_table, initial_noise, sample_loop
from ddpm_jax.diffusion.samplers.sampling_loop import edit_noise
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.runtime.errors import UserError

T, SHAPE = 40, (2, 3)
PROCESS = Process(make_schedule("cosine", num_steps=T))
STEPS = spaced_steps(T, 8)
RNG = np.random.default_rng(0)
LAW = make_mixture(RNG.uniform(-0.6, 0.6, (2, *SHAPE)), std=0.2)
DENOISE_FN = make_denoiser(PROCESS, exact_model_fn(PROCESS, LAW), x_0_limit=None)
TABLES = {
    "ancestral": ancestral_table(PROCESS, steps=STEPS),
    "ddim": ddim_table(PROCESS.schedule, steps=STEPS),
    "dpmpp_2m": dpmpp_table(PROCESS.schedule, steps=STEPS, order=2),
    "heun": heun_table(PROCESS.schedule, steps=STEPS),
}
X_0 = jnp.asarray(RNG.uniform(-1, 1, (6, *SHAPE)), jnp.float32)
MASK = np.array([[1, 0, 0], [0, 1, 0]], bool)


@functools.partial(jax.jit, static_argnames="edited")
def _draw(table, keys, x_0, mask, edited):
    edit_fn = known_region(PROCESS, x_0, mask) if edited else None
    return sample_loop(DENOISE_FN, table, initial_noise(keys, SHAPE), keys, edit_fn=edit_fn)


def draw(name, mask, ids=range(6), edited=True):
    keys = sample_keys(jax.random.key(1), jnp.asarray(list(ids)))
    return np.asarray(_draw(TABLES[name], keys, X_0[np.asarray(list(ids))], jnp.asarray(mask), edited))


@pytest.mark.parametrize("name", TABLES)
def test_the_limits_of_a_mask_and_what_is_between(name):
    free = draw(name, MASK, edited=False)
    np.testing.assert_array_equal(draw(name, np.ones(SHAPE, bool)), X_0)
    np.testing.assert_array_equal(draw(name, np.zeros(SHAPE, bool)), free)
    samples = draw(name, MASK)
    np.testing.assert_array_equal(samples[:, MASK], X_0[:, MASK])
    assert np.all(samples[:, ~MASK] != X_0[:, ~MASK])
    assert np.abs(samples - free)[:, ~MASK].max() > 1e-3  # it learns of what is known


def test_the_level_is_that_of_the_end_of_the_row():
    """Against the closed form, with the noise drawn by hand."""
    table, keys = TABLES["ddim"], sample_keys(jax.random.key(1), jnp.arange(6))
    edit_fn = known_region(PROCESS, X_0, MASK)
    for i in (0, 3, len(STEPS) - 1):
        row = jax.tree.map(lambda column: column[i], table)  # noqa: B023
        got = _edited(edit_fn, row, keys)
        abar = PROCESS.schedule.host_alphas_bar[STEPS[i + 1]] if i + 1 < len(STEPS) else 1.0
        known = np.sqrt(abar) * X_0 + np.sqrt(1 - abar) * edit_noise(keys, row, SHAPE)
        np.testing.assert_allclose(got, np.where(MASK, known, 9.0), atol=1e-6)


def _edited(edit_fn, row, keys):
    denoised = DENOISE_FN(X_0, jnp.zeros(6, jnp.int32))
    return edit_fn(jnp.full_like(X_0, 9.0), denoised, row, keys)


def test_a_sample_does_not_depend_on_its_batch():
    whole = draw("ancestral", MASK)
    np.testing.assert_allclose(draw("ancestral", MASK, ids=[4, 2]), whole[[4, 2]], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float32])
def test_masks_of_other_types(dtype):
    np.testing.assert_array_equal(draw("ddim", MASK.astype(dtype)), draw("ddim", MASK))


@pytest.mark.parametrize("value", [np.nan, 0.5, -1, 255])
def test_other_values_of_a_mask_are_refused(value):
    with pytest.raises(UserError, match="mask must be boolean"):
        known_region(PROCESS, X_0, np.where(MASK, value, 0))


def test_other_types_of_a_mask_are_refused():
    with pytest.raises(UserError, match="mask must be boolean.*complex"):
        known_region(PROCESS, X_0, MASK.astype(complex))


def test_known_values_must_be_finite_floats():
    with pytest.raises(UserError, match="x_0 must be floats"):
        known_region(PROCESS, np.zeros(SHAPE, np.uint8), MASK)
    x_0 = np.where(MASK, np.nan, X_0[0]).astype(np.float32)
    with pytest.raises(UserError, match="x_0 must be finite"):
        known_region(PROCESS, x_0, MASK)
    known_region(PROCESS, x_0, ~MASK)  # what is not known may be anything


@pytest.mark.parametrize(
    "x_0, mask, name", [(X_0[:, :, :2], True, "x_0"), (X_0, MASK[:, :2], "mask"), (X_0[None], MASK, "x_0")]
)
def test_shapes_that_do_not_fit(x_0, mask, name):
    row = jax.tree.map(lambda column: column[0], TABLES["ddim"])
    with pytest.raises(UserError, match=f"{name} must have the shape"):
        _edited(known_region(PROCESS, x_0, np.asarray(mask)), row, sample_keys(jax.random.key(1), jnp.arange(6)))


def test_nan_outside_the_mask_does_no_harm():
    row = jax.tree.map(lambda column: column[0], TABLES["ddim"])
    edit_fn = known_region(PROCESS, np.where(MASK, X_0[0], np.nan).astype(np.float32), MASK)
    got = _edited(edit_fn, row, sample_keys(jax.random.key(1), jnp.arange(6)))
    assert np.all(np.isfinite(got))
