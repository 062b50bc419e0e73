"""The interface of an image source, and its two implementations: all images in memory, or decoded on demand."""

import collections
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import numpy as np

from ddpm_jax.data.batch import Batch
from ddpm_jax.data.condition import MASK, ConditionSpec, Entry
from ddpm_jax.data.ragged import Ragged
from ddpm_jax.runtime.errors import UserError, arg

# Data sets up to this size are decoded once and kept; larger ones are decoded for each batch.
MEMORY_BUDGET_BYTES = 2 * 2**30


@runtime_checkable
class ImageSource(Protocol):
    """Random access to uint8 images of one shape, or to other arrays (`codecs.codec.Codec.dtype`).

    A source may also have `columns`, further data of each image besides its label, by name, [N, ...] or `Ragged` each;
    `taken(indices)`, if it replaces damaged images by others: the numbers of the images that `load` returned; and
    `class_names`, one per label, such as the names of sub-folders.
    """

    image_shape: tuple[int, ...]  # (H, W, C); (*sizes, C) of other data
    labels: np.ndarray | None  # int64 [N], or None
    notes: tuple[str, ...]  # lines to show to the user once; usually ()

    def __len__(self) -> int: ...

    def load(self, indices: np.ndarray) -> np.ndarray:
        """indices int [B], 0..N-1 -> uint8 [B, H, W, C]; safe to call from a background thread."""
        ...


def columns_of(source: ImageSource) -> Mapping[str, np.ndarray | Ragged]:
    """The data of the images by name: "label", and the source's `columns` if it has some; N rows each."""
    label = {} if source.labels is None else {"label": source.labels}
    return collections.ChainMap(label, getattr(source, "columns", {}))


def check_columns(source: ImageSource, spec: ConditionSpec) -> None:
    """Raises UserError unless the source has the columns of the network's condition."""
    known = columns_of(source)
    for name, entry in spec.items():
        column = column_name(name, entry)
        if column not in known:
            raise UserError(f"{arg('source')} must have the columns of {arg('spec')}; {column!r} is not in {[*known]}")
        values = known[column]
        ragged = isinstance(values, Ragged)
        if ragged != (entry.kind in ("sequence", "mask")):
            kind = "a ragged column" if ragged else "a column whose rows are of one length"
            raise UserError(f"{arg('source')} has {kind} {column!r}, and {arg('spec')} has it as {entry.kind!r}")
        shape = entry.shape if entry.kind == "mask" else _row_shape(values, entry)
        if shape != entry.shape:
            raise UserError(
                f"{arg('source')} must have rows of shape {list(entry.shape)} in its column {column!r}; "
                f"got {list(shape)}"
            )
        if entry.kind != "mask":
            _check_values(column, values.values if ragged else values, entry)
        if ragged and values.lengths.max(initial=0) > entry.shape[0]:
            raise UserError(
                f"{arg('source')} has rows of up to {values.lengths.max()} values in its column {column!r}; "
                f"{arg('spec')} has {entry.shape[0]}"
            )


def _check_values(column: str, values: np.ndarray, entry: Entry) -> None:
    """Raises UserError for values that the entry's dtype cannot represent."""
    dtype = np.dtype(entry.dtype)
    kinds = "biuf" if dtype.kind == "f" else "b" if dtype.kind == "b" else "biu"
    fits = values.dtype.kind in kinds
    if fits and dtype.kind in "iu" and values.size and not entry.derived:  # derived ones are computed in that type
        info, low, high = np.iinfo(dtype), int(values.min()), int(values.max())
        fits = info.min <= low and high <= info.max
    if not fits:
        within = f", {values.min()}..{values.max()}" if values.dtype.kind in "iu" and values.size else ""
        raise UserError(
            f"{arg('source')} must have values that fit {dtype} in its column {column!r}; got {values.dtype}{within}"
        )


def _row_shape(values: np.ndarray | Ragged, entry: Entry) -> tuple[int, ...]:
    return (*entry.shape[:1], *values.values.shape[1:]) if isinstance(values, Ragged) else values.shape[1:]


def column_name(name: str, entry: Entry) -> str:
    """The column for an entry of a condition: the one of the same name; for a mask, that of its sequence."""
    return name.removesuffix(MASK) if entry.kind == "mask" else name


def load_rows(source: ImageSource, indices: np.ndarray, spec: ConditionSpec) -> Batch:
    """The images, and the entries of `spec` from the columns of the source."""
    columns = columns_of(source) if spec else {}

    images = source.load(indices)
    taken = source.taken(indices) if hasattr(source, "taken") else indices  # replaces damaged images

    def rows_of(name: str, entry: Entry) -> np.ndarray:
        rows = columns[column_name(name, entry)][taken]
        if entry.kind == "mask":
            return rows.mask(entry.shape[0])
        return np.asarray(rows.padded(entry.shape[0]) if entry.kind == "sequence" else rows, entry.dtype)

    return Batch(images, {name: rows_of(name, entry) for name, entry in spec.items()})


