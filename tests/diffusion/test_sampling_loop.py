"""The walk down a sampler's table: who gets which noise, frames, and what the denoiser sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.diffusion.denoiser import Denoised, make_denoiser
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys
from ddpm_jax.diffusion.samplers.ddim import ddim_table
from ddpm_jax.diffusion.samplers.sampling_loop import frame_ends, initial_noise, p_sample_loop, sample_loop
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.runtime.errors import UserError

LINEAR = make_schedule("linear")


def noisy_denoiser(x_t, t):
    """Elementwise, so that its rounding does not depend on the batch."""
    return Denoised(x_0_hat=jnp.tanh(x_t * 0.9 + 0.01 * t.reshape(-1, *[1] * (x_t.ndim - 1))))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sample_n_does_not_depend_on_how_many_there_are(eta):
    table = ddim_table(LINEAR, steps=spaced_steps(1000, 8), eta=eta)

    def draw(n):
        return p_sample_loop(noisy_denoiser, table, key=jax.random.key(2), num_samples=n, shape=(3, 2, 1))

    sixteen = draw(16)
    np.testing.assert_array_equal(draw(5), sixteen[:5])
    # All samples differ, and so does another seed.
    assert len(np.unique(np.asarray(sixteen).reshape(16, -1), axis=0)) == 16
    other = p_sample_loop(noisy_denoiser, table, key=jax.random.key(3), num_samples=16, shape=(3, 2, 1))
    assert np.all(np.any(np.asarray(other != sixteen).reshape(16, -1), axis=1))


def test_noise_differs_from_row_to_row_and_from_x_T():
    """A row that does nothing but add its noise shows it."""
    table = ddim_table(LINEAR, steps=spaced_steps(1000, 4), eta=1.0)
    zeros, ones = jnp.zeros(4), jnp.ones(4)
    table = table.replace(c_x_0=zeros, c_x_t=zeros, sigma=ones)
    zero = lambda x_t, t: Denoised(x_0_hat=jnp.zeros_like(x_t))  # noqa: E731
    frames = p_sample_loop(zero, table, key=jax.random.key(0), num_samples=2, shape=(5000,), num_frames=4)
    # As the table promises: fold_in of the seed with n, then with the row's number plus 1, whatever its t.
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), i) for i in range(5)]
    for frame, key in zip(frames, keys, strict=True):
        np.testing.assert_array_equal(frame[1], jax.random.normal(key, (5000,)))
    correlations = np.corrcoef(np.asarray(frames).reshape(10, 5000))
    # Independent normals: 1/sqrt(5000) = 0.014 of scatter.
    assert np.max(np.abs(correlations - np.eye(10))) < 5 * 0.0142
    assert abs(np.asarray(frames).std() - 1) < 5 / np.sqrt(2 * 50_000)


def test_samples_do_not_depend_on_the_devices():
    table = ddim_table(LINEAR, steps=spaced_steps(1000, 8), eta=1.0)
    keys = sample_keys(jax.random.key(2), jnp.arange(16))
    x_T = initial_noise(keys, (4, 2))
    whole = jax.jit(lambda x, k: sample_loop(noisy_denoiser, table, x, k))(x_T, keys)
    assert len(jax.devices()) == 8
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    sharded = jax.jit(lambda x, k: sample_loop(noisy_denoiser, table, x, k), out_shardings=sharding)(
        jax.device_put(x_T, sharding), jax.device_put(keys, sharding)
    )
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded, whole)


def test_walking_the_parts_is_walking_the_whole():
    table = ddim_table(LINEAR, steps=spaced_steps(1000, 11), eta=0.7)
    keys = sample_keys(jax.random.key(2), jnp.arange(3))
    x_T = initial_noise(keys, (5,))
    go = jax.jit(lambda table, x: sample_loop(noisy_denoiser, table, x, keys))
    whole = go(table, x_T)
    x = x_T
    for start, stop in ((0, 4), (4, 5), (5, 11)):
        x = go(table.rows(start, stop), x)
    np.testing.assert_array_equal(x, whole)


@pytest.mark.parametrize("num_frames", [1, 3, 11])
def test_frames_are_the_walk_stopped_early(num_frames):
    table = ddim_table(LINEAR, steps=spaced_steps(1000, 11), eta=0.7)
    arguments = dict(key=jax.random.key(2), num_samples=3, shape=(5,))
    frames = p_sample_loop(noisy_denoiser, table, num_frames=num_frames, **arguments)
    assert frames.shape == (num_frames + 1, 3, 5)
    keys = sample_keys(jax.random.key(2), jnp.arange(3))
    x_T = initial_noise(keys, (5,))
    np.testing.assert_array_equal(frames[0], x_T)
    # Other programs, which the compiler may fuse otherwise: some ulp a row of values of order 1, over 11 rows.
    tolerance = dict(rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(frames[-1], p_sample_loop(noisy_denoiser, table, **arguments), **tolerance)
    one_row = jax.jit(lambda table, x: sample_loop(noisy_denoiser, table, x, keys))
    ends, x_t = frame_ends(11, num_frames).tolist(), x_T
    for i in range(11):
        x_t = one_row(table.rows(i, i + 1), x_t)
        if i in ends:
            np.testing.assert_allclose(frames[1 + ends.index(i)], x_t, **tolerance)


def test_only_the_frames_are_kept_in_memory():
    table, keys = ddim_table(LINEAR), sample_keys(jax.random.key(0), jnp.arange(2))
    x_T = initial_noise(keys, (64,))

    def temporary_bytes(**frames):
        walked = jax.jit(lambda x: sample_loop(noisy_denoiser, table, x, keys, **frames))
        analysis = walked.lower(x_T).compile().memory_analysis()
        return analysis.temp_size_in_bytes + analysis.output_size_in_bytes

    few = temporary_bytes(frame_ends=frame_ends(1000, 4)) - temporary_bytes()
    # 4 frames, in and out of the loop, against 1000 * x_T.nbytes for all.
    assert 4 * x_T.nbytes <= few < 32 * x_T.nbytes


def test_frame_ends():
    for num_rows in (1, 2, 10, 999):
        for num_frames in range(1, num_rows + 1):
            ends = frame_ends(num_rows, num_frames)
            assert len(ends) == num_frames and ends[-1] == num_rows - 1 and ends[0] >= 0
            assert np.all(np.diff(ends) > 0)
            assert np.ptp(np.diff(ends, prepend=-1)) <= 2  # evenly spaced, up to rounding at both ends
    for num_frames in (0, 11):
        with pytest.raises(UserError, match=rf"frames must be in 1\.\.10 .* got {num_frames}"):
            frame_ends(10, num_frames)
    arguments = dict(key=jax.random.key(0), num_samples=1, shape=(1,))
    with pytest.raises(UserError):
        p_sample_loop(noisy_denoiser, ddim_table(LINEAR), num_frames=1001, **arguments)


def test_the_denoiser_sees_the_rows_t_and_the_clip_acts_on_x_0():
    """One DDIM step by hand, with a network whose x_0_hat is clipped."""
    table = ddim_table(LINEAR, steps=np.array([600, 200]))
    denoise_fn = make_denoiser(Process(LINEAR), lambda x_t, t: -x_t + 1e-3 * t[:, None])
    x_t = np.array([[0.5, 2.0]])
    got = sample_loop(
        denoise_fn,
        table.rows(0, 1),
        jnp.asarray(x_t, jnp.float32),
        sample_keys(jax.random.key(0), jnp.arange(1)),
    )
    bar_t, bar_s = LINEAR.host_alphas_bar[[600, 200]]
    x_0_hat = np.clip((x_t - np.sqrt(1 - bar_t) * (-x_t + 0.6)) / np.sqrt(bar_t), -1, 1)
    eps_hat = (x_t - np.sqrt(bar_t) * x_0_hat) / np.sqrt(1 - bar_t)
    np.testing.assert_allclose(got, np.sqrt(bar_s) * x_0_hat + np.sqrt(1 - bar_s) * eps_hat, rtol=1e-5)
