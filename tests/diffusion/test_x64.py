"""With JAX_ENABLE_X64 the numbers of a seed are the same: every draw and every array says its type."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.data.batch import Batch
from ddpm_jax.data.condition import Entry
from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.losses import make_loss_fn
from ddpm_jax.diffusion.ode_likelihood import ode_bits_per_dim
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys, sample_noise
from ddpm_jax.diffusion.samplers import ancestral_table
from ddpm_jax.diffusion.samplers.sampling_loop import p_sample_loop
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_samplers import TIMESTEP_SAMPLERS, make_timestep_sampler
from ddpm_jax.diffusion.variational_bound import bits_per_dim
from ddpm_jax.models.conv_net import ConvNet
from ddpm_jax.models.parameters import init_params
from ddpm_jax.training.diffusion_objective import DiffusionObjective
from ddpm_jax.training.optimizer import make_ema_decays
from ddpm_jax.training.train_state import init_state
from ddpm_jax.training.train_step import make_train_step

ENABLE_X64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
SHAPE = (4, 4, 1)
SPEC = {"label": Entry(null=3)}


def train():
    """Two updates with flips, dropped labels and every kind of draw."""
    process = Process(make_schedule("cosine", num_steps=10))
    model = ConvNet(channels=4, num_layers=1, num_classes=3, null_class=True)
    params = init_params(model, jax.random.key(0), SHAPE, {"label": jnp.zeros(1, jnp.int32)})
    optimizer, decays = optax.adam(1e-3), make_ema_decays([0.9])
    state = init_state(params, optimizer, decays)
    objective = DiffusionObjective(model, make_loss_fn(process), make_timestep_sampler("stratified", 10))
    step = jax.jit(make_train_step(objective, optimizer, ema_decays=decays, spec=SPEC, drop_rate=0.5, flip=True))
    images = np.arange(8 * 16, dtype=np.uint8).reshape(8, *SHAPE)
    labels = np.arange(8, dtype=np.int32) % 3
    losses = []
    for _ in range(2):
        state, metrics = step(state, Batch(images, {"label": labels}), jax.random.key(1))
        losses.append(metrics["loss"])
    return {"first loss": losses[0], "adam": (losses[1], state.params, state.ema)}


def sample():
    process = Process(make_schedule("cosine", num_steps=10), variance="fixed_small")
    denoise_fn = make_denoiser(process, lambda x_t, t: 0.5 * x_t, x_0_limit=1.0)
    table = ancestral_table(process)
    return p_sample_loop(denoise_fn, table, key=jax.random.key(3), num_samples=2, shape=SHAPE)


def likelihood():
    process = Process(make_schedule("cosine", num_steps=10))
    denoise_fn = make_denoiser(process, lambda x_t, t: 0.5 * x_t, x_0_limit=None)
    keys = sample_keys(jax.random.key(0), jnp.arange(2))
    x_0 = jnp.asarray(np.linspace(-1, 1, 32).reshape(2, *SHAPE), jnp.float32)

    def compute(x_0, keys):
        flow = {f"ode {n}": ode_bits_per_dim(process, denoise_fn, x_0=x_0, keys=keys, num_ode_steps=2, num_probes=n)
                for n in (0, 1)}  # fmt: skip
        return flow | bits_per_dim(process, denoise_fn, x_0=x_0, key=jax.random.key(1))

    return jax.jit(compute)(x_0, keys)


def draws():
    keys = sample_keys(jax.random.key(2**32 - 1), jnp.arange(2))
    drawn = {"noise": sample_noise(keys, 5, SHAPE)}
    for name in TIMESTEP_SAMPLERS:
        sampler = make_timestep_sampler(name, 1000)
        drawn[name] = sampler.sample(sampler.init(), jax.random.key(7), 64)
    return drawn


@pytest.mark.parametrize("compute", [train, sample, likelihood, draws])
def test_the_numbers_do_not_depend_on_it(compute):
    of_32 = compute()
    with ENABLE_X64(True):
        of_64 = compute()
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(of_32), jax.tree.leaves(of_64), strict=True):
        assert one.dtype == other.dtype, jax.tree_util.keystr(path)
        # Optax computes 1 - b2^n of Adam in the default type: in float32 it is off by 2^-24/(1 - b2) = 6e-5 at n = 1,
        # of two updates of 1e-3.
        rtol, atol = (1e-6, 1.2e-7) if "adam" in jax.tree_util.keystr(path) else (0, 0)
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))
