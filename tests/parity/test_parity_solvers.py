"""Whole walks of every solver beside diffusers' scheduler of that name: the same network, x_T and noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys, sample_noise
from ddpm_jax.diffusion.samplers import ddim_inversion_table, dpmpp_table, heun_table, plms_table, unipc_table
from ddpm_jax.diffusion.samplers.ancestral import ancestral_table
from ddpm_jax.diffusion.samplers.ddim import ddim_table
from ddpm_jax.diffusion.samplers.sampling_loop import sample_loop
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import spaced_steps

torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[parity]'")

LINEAR = make_schedule("linear")
KEYS = sample_keys(jax.random.key(0), jnp.arange(2))
X_T = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
# Both in float32, over some 20 steps; eps_hat = (x_t - alpha x_0)/sigma has an error of 1e-5 at small sigma.
CLOSE = dict(rtol=0, atol=1e-4)


def network(x, t, tanh):
    """eps_hat of a made-up network, smooth in t."""
    return 0.8 * x + 0.3 * tanh(x + 1e-3 * t)


def ours(table):
    def model_fn(x_t, t):
        return network(x_t, t.reshape(-1, 1, 1, 1), jnp.tanh)

    denoise_fn = make_denoiser(Process(LINEAR), model_fn, x_0_limit=None)
    return np.asarray(jax.jit(lambda x: sample_loop(denoise_fn, table, x, KEYS))(X_T))


def noise_of_row(row):
    return torch.from_numpy(np.array(sample_noise(KEYS, row + 1, X_T.shape[1:])))


def theirs(scheduler, x, rows=None, **arguments):
    """Walks the scheduler over its own timesteps; `rows` gives the noise of each of them."""
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t)
        eps_hat = network(scaled, float(t), torch.tanh)
        if rows is not None:
            arguments["variance_noise"] = noise_of_row(rows[i])
        x = scheduler.step(eps_hat, t, x, **arguments).prev_sample
    return x.numpy()


@pytest.mark.parametrize("num_steps", [8, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_pp(diffusers, order, num_steps):
    peer = diffusers.DPMSolverMultistepScheduler(1000, solver_order=order, algorithm_type="dpmsolver++")
    peer.set_timesteps(num_steps)
    table = dpmpp_table(LINEAR, steps=peer.timesteps.numpy(), order=order)
    np.testing.assert_allclose(ours(table), theirs(peer, torch.from_numpy(X_T)), **CLOSE)


@pytest.mark.parametrize("order", [1, 2])
def test_sde_dpm_solver_pp(diffusers, order):
    peer = diffusers.DPMSolverMultistepScheduler(1000, solver_order=order, algorithm_type="sde-dpmsolver++")
    peer.set_timesteps(20)
    table = dpmpp_table(LINEAR, steps=peer.timesteps.numpy(), order=order, sde=True)
    np.testing.assert_allclose(ours(table), theirs(peer, torch.from_numpy(X_T), rows=range(20)), **CLOSE)


@pytest.mark.parametrize("num_steps", [6, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(diffusers, order, num_steps):
    peer = diffusers.UniPCMultistepScheduler(1000, solver_order=order, solver_type="bh2")
    peer.set_timesteps(num_steps)
    table = unipc_table(LINEAR, steps=peer.timesteps.numpy(), order=order)
    np.testing.assert_allclose(ours(table), theirs(peer, torch.from_numpy(X_T)), **CLOSE)


def test_plms(diffusers):
    peer = diffusers.PNDMScheduler(1000, skip_prk_steps=True, set_alpha_to_one=True)
    peer.set_timesteps(20)
    table = plms_table(LINEAR, steps=spaced_steps(1000, 20, "leading"))
    np.testing.assert_array_equal(table.t, peer.timesteps.numpy())
    np.testing.assert_allclose(ours(table), theirs(peer, torch.from_numpy(X_T)), **CLOSE)


def in_sigma(alpha_bar):
    """Their x of the samplers in sigma is x_t / sqrt(alpha-bar)."""
    return torch.from_numpy(X_T / np.float32(np.sqrt(alpha_bar)))


@pytest.mark.parametrize("karras", [False, True])
def test_heun_and_euler(diffusers, karras):
    for scheduler, make_table in ((diffusers.HeunDiscreteScheduler, heun_table),
                                  (diffusers.EulerDiscreteScheduler, ddim_table)):  # fmt: skip
        peer = scheduler(1000, beta_start=1e-4, beta_end=0.02, use_karras_sigmas=karras)
        peer.set_timesteps(15)
        steps = spaced_steps(1000, 15, "karras" if karras else "uniform", schedule=LINEAR)
        table = make_table(LINEAR, steps=steps)
        # Their grid of "linspace" has fractional steps between ours: given ours.
        if not karras:
            peer.set_timesteps(timesteps=steps.tolist())
        np.testing.assert_allclose(np.asarray(table.t, np.float64), peer.timesteps.numpy(), atol=2e-2)
        expected = theirs(peer, in_sigma(LINEAR.host_alphas_bar[-1]))
        np.testing.assert_allclose(ours(table), expected, rtol=0, atol=1e-4 if not karras else 3e-4)


def test_euler_ancestral(diffusers, monkeypatch):
    from diffusers.schedulers import scheduling_euler_ancestral_discrete as module

    peer = diffusers.EulerAncestralDiscreteScheduler(1000, beta_start=1e-4, beta_end=0.02, timestep_spacing="leading")
    peer.set_timesteps(20)
    rows = iter(range(20))
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise_of_row(next(rows)))
    steps = spaced_steps(1000, 20, "leading")
    np.testing.assert_array_equal(steps, peer.timesteps.numpy())
    expected = theirs(peer, in_sigma(LINEAR.host_alphas_bar[steps[0]]))
    np.testing.assert_allclose(ours(ddim_table(LINEAR, steps=steps, eta=1.0)), expected, **CLOSE)
    small = ancestral_table(Process(LINEAR, variance="fixed_small"), steps=steps)
    np.testing.assert_allclose(ours(small), expected, **CLOSE)


@pytest.mark.parametrize("t", [999, 500, 20, 1])
@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_one_ancestral_step_with_a_learned_variance(diffusers, monkeypatch, variance, t):
    from diffusers.schedulers import scheduling_ddpm as module

    peer = diffusers.DDPMScheduler(1000, variance_type=variance, clip_sample=True)
    rng = np.random.default_rng(1)
    eps_hat, values = rng.standard_normal((2, *X_T.shape)).astype(np.float32)
    values = np.tanh(values) if variance == "learned_range" else np.log(0.01) + 0.1 * values
    z = np.array(sample_noise(KEYS, 1, X_T.shape[1:]))
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: torch.from_numpy(z))
    # Theirs is split along the channels, which are the first axis there and the last here; its "learned" is the
    # variance, ours, as Nichol and Dhariwal have it, the logarithm.
    told = np.exp(values) if variance == "learned" else values
    expected = peer.step(torch.from_numpy(np.concatenate([eps_hat, told], 1)), t, torch.from_numpy(X_T)).prev_sample
    last = lambda x: jnp.moveaxis(jnp.asarray(x), 1, -1)  # noqa: E731
    denoise_fn = make_denoiser(
        Process(LINEAR, variance=variance), lambda x_t, t: jnp.concatenate([last(eps_hat), last(values)], -1)
    )
    row = ancestral_table(Process(LINEAR, variance=variance)).rows_at(t)
    got = np.moveaxis(np.asarray(sample_loop(denoise_fn, row, last(X_T), KEYS, noises=last(z)[None])), -1, 1)
    np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("num_steps", [1, 7, 20, 333])
def test_the_default_spacing_of_the_dpm_solvers(diffusers, name, num_steps):
    peer = getattr(diffusers, name)(1000)
    peer.set_timesteps(num_steps)
    np.testing.assert_array_equal(spaced_steps(1000, num_steps, "dpm_uniform"), peer.timesteps.numpy())


def test_ddim_inversion_with_eps_at_the_target(diffusers):
    peer = diffusers.DDIMInverseScheduler(1000, clip_sample=False)
    peer.set_timesteps(20)
    expected = theirs(peer, torch.from_numpy(X_T))
    table = ddim_inversion_table(LINEAR, steps=peer.timesteps.numpy()[::-1])
    np.testing.assert_allclose(ours(table), expected, **CLOSE)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [1, 7, 50, 333, 1000])
def test_spacings(diffusers, spacing, num_steps):
    peer = diffusers.DDIMScheduler(1000, timestep_spacing=spacing)
    peer.set_timesteps(num_steps)
    ours = spaced_steps(1000, num_steps, {"linspace": "uniform"}.get(spacing, spacing))
    expected = peer.timesteps.numpy()
    if (spacing, num_steps) == ("linspace", 1):
        expected = [999]  # theirs is [0]: one step that would take pure noise for an image
    np.testing.assert_array_equal(ours, expected)


def test_zero_terminal_snr(diffusers):
    peer = diffusers.DDIMScheduler(1000, rescale_betas_zero_snr=True)
    ours = make_schedule("linear", zero_terminal_snr=True)
    np.testing.assert_allclose(ours.host_alphas_bar, peer.alphas_cumprod.numpy(), atol=2e-6)


def test_dynamic_threshold(diffusers):
    peer = diffusers.DDPMScheduler(1000, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1e9)
    x_0 = 3 * X_T
    expected = peer._threshold_sample(torch.from_numpy(x_0)).numpy()
    process = Process(LINEAR, prediction="x_0")
    denoise_fn = make_denoiser(process, lambda x_t, t: jnp.asarray(x_0), dynamic_threshold=0.9)
    np.testing.assert_allclose(denoise_fn(jnp.asarray(X_T), jnp.zeros(2, jnp.int32)).x_0_hat, expected, rtol=1e-5)
