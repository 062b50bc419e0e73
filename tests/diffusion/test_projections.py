"""Measurements and their pseudo-inverses; DDNM and ILVR."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.edits.ilvr import block_average, ilvr
from ddpm_jax.diffusion.edits.projections import (
    average_measurement,
    channel_measurement,
    pixel_measurement,
    range_null_projection,
)
from ddpm_jax.diffusion.exact import downsample, exact_model_fn, make_mixture
from ddpm_jax.diffusion.guidance import classifier_free_guidance, make_guidance
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys
from ddpm_jax.diffusion.samplers import ancestral_table, ddim_table, edit_noise, p_sample_loop
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.runtime.errors import UserError

T, SHAPE, NUM = 60, (4, 4, 3), 5
PROCESS = Process(make_schedule("cosine", num_steps=T))
STEPS = spaced_steps(T, 10)
RNG = np.random.default_rng(0)
LAW = make_mixture(RNG.uniform(-0.7, 0.7, (2, *SHAPE)), std=0.2)
X = jnp.asarray(RNG.uniform(-1, 1, (NUM, *SHAPE)), jnp.float32)
MASK = RNG.random((4, 4, 1)) < 0.4
GREY, LUMA = np.full((1, 3), 1 / 3), np.array([[0.299, 0.587, 0.114], [1.0, 0.0, -1.0]])
MEASUREMENTS = {
    "pixels": pixel_measurement(MASK),
    "grey": channel_measurement(GREY),
    "luma": channel_measurement(LUMA),
    "averages": average_measurement(2),
}
TABLES = {"ancestral": ancestral_table(PROCESS, steps=STEPS), "ddim": ddim_table(PROCESS.schedule, steps=STEPS)}


def matrix_of(function, shape):
    units = jnp.eye(int(np.prod(shape))).reshape(-1, *shape)
    return np.asarray(function(units), np.float64).reshape(len(units), -1).T


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_the_pseudo_inverse(name):
    """Of Moore and Penrose, as NumPy finds it from the matrix of the measurement."""
    measure, back = MEASUREMENTS[name].measure, MEASUREMENTS[name].pseudo_inverse
    matrix = matrix_of(measure, SHAPE)
    pinv = matrix_of(back, measure(X).shape[1:])
    np.testing.assert_allclose(pinv, np.linalg.pinv(matrix), atol=1e-5)


def test_measurements_by_hand():
    np.testing.assert_allclose(MEASUREMENTS["grey"].measure(X)[..., 0], np.mean(X, axis=-1), atol=1e-6)
    of_blocks = np.stack([downsample(np.asarray(x), 2) for x in X])
    np.testing.assert_allclose(MEASUREMENTS["averages"].measure(X), of_blocks, atol=1e-6)
    np.testing.assert_array_equal(MEASUREMENTS["pixels"].measure(X), np.where(MASK, X, 0))
    line = jnp.arange(6.0).reshape(1, 6, 1)  # of a signal
    assert average_measurement(3).measure(line)[0, :, 0].tolist() == [1.0, 4.0]
    assert block_average(3)(line)[0, :, 0].tolist() == [1.0, 1.0, 1.0, 4.0, 4.0, 4.0]


def draw(table, project_fn=None, edit_fn=None):
    denoise_fn = make_denoiser(PROCESS, exact_model_fn(PROCESS, LAW), project_fn=project_fn)
    return np.asarray(
        jax.jit(
            lambda table, key: p_sample_loop(
                denoise_fn, table, key=key, num_samples=NUM, shape=SHAPE, edit_fn=edit_fn
            )
        )(table, jax.random.key(0))
    )  # fmt: skip


@functools.cache
def free(sampler):
    return jnp.asarray(draw(TABLES[sampler]))


@pytest.mark.parametrize("name, sampler", list(zip(MEASUREMENTS, [*TABLES] * 2, strict=True)))
def test_ddnm_agrees_with_the_measurement(name, sampler):
    one, table = MEASUREMENTS[name], TABLES[sampler]
    y = one.measure(X)
    samples = draw(table, range_null_projection(one, y))
    np.testing.assert_allclose(one.measure(jnp.asarray(samples)), y, atol=3e-6)  # some roundings of values up to 3
    assert np.abs(one.measure(free(sampler)) - y).max() > 0.1


def test_the_projection_is_after_the_limit_and_of_equation_13():
    one = MEASUREMENTS["averages"]
    y = jnp.full((1, 2, 2, 3), 1.5)  # outside the limit
    denoise_fn = make_denoiser(PROCESS, lambda x_t, t: 0 * x_t, project_fn=range_null_projection(one, y))
    x_0_hat = denoise_fn(X, jnp.zeros(NUM, jnp.int32)).x_0_hat
    plain = make_denoiser(PROCESS, lambda x_t, t: 0 * x_t)(X, jnp.zeros(NUM, jnp.int32)).x_0_hat
    matrix = matrix_of(one.measure, SHAPE)
    pinv = np.linalg.pinv(matrix)
    wanted = pinv @ np.full(12, 1.5) + np.asarray(plain).reshape(NUM, -1) @ (np.eye(48) - pinv @ matrix).T
    np.testing.assert_allclose(x_0_hat, wanted.reshape(X.shape), atol=1e-5)
    assert x_0_hat.max() > 1.2


def test_the_carry_and_the_reference_are_projected():
    one, seven = MEASUREMENTS["grey"], jnp.full((4, 4, 1), 0.7)
    settings = {"project_fn": range_null_projection(one, seven)}
    carry = make_denoiser(
        PROCESS, lambda x_t, t: x_t[..., :3], self_conditioning=True, x_0_prev_limit=None, **settings
    )(X, jnp.zeros(NUM, jnp.int32)).carry
    np.testing.assert_allclose(one.measure(carry), np.full((NUM, 4, 4, 1), 0.7), atol=1e-6)
    guidance = make_guidance({"label": jnp.full(NUM, 2)}, scale=0.5, renoises=True)
    reference = make_denoiser(
        PROCESS, exact_model_fn(PROCESS, LAW), condition={"label": jnp.zeros(NUM, jnp.int32)},
        guide=classifier_free_guidance(PROCESS, guidance), **settings,
    )(X, jnp.zeros(NUM, jnp.int32)).x_0_reference  # fmt: skip
    np.testing.assert_allclose(one.measure(reference), np.full((NUM, 4, 4, 1), 0.7), atol=1e-6)


def test_no_projection_is_the_same_program():
    texts = [
        jax.jit(make_denoiser(PROCESS, lambda x_t, t: 0.5 * x_t, **settings))
        .lower(X, jnp.zeros(NUM, jnp.int32)).as_text()
        for settings in ({}, {"project_fn": None}, {"project_fn": lambda x_0_hat, t: x_0_hat})
    ]  # fmt: skip
    assert texts[0] == texts[1] == texts[2]


def test_ilvr_keeps_the_low_frequencies():
    phi, table = block_average(2), TABLES["ddim"]
    samples = draw(table, edit_fn=ilvr(PROCESS, X, phi))
    np.testing.assert_allclose(phi(jnp.asarray(samples)), phi(X), atol=3e-6)
    assert np.abs(phi(free("ddim")) - phi(X)).max() > 0.1
    assert np.abs(samples - X).max() > 0.1


def test_ilvr_with_the_identity_is_the_reference_at_the_level_of_the_row():
    keys, row = sample_keys(jax.random.key(0), jnp.arange(NUM)), jax.tree.map(lambda c: c[3], TABLES["ddim"])
    denoised = make_denoiser(PROCESS, lambda x_t, t: x_t)(X, jnp.zeros(NUM, jnp.int32))
    got = ilvr(PROCESS, X, lambda x: x)(jnp.zeros_like(X), denoised, row, keys)
    abar = PROCESS.schedule.host_alphas_bar[STEPS[4]]
    wanted = np.sqrt(abar) * X + np.sqrt(1 - abar) * edit_noise(keys, row, SHAPE)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    # Rows that end below the last step are not edited.
    for last_step, edited in ((int(row.s), wanted), (int(row.s) + 1, jnp.zeros_like(X))):
        got = ilvr(PROCESS, X, lambda x: x, last_step=last_step)(jnp.zeros_like(X), denoised, row, keys)
        np.testing.assert_allclose(got, edited, atol=1e-6)


def test_what_is_refused():
    for matrix in (np.zeros((1, 3)), np.ones((2, 3)), np.ones(3), np.array([[np.nan, 1.0, 1.0]])):
        with pytest.raises(UserError, match="matrix must be"):
            channel_measurement(matrix)
    with pytest.raises(UserError, match="factor must be at least 1"):
        average_measurement(0)
    with pytest.raises(UserError, match=r"factor must divide the sizes \[4, 4\]; got 3"):
        average_measurement(3).measure(X)
    with pytest.raises(UserError, match="y must be finite"):
        range_null_projection(MEASUREMENTS["grey"], np.full((4, 4, 1), np.nan, np.float32))
    with pytest.raises(UserError, match="y must be floats"):
        range_null_projection(MEASUREMENTS["grey"], np.ones((4, 4, 1), np.uint8))
    with pytest.raises(UserError, match="y must have the shape"):
        range_null_projection(MEASUREMENTS["grey"], jnp.zeros((4, 4, 3)))(X, jnp.zeros(NUM, jnp.int32))
    with pytest.raises(UserError, match="reference must be floats"):
        ilvr(PROCESS, np.ones(SHAPE, np.uint8), block_average(2))
