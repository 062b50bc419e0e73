"""Self-conditioning in sampling: what each network call sees, whatever the sampler, the guide and the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import make_denoiser, without_carry
from ddpm_jax.diffusion.guidance import classifier_free_guidance, make_guidance
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys
from ddpm_jax.diffusion.samplers import (
    ancestral_table,
    ddim_inversion_table,
    ddim_table,
    dpmpp_table,
    heun_table,
    initial_noise,
    p_sample_loop,
    plms_table,
    sample_loop,
    unipc_table,
    watching,
)
from ddpm_jax.diffusion.samplers.sampling_loop import init_sampler_state, scan_rows, walk_rows
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.self_conditioning import with_estimate
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.diffusion.variational_bound import bits_per_dim
from ddpm_jax.runtime.errors import UserError

T, SHAPE = 40, (3, 2)
SCHEDULE = make_schedule("cosine", num_steps=T)
PROCESS = Process(SCHEDULE, prediction="x_0")
STEPS = spaced_steps(T, 6)
KEYS = sample_keys(jax.random.key(2), jnp.arange(4))

TABLES = {
    "ancestral": ancestral_table(PROCESS, steps=STEPS),
    "ddim": ddim_table(SCHEDULE, steps=STEPS, eta=0.5),
    "heun": heun_table(SCHEDULE, steps=STEPS),
    "dpmpp_3m": dpmpp_table(SCHEDULE, steps=STEPS, order=3),
    "dpmpp_2m_sde": dpmpp_table(SCHEDULE, steps=STEPS, order=2, sde=True),
    "plms": plms_table(SCHEDULE, steps=STEPS),
    "unipc_3": unipc_table(SCHEDULE, steps=STEPS, order=3),
}


def network(inputs, t, condition=None):
    """Elementwise, so that its rounding does not depend on the batch; beyond the limit of x_0 here and there."""
    x_t, x_0_prev = jnp.split(inputs, 2, axis=-1)
    told = 0.0 if condition is None else 0.3 * condition["label"].reshape(-1, *[1] * (x_t.ndim - 1))
    return 1.4 * jnp.tanh(0.9 * x_t - 0.6 * x_0_prev + told + 0.01 * t.reshape(-1, *[1] * (x_t.ndim - 1)))


def recorder():
    """(calls, network): each call's input, t and output are noted in their order."""
    calls = []

    def recording(inputs, t, *condition):
        output = network(inputs, t, *condition)
        note = lambda *arrays: calls.append([np.asarray(array) for array in arrays])  # noqa: E731
        jax.debug.callback(note, inputs, t, output, ordered=True)
        return output

    return calls, recording


def draw(model_fn, table, *, num=4, **options):
    denoise_fn = make_denoiser(PROCESS, model_fn, self_conditioning=True, **options)
    keys = KEYS[:num]
    go = jax.jit(lambda x: sample_loop(denoise_fn, table, x, keys, self_conditioning=True))
    return jax.block_until_ready(go(initial_noise(keys, SHAPE)))


@pytest.mark.parametrize("sampler", TABLES)
def test_each_call_sees_the_estimate_of_the_call_before(sampler):
    calls, recording = recorder()
    draw(recording, TABLES[sampler])
    jax.effects_barrier()
    assert len(calls) == TABLES[sampler].num_calls
    x_0_prev = np.zeros((4, *SHAPE), np.float32)
    for inputs, _, output in calls:
        np.testing.assert_array_equal(inputs[..., SHAPE[-1] :], x_0_prev)
        x_0_prev = np.clip(output, -1, 1)
    assert np.any(np.abs(calls[-2][2]) > 1)  # or the limit would not be seen


@pytest.mark.parametrize("sampler", ["ancestral", "heun", "plms"])
def test_chunks_are_the_whole(sampler):
    """The carry survives between the chunks of the generator, whose tables are padded."""
    table = TABLES[sampler]
    denoise_fn = make_denoiser(PROCESS, network, self_conditioning=True)
    whole = draw(network, table)
    state = init_sampler_state(table.rows(0, 2).padded(8, learns_variance=False), initial_noise(KEYS, SHAPE),
                               self_conditioning=True)  # fmt: skip
    go = jax.jit(lambda rows, num, state: walk_rows(denoise_fn, rows, num, state, KEYS))
    for start in range(0, table.num_calls, 4):
        stop = min(start + 4, table.num_calls)
        rows = table.rows(start, stop).padded(8, learns_variance=False)
        state = go(rows, jnp.int32(stop - start), state)
    # Another program, which may be fused otherwise: some ulp a row of values of order 1.
    np.testing.assert_allclose(state.x_t, whole, rtol=2e-5, atol=2e-5)
    assert np.any(np.asarray(state.carry) != 0)


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_a_network_that_ignores_the_estimate_draws_the_same(sampler):
    """Bit for bit what it draws without self-conditioning."""
    alone = lambda x_t, t: network(jnp.concatenate([x_t, jnp.zeros_like(x_t)], axis=-1), t)  # noqa: E731
    ignoring = lambda inputs, t: alone(inputs[..., : SHAPE[-1]], t)  # noqa: E731
    table = TABLES[sampler]
    plain = jax.jit(lambda x: sample_loop(make_denoiser(PROCESS, alone), table, x, KEYS))(initial_noise(KEYS, SHAPE))
    np.testing.assert_array_equal(draw(ignoring, table), plain)
    assert np.any(np.asarray(draw(network, table)) != plain)


