"""The loss of held-out images, with the same t and noise for an image at every evaluation."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree

from ddpm_jax.data import ImageSource
from ddpm_jax.data.batch import Batch, to_model_scale
from ddpm_jax.data.condition import ConditionSpec
from ddpm_jax.data.eval_batches import EvalBatches
from ddpm_jax.diffusion.losses import LossFn
from ddpm_jax.runtime.compilation import compiler_options
from ddpm_jax.runtime.devices import AS_GIVEN, batch_sharded, replicated


def make_eval_step(model: nn.Module, loss_fn: LossFn) -> Callable[[PyTree, Array, Array, Array], Array]:
    """eval_step(params, batch, ids int32 [B], key) -> the loss of each image, [B]; nothing is dropped.

    Image i has the same t and eps at every evaluation: t is the i-th of a stratified sequence over 0..T-1
    (the golden ratio's), eps comes from fold_in(key, i). Numbers at different steps can be compared.
    """

    num_steps = loss_fn.process.num_steps

    def eval_step(params: PyTree, batch: Batch, ids: Int[Array, "B"], key: Key[Array, ""]) -> Float[Array, "B"]:
        x_0 = to_model_scale(batch.image)
        # frac(i * 0.618...) by whole numbers: float32 would lose its digits at large i.
        golden = (ids.astype(jnp.uint32) + 1) * jnp.uint32(2654435769)
        t = jnp.minimum((golden.astype(jnp.float32) * 2.0**-32 * num_steps).astype(jnp.int32), num_steps - 1)
        eps = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), x_0.shape[1:]))(ids)

        def model_fn(x_t: Array, t: Array) -> Array:
            return model.apply({"params": params}, x_t, t, batch.condition)

        return loss_fn(model_fn, x_0=x_0, t=t, eps=eps)["loss"]

    return eval_step


class EvalLoss:
    """mean_loss(params) over the first images of a source, on all devices.

    Args:
      eval_step: of `make_eval_step`.
      batch_size: images at a time; rounded up to a multiple of the number of devices.
      max_images: the most that are used; 0 for all.
      spec: what the network is told, of the columns of the source.
    """

    def __init__(
        self,
        source: ImageSource,
        eval_step: Callable[..., jax.Array],
        *,
        key: jax.Array,
        mesh: Mesh,
        batch_size: int,
        max_images: int = 0,
        spec: ConditionSpec | None = None,
    ):
        self._batches = EvalBatches(source, mesh, batch_size=batch_size, max_images=max_images, spec=spec)
        self.num_images, self._key = self._batches.num_images, key
        self.notes = source.notes

        def batch_loss(params: dict, data: Batch, ids: jax.Array, key: jax.Array) -> jax.Array:
            losses = eval_step(params, data, ids, key)
            return jnp.sum(jnp.where(ids < self.num_images, losses, 0.0))

        everywhere, batch = replicated(mesh), batch_sharded(mesh)
        self._batch_loss = jax.jit(
            batch_loss,
            in_shardings=(AS_GIVEN, batch, batch, everywhere),
            out_shardings=everywhere,
            compiler_options=compiler_options(),
        )

    def mean_loss(self, params: dict) -> float:
        """The mean over the held-out images."""
        total = 0.0
        for index in range(len(self._batches)):
            # The repeats that fill up the last batch do not count.
            total += float(self._batch_loss(params, *self._batches.load(index), self._key))
        return total / self.num_images
