"""The images of a source in batches of equal shape, over all devices."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ddpm_jax.data import ImageSource
from ddpm_jax.data.batch import Batch
from ddpm_jax.data.condition import ConditionSpec
from ddpm_jax.data.image_source import check_columns, load_rows
from ddpm_jax.runtime.devices import put_batch


class EvalBatches:
    """The first images of a source. The last batch is filled up with repeats, which `rows` and `gather` leave out.

    Args:
      batch_size: images per batch; rounded up to a multiple of the number of devices.
      max_images: the most images that are used; 0 for all.
      spec: the columns of the source that the network gets as its condition.
    """

    def __init__(
        self,
        source: ImageSource,
        mesh: Mesh,
        *,
        batch_size: int,
        max_images: int = 0,
        spec: ConditionSpec | None = None,
    ):
        self.num_images = min(len(source), max_images) if max_images else len(source)
        self.batch_size = -(-min(batch_size, self.num_images) // mesh.size) * mesh.size
        self._source, self._mesh, self._spec = source, mesh, spec or {}
        check_columns(source, self._spec)

    @property
    def facts(self) -> dict[str, int]:
        """The shape of the batches, as JSON: the last digits of results depend on it."""
        return {"batch_size": self.batch_size, "num_devices": self._mesh.size}

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def load(self, index: int) -> tuple[Batch, jax.Array]:
        """Batch 0..len-1, of B images, and its ids int32 [B], over the mesh."""
        ids = np.arange(index * self.batch_size, (index + 1) * self.batch_size, dtype=np.int32)
        share = np.split(ids, jax.process_count())[jax.process_index()]
        batch = load_rows(self._source, np.minimum(share, self.num_images - 1), self._spec)
        return put_batch(batch, self._mesh), put_batch(share, self._mesh)

    def rows(self, index: int) -> slice:
        """The positions of the batch's images among all images."""
        return slice(index * self.batch_size, min((index + 1) * self.batch_size, self.num_images))

    def gather(self, index: int, array: jax.Array) -> np.ndarray:
        """The results for batch `index`, [B, ...] over the mesh, on every host, without the repeats."""
        rows = self.rows(index)
        if jax.process_count() > 1:
            array = multihost_utils.process_allgather(array, tiled=True)
        return np.asarray(array)[: rows.stop - rows.start]
