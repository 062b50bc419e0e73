"""Schedules, q, the posterior and single reverse steps beside diffusers and denoising_diffusion_pytorch."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.forward_process import q_posterior_mean, q_sample, x_0_from_eps
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers.ancestral import ancestral_table
from ddpm_jax.diffusion.samplers.ddim import ddim_table
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import spaced_steps

torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[parity]'")

ULP = 2.0**-23
# The peers form their tables in float32 by 1000 products (diffusers) or cast float64 ones (the other).
LOOSE = dict(rtol=2e-4, atol=2e-6)
LINEAR = make_schedule("linear")


def normals(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- diffusers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ours,theirs", [("linear", "linear"), ("quadratic", "scaled_linear"), ("cosine", "squaredcos_cap_v2")]
)
def test_diffusers_schedules(diffusers, ours, theirs):
    peer = diffusers.DDPMScheduler(1000, beta_schedule=theirs, beta_start=1e-4, beta_end=0.02)
    schedule = make_schedule(ours)
    # float32 linspace: each beta is off by an ulp of the largest; squares of it by twice that, relatively more.
    np.testing.assert_allclose(schedule.betas, peer.betas, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(schedule.alphas_bar, peer.alphas_cumprod, rtol=2e-4)


def test_diffusers_q_sample(diffusers):
    peer, t = diffusers.DDPMScheduler(1000), np.array([0, 10, 500, 999])
    x_0, eps = normals(4, 3, 5, 2), normals(4, 3, 5, 2, seed=1)
    expected = peer.add_noise(torch.from_numpy(x_0), torch.from_numpy(eps), torch.from_numpy(t))
    ours = q_sample(LINEAR, x_0=jnp.asarray(x_0), t=jnp.asarray(t), eps=jnp.asarray(eps))
    np.testing.assert_allclose(ours, expected.numpy(), **LOOSE)


def one_row(schedule, table, i, x_t, eps_hat, z):
    """Row i of a table, with the network's output and the noise given; x_0_hat is clipped."""
    t = jnp.full(x_t.shape[:1], table.t[i])
    denoise_fn = make_denoiser(Process(schedule), lambda x_t, t: jnp.asarray(eps_hat))
    x_0_hat = denoise_fn(jnp.asarray(x_t), t).x_0_hat
    return table.c_x_0[i] * x_0_hat + table.c_x_t[i] * x_t + table.sigma[i] * z


class GivenNoise:
    """A stand-in for the peer's noise: the same numbers as ours."""

    def __init__(self, monkeypatch, module, z):
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: torch.from_numpy(z))


@pytest.mark.parametrize("t", [999, 500, 20, 1, 0])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_one_ancestral_step_of_diffusers(diffusers, monkeypatch, variance, t):
    from diffusers.schedulers import scheduling_ddpm

    peer = diffusers.DDPMScheduler(1000, variance_type=variance, clip_sample=True)
    x_t, eps_hat, z = (normals(2, 3, 4, 4, seed=seed) for seed in range(3))
    GivenNoise(monkeypatch, scheduling_ddpm, z)
    expected = peer.step(torch.from_numpy(eps_hat), t, torch.from_numpy(x_t)).prev_sample
    table = ancestral_table(Process(LINEAR, variance=variance))
    ours = one_row(LINEAR, table, 999 - t, x_t, eps_hat, z)
    np.testing.assert_allclose(ours, expected.numpy(), **LOOSE)


@pytest.mark.parametrize("i", [0, 1, 25, 48, 49])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_one_ddim_step_of_diffusers(diffusers, eta, i):
    """Its "leading" spacing visits 980, 960, ..., 0, where the s of a row is the t of the next; -1 is x_0."""
    peer = diffusers.DDIMScheduler(1000, clip_sample=True, set_alpha_to_one=True, steps_offset=0)
    peer.set_timesteps(50)
    steps = peer.timesteps.numpy()
    table = ddim_table(LINEAR, steps=steps, eta=eta)
    x_t, eps_hat, z = (normals(2, 3, 4, 4, seed=seed) for seed in range(3))
    expected = peer.step(
        torch.from_numpy(eps_hat),
        int(steps[i]),
        torch.from_numpy(x_t),
        eta=eta,
        use_clipped_model_output=True,
        variance_noise=torch.from_numpy(z),
    ).prev_sample
    np.testing.assert_allclose(one_row(LINEAR, table, i, x_t, eps_hat, z), expected.numpy(), **LOOSE)


