"""What a network of super-resolution is shown of small images: as they are, with noise, or with the missing noise."""

import functools

import jax
import numpy as np
from jaxtyping import Array

from ddpm_jax.diffusion.image_conditions import ImageTask
from ddpm_jax.diffusion.rng import Purpose, purpose_key, sample_keys, stage_key
from ddpm_jax.experiment.image_condition import entries_of

Rows = dict[str, np.ndarray]  # the entries of the condition, [B, ...] each


def shown_as_given(task: ImageTask, x_0: np.ndarray) -> Rows:
    """That of small images without noise.

    Args:
      x_0: float32 [B, H/factor, W/factor, C] in [-1, 1].
    """
    return jax.device_get(_as_given(task, x_0))


def shown_at_level(
    task: ImageTask, x_0: np.ndarray, level: int, seed: int, numbers: np.ndarray, *, stage: int = 0
) -> Rows:
    """That of small images with noise of a level, which depends on the seed and the number of the result.

    Args:
      numbers: of the results, int32 [B].
      stage: of a cascade, 0 for none: each has noise of its own.
    """
    return jax.device_get(_at_level(task, x_0, np.int32(level), stage_key(seed, stage), numbers))


def shown_with_missing_noise(
    task: ImageTask, x: np.ndarray, mix: tuple[float, float], level: int, seed: int, numbers: np.ndarray, *, stage: int
) -> Rows:
    """That of keep x + add N(0, I), which has the noise of the level.

    Args:
      x: from a sampler that stopped, float32 [B, H/factor, W/factor, C].
      mix: (keep, add), from `diffusion.samplers.truncation.stop_at`.
    """
    keep, add = map(np.float32, mix)
    return jax.device_get(_noised(task, x, keep, add, np.int32(level), stage_key(seed, stage), numbers))


@functools.partial(jax.jit, static_argnums=0)
def _as_given(task: ImageTask, x_0: Array) -> Rows:
    return jax.vmap(lambda x_0: entries_of(task.of_given(x_0, None)))(x_0)


@functools.partial(jax.jit, static_argnums=0)
def _at_level(task: ImageTask, x_0: Array, level: Array, key: Array, numbers: Array) -> Rows:
    return jax.vmap(lambda x_0, key: entries_of(task.at_level(x_0, level, key)))(x_0, _keys(key, numbers))


@functools.partial(jax.jit, static_argnums=0)
def _noised(task: ImageTask, x: Array, keep: Array, add: Array, level: Array, key: Array, numbers: Array) -> Rows:
    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(_keys(key, numbers))
    return jax.vmap(lambda x_s: entries_of(task.of_noised(x_s, level)))(keep * x + add * noise)


def _keys(key: Array, numbers: Array) -> Array:
    return jax.vmap(lambda key: purpose_key(key, Purpose.TASK, 0))(sample_keys(key, numbers))
