"""The eval step: the same t and noise for a picture at every evaluation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.batch import Batch
from ddpm_jax.diffusion.losses import LossFn
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.training.diffusion_objective import DiffusionObjective

T = 20


def eval_losses(loss_fn):
    objective = DiffusionObjective(nn.Dense(1), loss_fn)  # which no loss here asks
    return jax.jit(lambda batch, ids, key: objective.eval_losses({}, objective.frozen, batch, ids, key))


def test_t_and_noise_are_of_the_picture_and_the_key():
    def seen(model_fn, x_0, t, eps):
        return {"loss": t + eps[:, 0, 0, 0]}

    def only_t(model_fn, x_0, t, eps):
        return {"loss": t.astype(jnp.float32)}

    def only_eps(model_fn, x_0, t, eps):
        return {"loss": eps[:, 0, 0, 0]}

    process = Process(make_schedule("cosine", num_steps=T))
    seen, only_t, only_eps = (LossFn(process, losses) for losses in (seen, only_t, only_eps))
    step_fn = eval_losses(seen)
    ids = np.arange(16, dtype=np.int32)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 3), dtype=np.uint8)
    whole = np.asarray(step_fn(Batch(pixels), ids, jax.random.key(0)))
    assert np.array_equal(step_fn(Batch(pixels[5:9]), ids[5:9], jax.random.key(0)), whole[5:9])
    assert not np.array_equal(step_fn(Batch(pixels), ids, jax.random.key(1)), whole)
    noise = eval_losses(only_eps)(Batch(pixels), ids, jax.random.key(0))
    assert len(np.unique(noise)) == 16
    # Stratified: of 1000 ids every t comes 50 times, give or take the few that a golden sequence allows.
    many, blank = np.arange(1000, dtype=np.int32), np.zeros((1000, 1, 1, 1), np.uint8)
    t = np.asarray(eval_losses(only_t)(Batch(blank), many, jax.random.key(0)))
    counts = np.bincount(t.astype(int), minlength=T)
    assert counts.shape == (T,) and counts.min() >= 47 and counts.max() <= 53
