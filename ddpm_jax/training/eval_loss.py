"""The mean training loss of held-out pictures, with the same t and noise at every evaluation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ddpm_jax.data import ImageSource
from ddpm_jax.data.batch import Batch
from ddpm_jax.data.eval_batches import Batches
from ddpm_jax.runtime.compilation import compiler_options
from ddpm_jax.runtime.devices import AS_GIVEN, batch_sharded, replicated


class HeldOut:
    """mean_loss(params) over the first pictures of a source, on all devices.

    Args:
      eval_step: of `training.train_step.make_eval_step`.
      batch_size: pictures at a time; rounded up to a multiple of the number of devices.
      max_images: the most that are used; 0 for all.
      labelled: with the labels of the source, for a network with classes.
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
        labelled: bool = False,
    ):
        self._batches = Batches(source, mesh, batch_size=batch_size, max_images=max_images, labelled=labelled)
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
        """The mean over the held-out pictures."""
        total = 0.0
        for index in range(len(self._batches)):
            # The repeats that fill up the last batch do not count.
            total += float(self._batch_loss(params, *self._batches.load(index), self._key))
        return total / self.num_images
