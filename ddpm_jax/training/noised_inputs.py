"""Images as x_0 at random steps with noise: the inputs of the objectives whose networks see x_t."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from ddpm_jax.codecs.codec import Codec
from ddpm_jax.data.batch import Batch
from ddpm_jax.data.condition import Condition
from ddpm_jax.diffusion.rng import Purpose, encoding_keys, purpose_key, sample_keys
from ddpm_jax.diffusion.timestep_samplers import TimestepSampler
from ddpm_jax.training.metrics_window import Binned

NUM_T_BINS = 4
# (x_0 [B, *D], keys [B]) -> the derived entries of the condition; see `data.condition.Entry`.
DeriveFn = Callable[[Float[Array, "B *D"], Key[Array, "B"]], Condition]


@no_type_check
class NoisedInputs(NamedTuple):
    """x_0, its step, its noise and its condition."""

    x_0: Float[Array, "B *D"]
    t: Int[Array, "B"]
    eps: Float[Array, "B *D"]
    condition: Condition
    sees_estimate: Bool[Array, "B"] | None = None  # with self-conditioning; the same for all images of a step


def draw_inputs(
    codec: Codec,
    batch: Batch,
    key: Key[Array, ""],
    time_sampler: TimestepSampler,
    extra: Mapping[str, PyTree],
    derive_fn: DeriveFn | None = None,
) -> tuple[NoisedInputs, Float[Array, "B"]]:
    """The inputs of a training step for its batch; the weights come from the time sampler.

    Args:
      extra: has the history of the time sampler as "t_history", if there is one.
      derive_fn: gives the derived entries of the condition, which the batch lacks.
    """
    _, key_t, key_eps, _ = jax.random.split(key, 4)
    of_codec = sample_keys(purpose_key(key, Purpose.ENCODE, 0), jnp.arange(len(batch.image)))
    x_0 = codec.encode(batch.image, of_codec)
    t, weights = time_sampler.sample(extra.get("t_history"), key_t, x_0.shape[0])
    condition = batch.condition
    if derive_fn is not None:
        keys = sample_keys(purpose_key(key, Purpose.TASK, 0), jnp.arange(len(x_0)))
        condition = {**condition, **derive_fn(x_0, keys)}
    return NoisedInputs(x_0, t, jax.random.normal(key_eps, x_0.shape, jnp.float32), condition), weights


def held_out_inputs(
    codec: Codec, batch: Batch, ids: Int[Array, "B"], key: Key[Array, ""], num_steps: int
) -> NoisedInputs:
    """Image i has the same t and eps at every evaluation, so that numbers at different steps are comparable.

    t is the i-th element of a stratified sequence over 0..T-1 (from the golden ratio); eps comes from fold_in(key, i).
    """
    # frac(i * 0.618...) in integers: float32 would lose digits at large i.
    golden = (ids.astype(jnp.uint32) + 1) * jnp.uint32(2654435769)
    t = jnp.minimum((golden.astype(jnp.float32) * 2.0**-32 * num_steps).astype(jnp.int32), num_steps - 1)
    keys = sample_keys(key, ids)
    x_0 = codec.encode(batch.image, encoding_keys(keys))
    eps = jax.vmap(lambda key: jax.random.normal(key, x_0.shape[1:], jnp.float32))(keys)
    return NoisedInputs(x_0, t, eps, batch.condition)


def by_quarter_of_t(
    values: Float[Array, "B"], weights: Float[Array, "B"], t: Int[Array, "B"], num_steps: int
) -> Binned:
    """The weighted sums of the values in the four quarters of 0..T-1."""
    # Sums, not matrix products: a TPU rounds the inputs of matrix products to bfloat16.
    which = jax.nn.one_hot(t * NUM_T_BINS // num_steps, NUM_T_BINS)  # [B, 4]
    return Binned(jnp.sum((weights * values)[:, None] * which, axis=0), jnp.sum(weights[:, None] * which, axis=0))