class ArraySource:
    """Images in memory (or in a memory-mapped file) in their final shape, [N, H, W, C], or other arrays [N, *sizes, C].

    Args:
        dtype: that batches have.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        notes: tuple[str, ...] = (),
        *,
        dtype: str = "uint8",
    ):
        self._images, self._dtype = images, np.dtype(dtype)
        self.image_shape = tuple(int(n) for n in images.shape[1:])
        self.labels = labels
        self.notes = notes

    def __len__(self) -> int:
        return len(self._images)

    def load(self, indices: np.ndarray) -> np.ndarray:
        """images[indices]; [B, H, W, C]."""
        return np.ascontiguousarray(self._images[np.asarray(indices)], self._dtype)


class RowsSource(ArraySource):
    """Some rows of an image array that several splits share."""

    def __init__(
        self,
        images: np.ndarray,
        rows: np.ndarray,
        labels: np.ndarray | None,
        notes: tuple[str, ...] = (),
        *,
        dtype: str = "uint8",
    ):
        super().__init__(images, labels, notes, dtype=dtype)
        self._rows = rows  # int64 [n]

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, indices: np.ndarray) -> np.ndarray:
        """images[rows[indices]]; uint8 [B, H, W, C]."""
        return super().load(self._rows[np.asarray(indices)])


class DecodedSource:
    """Images that `decode_many` makes on access; each only once if the whole data set fits in memory."""

    def __init__(
        self,
        decode_many: Callable[[list[int]], Iterable[np.ndarray]],
        *,
        num_examples: int,
        image_shape: tuple[int, int, int],
        labels: np.ndarray | None = None,
    ):
        self._decode_many = decode_many  # n indices -> n images uint8 [H, W, C]
        self._num_examples = num_examples
        self.image_shape = image_shape
        self.labels = labels
        self.notes: tuple[str, ...] = ()
        self._kept = None
        if fits_in_memory(num_examples, image_shape):
            # The system allocates the pages of `_kept` when they are written, so an unused part costs nothing.
            self._kept = np.empty((num_examples, *image_shape), np.uint8)
            self._is_kept = np.zeros(num_examples, bool)

    def __len__(self) -> int:
        return self._num_examples

    def load(self, indices: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, C]. Two threads may decode the same image; both write the same bytes."""
        indices = np.asarray(indices)
        if not len(indices):
            return np.empty((0, *self.image_shape), np.uint8)
        if self._kept is None:
            return np.stack(list(self._decode_many(indices.tolist())))
        missing = np.unique(indices[~self._is_kept[indices]]).tolist()
        for index, image in zip(missing, self._decode_many(missing), strict=True):
            self._kept[index] = image
            self._is_kept[index] = True
        return self._kept[indices]


class ThreadMap:
    """`map` over threads, in order. Pillow releases the interpreter lock while it decodes and resizes.

    Args:
        function: called with one item.
        num_threads: 0 for one per core, up to 16.
    """

    _MOST_AT_A_TIME = 32  # items per task: starting a task costs as much as reading a header

    def __init__(self, function: Callable[..., object], num_threads: int = 0):
        self._function = function
        self._num_threads = num_threads or min(os.cpu_count() or 1, 16)
        self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="ddpm_jax-decode")

    def __call__(self, items: Iterable[object]) -> list:
        items = list(items)
        if self._num_threads == 1 or len(items) < 4:
            return self._run(items)
        size = min(max(len(items) // (4 * self._num_threads), 1), self._MOST_AT_A_TIME)
        parts = self._pool.map(self._run, (items[i : i + size] for i in range(0, len(items), size)))
        return [result for part in parts for result in part]

    def _run(self, items: list) -> list:
        return [self._function(item) for item in items]


def fits_in_memory(num_examples: int, image_shape: tuple[int, int, int]) -> bool:
    """Whether N * H * W * C bytes are within the budget."""
    return num_examples * int(np.prod(image_shape, dtype=np.int64)) <= MEMORY_BUDGET_BYTES


def fit_images(
    images: np.ndarray,
    labels: np.ndarray | None,
    *,
    image_size: tuple[int, int],
    num_channels: int,
) -> ImageSource:
    """A source of `images`, uint8 [N, h, w, c], converted to image_size and num_channels if they differ."""
    shape = (*image_size, num_channels)
    if images.shape[1:] == shape:
        return ArraySource(images, labels)
    from ddpm_jax.data.image_decoding import fit_array  # imports Pillow, which is not needed if the sizes are equal

    fit = ThreadMap(lambda i: fit_array(images[i], image_size=image_size, num_channels=num_channels))
    return DecodedSource(fit, num_examples=len(images), image_shape=shape, labels=labels)
