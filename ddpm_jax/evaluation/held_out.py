"""The mean training loss of held-out pictures, with the same t and noise at every evaluation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.data import ImageSource
from ddpm_jax.devices import batch_sharded, compiler_options, put_batch, replicated


class HeldOut:
    """mean_loss(params) over the first pictures of a source, on all devices.

    Args:
      eval_step: of `training.step.make_eval_step`.
      batch_size: pictures at a time; rounded up to a multiple of the number of devices.
      max_images: the most that are used; 0 for all.
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
    ):
        self.num_images = min(len(source), max_images) if max_images else len(source)
        self._source, self._key, self._mesh = source, key, mesh
        self._batch_size = -(-min(batch_size, self.num_images) // mesh.size) * mesh.size

        def batch_loss(params: dict, images: jax.Array, ids: jax.Array, key: jax.Array) -> jax.Array:
            losses = eval_step(params, images, ids, key)
            return jnp.sum(jnp.where(ids < self.num_images, losses, 0.0))

        everywhere, batch = replicated(mesh), batch_sharded(mesh)
        self._batch_loss = jax.jit(
            batch_loss,
            in_shardings=(everywhere, batch, batch, everywhere),
            out_shardings=everywhere,
            compiler_options=compiler_options(),
        )

    def mean_loss(self, params: dict) -> float:
        """The mean over the held-out pictures."""
        total = 0.0
        for start in range(0, self.num_images, self._batch_size):
            # The last batch is filled up with repeats, whose loss does not count.
            ids = np.arange(start, start + self._batch_size, dtype=np.int32)
            share = self._local(ids)
            images = self._source.load(np.minimum(share, self.num_images - 1))
            total += float(
                self._batch_loss(params, put_batch(images, self._mesh), put_batch(share, self._mesh), self._key)
            )
        return total / self.num_images

    def _local(self, ids: np.ndarray) -> np.ndarray:
        """This process's contiguous block of the ids of a batch."""
        return np.split(ids, jax.process_count())[jax.process_index()]
