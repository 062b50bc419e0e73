"""No key draws twice: those of some training steps, the eval loss and samples with edits, recorded as they are used."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shared_codecs import linear_codec

from ddpm_jax.data.batch import Batch
from ddpm_jax.data.condition import Entry
from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.losses import make_loss_fn
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys, seed_keys
from ddpm_jax.diffusion.samplers import ancestral_table, edit_noise, initial_noise, sample_loop
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.training.diffusion_objective import DiffusionObjective
from ddpm_jax.training.nonfinite import Rewinds
from ddpm_jax.training.optimizer import make_ema_decays
from ddpm_jax.training.train_state import init_state
from ddpm_jax.training.train_step import make_train_step

DRAWS = ("normal", "uniform", "bernoulli", "randint", "rademacher", "choice", "truncated_normal")
PROCESS = Process(make_schedule("cosine", num_steps=6))


class Dropping(nn.Module):
    """Dropout alone draws; sees x_t and an estimate."""

    @nn.compact
    def __call__(self, inputs, t, condition, *, train=False):
        w = self.param("w", nn.initializers.ones, ())
        return w * nn.Dropout(0.5, deterministic=not train)(inputs[..., : inputs.shape[-1] // 2])


@pytest.fixture
def used(monkeypatch):
    """The keys that were drawn from, as (numbers, what was drawn), while the test runs."""
    used = []

    def recording(name, real):
        def draw(key, *args, **kwargs):
            note = lambda data: used.append((tuple(np.asarray(data).tolist()), name))  # noqa: E731
            jax.debug.callback(note, jax.random.key_data(key))
            return real(key, *args, **kwargs)

        return draw

    for name in DRAWS:
        monkeypatch.setattr(jax.random, name, recording(name, getattr(jax.random, name)))
    return used


def test_no_key_of_a_run_draws_twice(used, tmp_path):
    keys, codec = seed_keys(3), linear_codec()
    objective = DiffusionObjective(
        Dropping(), make_loss_fn(PROCESS), codec=codec, self_conditioning=True, self_conditioning_rate=1.0
    )
    spec = {"label": Entry(null=9)}
    step_fn = jax.jit(
        make_train_step(
            objective,
            optax.sgd(0.1),
            ema_decays=make_ema_decays([0.9]),
            spec=spec,
            drop_rate=0.5,
            flip=True,
            num_parts=2,
        )
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 1), dtype=np.uint8)
    batch = Batch(images, {"label": np.arange(4)})
    params = objective.init_params(keys.init, images.shape[1:], {"label": jnp.zeros(1)})
    state = init_state(params, optax.sgd(0.1), ["0.9"])
    rewinds = Rewinds(str(tmp_path))
    for step in range(3):
        state, _ = step_fn(state, batch, rewinds.key_of_step(keys.train, step), codec)
    rewinds.add(at=3, to=1, write=True)
    for step in (1, 2):  # again, after a rewind: from other keys
        state, _ = step_fn(state.replace(step=jnp.int32(step)), batch, rewinds.key_of_step(keys.train, step), codec)
    ids = jnp.arange(4)
    jax.jit(objective.eval_losses)(params, codec, batch, ids, keys.eval)

    def edit_fn(x_s, denoised, row, keys):
        return x_s + 0 * edit_noise(keys, row, x_s.shape[1:])

    def samples():
        sampled = sample_keys(keys.sample, ids)
        denoise_fn = make_denoiser(PROCESS, lambda x_t, t: x_t)
        return sample_loop(
            denoise_fn, ancestral_table(PROCESS), initial_noise(sampled, (2, 2)), sampled, edit_fn=edit_fn
        )

    jax.jit(samples)()
    jax.effects_barrier()
    # A step: flips, t, eps, drops, the coin of self-conditioning, 4 encodings, dropout of 2 parts in 2 calls. The eval
    # loss: 4 encodings, 4 eps.
    # Samples: 4 times x_T, 6 rows and 6 edits.
    assert len(used) == 5 * (5 + 4 + 4) + 8 + 4 * (1 + 6 + 6)
    seen = {}
    for key, what in used:
        assert key not in seen, (what, seen[key])
        seen[key] = what