def test_strided_ancestral_step_of_diffusers(diffusers, monkeypatch):
    from diffusers.schedulers import scheduling_ddpm

    peer = diffusers.DDPMScheduler(1000, variance_type="fixed_large", clip_sample=True)
    peer.set_timesteps(timesteps=spaced_steps(1000, 20).tolist())
    table = ancestral_table(Process(LINEAR), steps=spaced_steps(1000, 20))
    x_t, eps_hat, z = (normals(2, 3, 4, 4, seed=seed) for seed in range(3))
    GivenNoise(monkeypatch, scheduling_ddpm, z)
    for i in (0, 10, 19):
        expected = peer.step(torch.from_numpy(eps_hat), int(table.t[i]), torch.from_numpy(x_t)).prev_sample
        np.testing.assert_allclose(one_row(LINEAR, table, i, x_t, eps_hat, z), expected.numpy(), **LOOSE)


# --- denoising_diffusion_pytorch ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("num_steps", [100, 1000])
def test_lucidrains_schedules(lucidrains, name, num_steps):
    peer = getattr(lucidrains, f"{name}_beta_schedule")(num_steps)
    # In float64, up to 1 - a ratio of alpha-bar next to 1; its sigmoid(3) and sigmoid(-3) are float32 numbers,
    # 1.5e-8 off, of which alpha-bar at the last steps is a small difference.
    rtol = {"linear": 1e-14, "cosine": 1e-9, "sigmoid": 1e-4}[name]
    ours = np.asarray(make_schedule(name, num_steps=num_steps).betas_float64)
    expected = np.asarray(peer, np.float64)
    np.testing.assert_allclose(ours, np.minimum(expected, 0.999), rtol=rtol)


def test_lucidrains_process(lucidrains):
    net = lucidrains.Unet(dim=8, dim_mults=(1,), channels=3, flash_attn=False)
    peer = lucidrains.GaussianDiffusion(
        net, image_size=4, timesteps=1000, objective="pred_noise", beta_schedule="linear", auto_normalize=False
    )
    x_0, eps, t = normals(4, 3, 4, 4), normals(4, 3, 4, 4, seed=1), np.array([0, 10, 500, 999])
    tensors = [torch.from_numpy(a) for a in (x_0, t, eps)]
    x_t = q_sample(LINEAR, x_0=jnp.asarray(x_0), t=jnp.asarray(t), eps=jnp.asarray(eps))
    # Both cast float64 tables once: a few ulp of numbers up to 4.
    close = dict(rtol=4 * ULP, atol=16 * ULP)
    expected = peer.q_sample(tensors[0], tensors[1], noise=tensors[2])
    np.testing.assert_allclose(x_t, expected.numpy(), **close)
    mean, var, log_var = peer.q_posterior(tensors[0], expected, tensors[1])
    ours = q_posterior_mean(LINEAR, x_0=jnp.asarray(x_0), x_t=x_t, t=jnp.asarray(t))
    np.testing.assert_allclose(ours, mean.numpy(), **close)
    np.testing.assert_allclose(LINEAR.posterior_var[t], var[:, 0, 0, 0].numpy(), rtol=4 * ULP)
    # At t=0 it floors the variance at 1e-20, ours takes that of t=1.
    np.testing.assert_allclose(LINEAR.log_var_fixed_small[t[1:]], log_var[1:, 0, 0, 0].numpy(), rtol=4 * ULP)
    x_0_hat = peer.predict_start_from_noise(expected, tensors[1], tensors[2])
    ours = x_0_from_eps(LINEAR, x_t=x_t, t=jnp.asarray(t), eps=jnp.asarray(eps))
    # 1/sqrt(alpha-bar) is 157 at t=999: so much more of the rounding.
    np.testing.assert_allclose(ours, x_0_hat.numpy(), rtol=4 * ULP, atol=160 * 16 * ULP)