def test_sample_n_does_not_depend_on_how_many_there_are():
    np.testing.assert_array_equal(draw(network, TABLES["ddim"], num=2), draw(network, TABLES["ddim"])[:2])


def guide_of(scale, num):
    return classifier_free_guidance(PROCESS, make_guidance({"label": jnp.full(num, 2.0)}, scale=scale))


def test_both_halves_of_a_guided_call_see_the_guided_estimate():
    calls, recording = recorder()
    options = dict(condition={"label": jnp.arange(4.0)}, guide=guide_of(3.0, 4))
    draw(recording, TABLES["ddim"], **options)
    jax.effects_barrier()
    x_0_prev = np.zeros((4, *SHAPE), np.float32)
    for inputs, _, output in calls:
        seen = inputs[..., SHAPE[-1] :]
        np.testing.assert_array_equal(seen[0::2], seen[1::2])
        # The product and the sum of the guide, of values up to 8, may be rounded once or twice.
        np.testing.assert_allclose(seen[0::2], x_0_prev, rtol=0, atol=2 * 8 * 2.0**-23)
        conditional, reference = output[0::2], output[1::2]
        x_0_prev = np.clip(reference + 3 * (conditional - reference), -1, 1)
        assert np.any(np.abs(conditional - reference) > 0.1)


def test_guidance_of_scale_1_is_none():
    condition = {"label": jnp.arange(4.0)}
    none = draw(network, TABLES["ddim"], condition=condition)
    guided = draw(network, TABLES["ddim"], condition=condition, guide=guide_of(1.0, 4))
    # reference + (value - reference) is value up to an ulp or two, over 6 rows.
    np.testing.assert_allclose(guided, none, rtol=0, atol=2e-5)


def test_the_carry_is_limited_even_if_x_0_is_not():
    at = dict(x_t=jnp.full((1, 2), 3.0), t=jnp.array([20]))
    said = make_denoiser(PROCESS, network, x_0_limit=None, self_conditioning=True)(**at)
    assert np.all(np.asarray(said.x_0_hat) > 1.2) and np.all(np.asarray(said.carry) == 1)
    said = make_denoiser(PROCESS, network, x_0_limit=None, self_conditioning=True, x_0_prev_limit=None)(**at)
    np.testing.assert_array_equal(said.carry, said.x_0_hat)


def test_likelihoods_are_those_of_the_network_with_zeros():
    zeros = with_estimate(network, jnp.zeros((2, *SHAPE)))
    x_0 = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, *SHAPE)), jnp.float32)
    key = jax.random.key(0)
    bounds = [
        bits_per_dim(PROCESS, make_denoiser(PROCESS, model_fn, self_conditioning=doubled), x_0=x_0, key=key)
        for model_fn, doubled in ((network, True), (zeros, False))
    ]
    jax.tree.map(np.testing.assert_array_equal, *bounds)


def test_inversion_is_that_of_the_network_with_zeros():
    """A loop that is given a fixed function of x_t and t: without the estimate."""
    table = ddim_inversion_table(SCHEDULE, steps=STEPS, num_fixed_point=1)
    zeros = with_estimate(network, jnp.zeros((4, *SHAPE)))
    noises = [
        jax.jit(lambda x, denoise_fn=denoise_fn: sample_loop(denoise_fn, table, x, KEYS))(0.1 * jnp.ones((4, *SHAPE)))
        for denoise_fn in (
            without_carry(make_denoiser(PROCESS, network, self_conditioning=True)),
            make_denoiser(PROCESS, zeros),
        )
    ]
    np.testing.assert_array_equal(*noises)


def test_watching_and_frames_see_the_same_samples():
    seen = []
    denoise_fn = make_denoiser(PROCESS, network, self_conditioning=True)
    options = dict(key=jax.random.key(2), num_samples=4, shape=SHAPE, self_conditioning=True)
    watch = watching(lambda row, t, s, x_s, x_0_hat: seen.append((int(row), x_0_hat)))
    frames = p_sample_loop(denoise_fn, TABLES["ddim"], num_frames=6, edit_fn=watch, **options)
    jax.effects_barrier()
    assert [row for row, _ in seen] == list(range(6))
    np.testing.assert_allclose(frames[-1], draw(network, TABLES["ddim"]), rtol=2e-5, atol=2e-5)


def test_what_does_not_fit_is_an_error():
    table, x_T = TABLES["ddim"], jnp.zeros((4, *SHAPE))
    doubled = make_denoiser(PROCESS, network, self_conditioning=True)
    with pytest.raises(UserError, match="of the denoiser is True and that of the sampling loop is False: give both"):
        sample_loop(doubled, table, x_T, KEYS)
    state = init_sampler_state(table, x_T, self_conditioning=True)
    with pytest.raises(UserError, match="of the denoiser is False and that of the sampling loop is True: give both"):
        scan_rows(make_denoiser(PROCESS, lambda x_t, t: x_t), table, state, KEYS)
    guide = lambda predict_fn: lambda x_t, t, condition: predict_fn(x_t[:3], t[:3], condition)  # noqa: E731
    with pytest.raises(ValueError, match="whole multiples of 4 rows; got 3"):
        make_denoiser(PROCESS, network, guide=guide, self_conditioning=True)(x_T, jnp.zeros(4, jnp.int32))
