"""Self-conditioning beside denoising_diffusion_pytorch, with the same small network, noise and coin in both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.losses import make_loss_fn
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys
from ddpm_jax.diffusion.samplers import ancestral_table, sample_loop
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.training.diffusion_objective import DiffusionObjective
from ddpm_jax.training.noised_inputs import NoisedInputs

torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[parity]'")

T, B, SIZE, C = 20, 2, 4, 3
PROCESS = Process(make_schedule("cosine", num_steps=T), prediction="x_0", variance="fixed_small")


class OurNetwork:
    """0.8 tanh(x_t) + 0.5 x_0_prev + t/100, of concat(x_t, x_0_prev)."""

    def apply(self, variables, inputs, t, condition, **kwargs):
        x_t, x_0_prev = jnp.split(inputs, 2, axis=-1)
        return variables["params"]["a"] * jnp.tanh(x_t) + 0.5 * x_0_prev + 0.01 * t[:, None, None, None]


@pytest.fixture
def peer(lucidrains):
    class TheirNetwork(torch.nn.Module):
        self_condition, random_or_learned_sinusoidal_cond = True, False
        channels = out_dim = C

        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor(0.8))

        def forward(self, x, time, x_self_cond=None):
            estimate = torch.zeros_like(x) if x_self_cond is None else x_self_cond
            return self.a * torch.tanh(x) + 0.5 * estimate + 0.01 * time[:, None, None, None]

    return lucidrains.GaussianDiffusion(
        TheirNetwork(), image_size=SIZE, timesteps=T, objective="pred_x0", beta_schedule="cosine", auto_normalize=False,
        min_snr_loss_weight=False,
    )  # fmt: skip


def normals(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def channels_last(array):
    return np.moveaxis(array, -3, -1)


def test_samples(peer, lucidrains, monkeypatch):
    """Theirs sees its last clipped x_0_hat, too."""
    z = normals(T + 1, B, C, SIZE, SIZE)
    given = iter(torch.from_numpy(z))
    monkeypatch.setattr(torch, "randn", lambda *args, **kwargs: next(given))
    monkeypatch.setattr(torch, "randn_like", lambda *args, **kwargs: next(given))
    expected = peer.p_sample_loop((B, C, SIZE, SIZE)).numpy()
    monkeypatch.undo()
    model_fn = lambda inputs, t: OurNetwork().apply({"params": {"a": 0.8}}, inputs, t, {})  # noqa: E731
    noises = np.concatenate([z[1:], np.zeros_like(z[:1])])[:T]  # the last row adds none
    keys = sample_keys(jax.random.key(0), jnp.arange(B))

    def draw(doubled):
        denoise_fn = make_denoiser(PROCESS, model_fn, self_conditioning=True)
        if not doubled:
            plain = denoise_fn
            denoise_fn = lambda x_t, t, carry: plain(x_t, t)  # noqa: E731  never sees the estimate
        return sample_loop(
            denoise_fn, ancestral_table(PROCESS), jnp.asarray(channels_last(z[0])), keys,
            noises=jnp.asarray(channels_last(noises)), self_conditioning=True,
        )  # fmt: skip

    # 20 rows of values up to 4, a few roundings each; the tables agree to some ulp.
    np.testing.assert_allclose(draw(True), channels_last(expected), rtol=0, atol=20 * 16 * 2.0**-23)
    assert np.max(np.abs(draw(False) - channels_last(expected))) > 0.1


@pytest.mark.parametrize("coin", [True, False])
def test_loss_and_gradient(peer, lucidrains, monkeypatch, coin):
    x_0, eps, t = 0.3 * normals(B, C, SIZE, SIZE), normals(2, B, C, SIZE, SIZE)[1], np.array([3, 15])
    monkeypatch.setattr(lucidrains, "random", lambda: 0.0 if coin else 1.0)
    loss = peer.p_losses(*(torch.from_numpy(array) for array in (x_0, t, eps)), loss_reduction="none")
    torch.mean(loss / peer.loss_weight[torch.from_numpy(t)]).backward()
    ours = DiffusionObjective(OurNetwork(), make_loss_fn(PROCESS), self_conditioning=True)
    drawn = NoisedInputs(
        jnp.asarray(channels_last(x_0)), jnp.asarray(t), jnp.asarray(channels_last(eps)), {}, jnp.full(B, coin)
    )
    mean_of = lambda params: jnp.mean(ours.losses(params, ours.frozen, drawn, jax.random.key(0), {})[0]["loss"])  # noqa: E731
    value, grads = jax.value_and_grad(mean_of)({"a": jnp.float32(0.8)})
    # The estimate stays inside of its limit here, which theirs does not have in training.
    x_t = peer.q_sample(*(torch.from_numpy(array) for array in (x_0, t)), noise=torch.from_numpy(eps))
    assert float(peer.model(x_t, torch.from_numpy(t)).detach().abs().max()) < 1
    expected = float(torch.mean(loss / peer.loss_weight[torch.from_numpy(t)]))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(grads["a"], float(peer.model.a.grad), rtol=1e-5)
