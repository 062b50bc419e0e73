"""The mean loss of held-out images, on all devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from ddpm_jax.data import ImageSource
from ddpm_jax.data.batch import Batch
from ddpm_jax.data.condition import ConditionSpec
from ddpm_jax.data.eval_batches import EvalBatches
from ddpm_jax.runtime.compilation import compiler_options
from ddpm_jax.runtime.devices import AS_GIVEN, batch_sharded, replicated

# (params, frozen, batch, ids int32 [B], key) -> the loss of each image, [B]: see `Objective.eval_losses`.
EvalLosses = Callable[..., Float[Array, "B"]]


class EvalLoss:
    """mean_loss(params) over the first images of a source, on all devices.

    Args:
      eval_losses: the method of an `Objective`.
      batch_size: images per batch; rounded up to a multiple of the number of devices.
      max_images: the most images that are used; 0 for all.
      spec: the columns of the source that the network gets as its condition.
      frozen: arrays that the objective does not train.
    """

    def __init__(
        self,
        source: ImageSource,
        eval_losses: EvalLosses,
        *,
        key: jax.Array,
        mesh: Mesh,
        batch_size: int,
        max_images: int = 0,
        spec: ConditionSpec | None = None,
        frozen: PyTree = (),
    ):
        self._batches = EvalBatches(source, mesh, batch_size=batch_size, max_images=max_images, spec=spec)
        self.num_images, self._key = self._batches.num_images, key
        self.notes = source.notes

        def batch_loss(params: dict, frozen: PyTree, data: Batch, ids: jax.Array, key: jax.Array) -> jax.Array:
            losses = eval_losses(params, frozen, data, ids, key)
            return jnp.sum(jnp.where(ids < self.num_images, losses, 0.0))

        everywhere, batch = replicated(mesh), batch_sharded(mesh)
        self._frozen = jax.device_put(frozen, everywhere)
        self._batch_loss = jax.jit(
            batch_loss,
            in_shardings=(AS_GIVEN, everywhere, batch, batch, everywhere),
            out_shardings=everywhere,
            compiler_options=compiler_options(),
        )

    def mean_loss(self, params: dict) -> float:
        """The mean over the held-out images."""
        total = 0.0
        for index in range(len(self._batches)):
            # The repeated images that fill up the last batch do not count.
            total += float(self._batch_loss(params, self._frozen, *self._batches.load(index), self._key))
        return total / self.num_images
