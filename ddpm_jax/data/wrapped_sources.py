"""Sources that change another one: errors with other names, smaller images, or columns computed from the images."""

import collections
from collections.abc import Callable, Mapping

import numpy as np

from ddpm_jax.data.condition import ConditionSpec, Entry
from ddpm_jax.data.image_source import ImageSource
from ddpm_jax.runtime.errors import UserError, arg, arguments_named

# (images uint8 [N, H, W, C], their numbers in the source int [N]) -> columns by name, [N, ...] each.
ColumnsFn = Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]]


class WrappedSource:
    """A source that is another one in all respects."""

    def __init__(self, source: ImageSource):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """That of the source."""
        return self._source.image_shape

    @property
    def labels(self) -> np.ndarray | None:
        """That of the source."""
        return self._source.labels

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """That of the source."""
        return getattr(self._source, "columns", {})

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the source; () if its labels have no names."""
        return getattr(self._source, "class_names", ())

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the source, which may have become more."""
        return self._source.notes

    def load(self, indices: np.ndarray) -> np.ndarray:
        """That of the source."""
        return self._source.load(indices)

    def taken(self, indices: np.ndarray) -> np.ndarray:
        """That of the source, if it replaces damaged images."""
        return self._source.taken(indices) if hasattr(self._source, "taken") else indices


class RenamingSource(WrappedSource):
    """A source whose errors, which may occur as late as when an image is read, name the arguments by `names`.

    Args:
        names: see `runtime.errors.arguments_named`.
    """

    def __init__(self, source: ImageSource, names: Callable[[str], str | None]):
        super().__init__(source)
        self._names = names

    def load(self, indices: np.ndarray) -> np.ndarray:
        """That of the source."""
        with arguments_named(self._names):
            return self._source.load(indices)


class ShrunkSource(WrappedSource):
    """A source whose images are the means of blocks of factor x factor pixels, rounded, halves upwards.

    Args:
        source: of uint8 images, [H * factor, W * factor, C].

    Raises:
        UserError: other data.
    """

    def __init__(self, source: ImageSource, factor: int):
        super().__init__(source)
        *sizes, _ = source.image_shape
        probe = source.load(np.arange(0))
        if len(sizes) != 2 or probe.dtype != np.uint8 or any(size % factor for size in sizes):
            raise UserError(
                f"{arg('area_factor')} must be 1 for other data than uint8 images; got {factor} for {probe.dtype} "
                f"arrays of shape {list(source.image_shape)}"
            )
        self._factor = factor

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C) of the small images."""
        height, width, channels = self._source.image_shape
        return height // self._factor, width // self._factor, channels

    def load(self, indices: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, C]."""
        height, width, channels = self.image_shape
        factor, images = self._factor, self._source.load(indices)
        blocks = images.reshape(len(images), height, factor, width, factor, channels)
        sums = blocks.sum((2, 4), dtype=np.int64)
        return ((2 * sums + factor**2) // (2 * factor**2)).astype(np.uint8)


class DerivingSource(WrappedSource):
    """A source with further columns, which are computed from its images whenever rows of them are read.

    Args:
        spec: the columns, as entries of a condition.
        columns_fn: computes them.
    """

    def __init__(self, source: ImageSource, spec: ConditionSpec, columns_fn: ColumnsFn):
        super().__init__(source)
        self._columns_fn, self._last = columns_fn, (b"", {})
        self._derived = {name: _DerivedColumn(self, name, entry) for name, entry in spec.items()}

    def derived(self, numbers: np.ndarray) -> Mapping[str, np.ndarray]:
        """The derived columns of these rows; those of the last call are kept, because columns are read in turn."""
        numbers = np.asarray(numbers)
        key, last = numbers.tobytes(), self._last  # one tuple: another thread may replace it
        if last[0] != key:
            last = self._last = key, self._columns_fn(self._source.load(numbers), numbers)
        return last[1]

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """Those of the source, and the derived ones."""
        return collections.ChainMap(self._derived, super().columns)


class _DerivedColumn:
    """What is read of a column: shape, dtype, size, and rows by their numbers."""

    def __init__(self, source: DerivingSource, name: str, entry: Entry):
        self._source, self._name = source, name
        self.shape, self.dtype = (len(source), *entry.shape), np.dtype(entry.dtype)
        self.size = int(np.prod(self.shape, dtype=np.int64))

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        return self._source.derived(numbers)[self._name]
