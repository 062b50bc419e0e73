"""The generator beside `diffusion.samplers.coefficient_table.sample`: chunks, batches, what a watcher sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.codecs.codec import PIXELS
from ddpm_jax.codecs.pixels import to_uint8
from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.edits import known_region, make_mask, repaint_table
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import seed_keys
from ddpm_jax.diffusion.samplers import ddim_table, dpmpp_table, edit_noise, plms_table
from ddpm_jax.diffusion.samplers.ancestral import ancestral_table
from ddpm_jax.diffusion.samplers.sampling_loop import p_sample_loop
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.experiment.edit import Edit
from ddpm_jax.experiment.generator import Generator
from ddpm_jax.runtime.chunked_loop import chunks_of
from ddpm_jax.runtime.devices import make_mesh
from ddpm_jax.runtime.errors import UserError

SHAPE = (2, 3, 1)


PARAMS = {"w": jnp.float32(0.5)}


def generator(num_steps, batch_size=8, num_devices=8):
    process = Process(make_schedule("cosine", num_steps=num_steps))
    return Generator(
        lambda params, labels: make_denoiser(process, lambda x_t, t: params["w"] * x_t), ancestral_table(process),
        image_shape=SHAPE, mesh=make_mesh(num_devices), batch_size=batch_size,
    )  # fmt: skip


def test_samples_that_are_not_finite_are_an_error_and_no_black_images():
    params = {"w": jnp.float32(np.nan)}
    with pytest.raises(UserError, match="^samples 0 to 7 became NaN or infinite: take more sampler steps, another"):
        generator(3).generate(params, seed=0, num_samples=11)
    images = generator(3).allowing_nonfinite().generate(params, seed=0, num_samples=11)
    assert images.shape == (11, *SHAPE) and images.dtype == np.uint8


@pytest.mark.parametrize("num_steps", [1, 20, 53, 120])  # one step; a chunk a step; a prime; chunks of 3
def test_equals_one_scan(num_steps):
    schedule = make_schedule("cosine", num_steps=num_steps)
    denoise_fn = make_denoiser(Process(schedule), lambda x_t, t: 0.5 * x_t)
    whole = p_sample_loop(
        denoise_fn, ancestral_table(Process(schedule)), key=seed_keys(3).sample, num_samples=5, shape=SHAPE
    )
    images = generator(num_steps).generate(PARAMS, seed=3, num_samples=5)
    assert images.shape == (5, *SHAPE) and images.dtype == np.uint8
    np.testing.assert_allclose(images.astype(int), np.asarray(to_uint8(whole)).astype(int), atol=1)


def test_a_watcher_sees_the_noise_first_and_x_0_last():
    seen, counted = [], []
    made = generator(20)
    images = made.generate(
        PARAMS, seed=0, num_samples=11, on_chunk=counted.append, watch=lambda *frame: seen.append(frame)
    )
    assert made.num_batches(11) == 2 and sum(counted) == 2 * made.num_rows
    assert [(first, t) for first, t, _ in seen] == [(first, t) for first in (0, 8) for t in range(19, -2, -1)]
    assert np.array_equal(np.concatenate([x_t for _, t, x_t in seen if t == -1])[:11], images)
    noise = np.concatenate([x_t for _, t, x_t in seen if t == 19]).astype(float) / 127.5 - 1
    assert 0.3 < noise.std() < 1  # N(0, 1), clipped


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_batches_and_devices_make_no_difference(num_devices):
    wanted = generator(20).generate(PARAMS, seed=0, num_samples=17)
    images = generator(20, batch_size=16, num_devices=num_devices).generate(PARAMS, seed=0, num_samples=17)
    assert np.array_equal(images, wanted)
    few = generator(20, num_devices=num_devices).generate(PARAMS, seed=0, num_samples=2)
    assert np.array_equal(few, wanted[:2])


SAMPLERS = {
    "ancestral": lambda process, steps: ancestral_table(process, steps=steps),
    "ddim": lambda process, steps: ddim_table(process.schedule, steps=steps, eta=0.5),
    "dpmpp_3m": lambda process, steps: dpmpp_table(process.schedule, steps=steps, order=3),
    "plms": lambda process, steps: plms_table(process.schedule, steps=steps),
}


@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_one_program_for_every_sampler_and_number_of_steps(variance):
    """And each gives what one scan of its own table gives."""
    process = Process(make_schedule("cosine", num_steps=120), variance=variance)

    def model_fn(x_t, t):
        value = 0.5 * x_t + 0.001 * t[:, None, None, None]
        return jnp.concatenate([value, 0.1 * x_t], -1) if process.learns_variance else value

    traced = []

    def denoiser_of(params, condition):
        traced.append(1)
        return make_denoiser(process, model_fn)

    first = Generator(
        denoiser_of, SAMPLERS["ancestral"](process, None), image_shape=SHAPE, mesh=make_mesh(8), batch_size=8,
        learns_variance=process.learns_variance,
    )  # fmt: skip
    for name, make in SAMPLERS.items():
        for num_steps in (120, 7):
            table = make(process, spaced_steps(120, num_steps))
            assert jnp.issubdtype(table.t.dtype, jnp.integer)
            images = first.with_table(table).generate(PARAMS, seed=1, num_samples=8)
            whole = p_sample_loop(
                make_denoiser(process, model_fn), table, key=seed_keys(1).sample, num_samples=8, shape=SHAPE
            )
            assert np.abs(images.astype(int) - np.asarray(to_uint8(whole))).max() <= 1, (name, num_steps)
    assert len(traced) == 1


@pytest.mark.parametrize("num_devices", [1, 8])
def test_an_edit_puts_back_what_is_known_of_each_sample(num_devices):
    process = Process(make_schedule("cosine", num_steps=20))
    known = np.random.default_rng(0).integers(0, 256, (11, *SHAPE), dtype=np.uint8)
    mask = np.arange(11 * 6).reshape(11, *SHAPE) % 3 == 0

    def make(arrays):
        def edit_fn(x_s, denoised, row, keys):
            signal, noise = process.levels(row.s[None], ndim=4)
            x_0 = PIXELS.encode(arrays["known"], keys)
            return jnp.where(arrays["mask"], signal * x_0 + noise * edit_noise(keys, row, x_s.shape[1:]), x_s)

        return edit_fn

    edited = Generator(
        lambda params, condition: make_denoiser(process, lambda x_t, t: params["w"] * x_t), ancestral_table(process),
        image_shape=SHAPE, mesh=make_mesh(num_devices), batch_size=8,
        edit=Edit(lambda ids: {"known": known[ids % 11], "mask": mask[ids % 11]}, make),
    )  # fmt: skip
    images = edited.generate(PARAMS, seed=3, num_samples=11)
    assert np.array_equal(images[mask], known[mask])
    assert np.mean(images[~mask] == known[~mask]) < 0.1
    few = edited.generate(PARAMS, seed=3, num_samples=3)
    assert np.array_equal(few, images[:3])


def test_a_table_that_rises():
    """RePaint in chunks, with the steps that a watcher is told."""
    process, seen = Process(make_schedule("cosine", num_steps=120)), []
    falling, denoise_fn = ancestral_table(process), make_denoiser(process, lambda x_t, t: 0.5 * x_t)
    table = repaint_table(falling, process, jump_length=2, num_resamplings=2)  # 238 rows in chunks of 4 and 5
    known, mask = np.float32(0.5) * np.ones(SHAPE, np.float32), make_mask("left", *SHAPE[:2])
    edited = Generator(
        lambda params, condition: denoise_fn, falling, image_shape=SHAPE, mesh=make_mesh(8), batch_size=8,
        edit=Edit(lambda ids: {}, lambda arrays: known_region(process, known, mask)),
    ).with_table(table)  # fmt: skip
    images = edited.generate(PARAMS, seed=1, num_samples=8, watch=lambda first, t, x_t: seen.append(t))
    whole = p_sample_loop(
        denoise_fn, table, key=seed_keys(1).sample, num_samples=8, shape=SHAPE,
        edit_fn=known_region(process, known, mask),
    )  # fmt: skip
    assert np.abs(images.astype(int) - np.asarray(to_uint8(whole))).max() <= 1
    t, stops = np.asarray(table.t), np.array([part.stop for part in chunks_of(table.num_calls)[:-1]])
    assert seen == [119, *t[stops], -1]
    assert np.any(np.asarray(table.rise_noise)[stops - 1] > 0)


def test_seeds():
    made = generator(20)
    one, other = (made.generate(PARAMS, seed=seed, num_samples=4) for seed in (0, 2**32 - 1))
    assert np.mean(one != other) > 0.5
    assert len(np.unique(one.reshape(4, -1), axis=0)) == 4


def test_no_more_is_drawn_than_asked():
    """Two pictures do not cost a batch of 256."""
    seen = []
    generator(20, batch_size=256).generate(
        PARAMS, seed=0, num_samples=2, watch=lambda first, t, x_t: seen.append(len(x_t))
    )
    assert set(seen) == {8}
    assert jax.device_count() == 8
