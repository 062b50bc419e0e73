"""One array file, `.npz` or `.npy`, of uint8 images, or of other data."""

import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ddpm_jax.data.image_source import MEMORY_BUDGET_BYTES, ImageSource, RowsSource, fit_images
from ddpm_jax.data.ragged import OFFSETS, VALUES, Ragged, column_names
from ddpm_jax.data.splits import check_split, split_rows
from ddpm_jax.runtime.errors import UserError, arg

_IMAGE_KEYS = {"train": ("arr_0", "images", "x_train"), "test": ("x_test",)}
_LABEL_KEYS = {"train": ("labels", "arr_1", "y_train"), "test": ("y_test",)}
_ALL_KEYS = {key for keys in (*_IMAGE_KEYS.values(), *_LABEL_KEYS.values()) for key in keys}

_PIXELS, _VALUES = "dtype='uint8'", "dtype='float32'"  # settings, as `arg` names them
_CHECKED_VALUES = 2**22  # values that are checked at a time, so that a file larger than memory can be

# NumPy parses the header of an array as Python source, so a damaged one fails in the tokenizer or the parser; an
# archive with a password raises RuntimeError.
_READ_ERRORS = (
    ValueError, OverflowError, TypeError, OSError, EOFError, KeyError, SyntaxError, tokenize.TokenError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def make_array(
    *,
    split: str,
    image_size: tuple[int, ...] | None,
    num_channels: int | None,
    path: str,
    dtype: str = "uint8",
) -> ImageSource:
    """The images of a `.npy` file (memory-mapped, so larger than memory is fine) or of one array of a `.npz`.

    Arrays of real numbers, and arrays whose rows have another number of sizes than two, are read as they are.

    Args:
        split: `train` or `all`: everything; `test`: `x_test`, if the file has it; slices of them.
        image_size: (H, W) in pixels; None for the array's own size; or the sizes of other data, such as (length,).
        num_channels: 1 or 3, or as many as the array has; None for the array's own number.
        path: file with uint8 [N, H, W] or [N, H, W, C]. In a `.npz` the array is `arr_0`, `images`, `x_train` or the
            only one, and its labels, integers [N], are `labels`, `arr_1` or `y_train`. The other arrays are `columns`,
            by name (NAME.values and NAME.offsets are the ragged column NAME), unless there is an `x_test`; each is read
            at its first access. Suspicious contents that may be intended (labels of another kind, pixels that are all
            0 or 1) are reported in `notes`.
        dtype: "uint8", or "float32" for real numbers, which the file may hold in any type.

    Raises:
        UserError: the file is missing or damaged, or its array has another type or layout.
    """
    name = check_split(split, ("train", "test", "all"))
    key = "test" if name == "test" else "train"
    file = Path(os.path.expanduser(path))
    if not path or not file.is_file() or file.suffix.lower() not in (".npz", ".npy"):
        kind = "a folder" if path and file.is_dir() else "" if file.is_file() else "no such file"
        raise UserError(
            f"{arg('path')} must name a .npz or .npy file of images for {arg('name')}='array'; got {path!r}"
            + (f" ({kind})" if kind and path else "")
            + (f"; to read a folder of images take {arg('name')}=image_folder" if kind == "a folder" else "")
        )
    images, labels, others = _read(file, key)
    labels, notes = _class_numbers(labels, file)
    as_it_is = dtype != "uint8" or (image_size is not None and len(image_size) != 2)
    if as_it_is:
        images = _other_data(images, (*image_size, num_channels), np.dtype(dtype), file)
    else:
        images = _checked(images, num_channels, file)
        notes += _range_note(images, file)
        image_size = image_size or images.shape[1:3]
        num_channels = num_channels or images.shape[-1]
        if num_channels != images.shape[-1] and not {num_channels, images.shape[-1]} <= {1, 3}:
            raise UserError(
                f"{arg('num_channels')} must be {images.shape[-1]}, as in {str(file)!r}; got {num_channels} "
                "(only 1 and 3 are converted into each other)"
            )
    if labels is not None and len(labels) != len(images):
        raise UserError(f"{str(file)!r} holds {len(images)} images but {len(labels)} labels; give one label per image")
    num_images = len(images)
    rows = split_rows(split, num_examples=num_images)
    if as_it_is:
        labels = None if labels is None else labels[rows]
        source = RowsSource(images, rows, labels, notes, dtype=dtype)
        source.columns = NpzColumns(file, others, num_images, rows)
        return source
    if len(rows) < len(images):
        # Indexing copies a part of a memory-mapped file into memory.
        images, labels = images[rows], None if labels is None else labels[rows]
    source = fit_images(images, labels, image_size=image_size, num_channels=num_channels)
    source.notes += notes
    source.columns = NpzColumns(file, others, num_images, rows)
    return source


class NpzColumns(Mapping):
    """Arrays of a `.npz` by name, each with one row per image; each is read at its first access and then kept.

    Args:
      num_images: the number of images in the file.
      rows: the rows that belong to the source.
    """

    def __init__(self, file: Path, names: Sequence[str], num_images: int, rows: np.ndarray):
        self._file, self._num_images, self._rows = file, num_images, rows
        self._ragged = column_names(list(names))
        self._kept: dict[str, np.ndarray | Ragged] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._ragged)

    def __len__(self) -> int:
        return len(self._ragged)

    def __contains__(self, name: object) -> bool:
        return name in self._ragged  # does not read the array

    def __getitem__(self, name: str) -> np.ndarray | Ragged:
        if name not in self._ragged:
            raise KeyError(name)
        if name not in self._kept:
            column = read_column(self._file, name, ragged=self._ragged[name])
            num_rows = len(column) if self._ragged[name] or np.ndim(column) else 0
            if num_rows != self._num_images:
                raise UserError(
                    f"{str(self._file)!r} must have {self._num_images} rows in {name!r}, one per image; got {num_rows}"
                )
            self._kept[name] = column[self._rows]
        return self._kept[name]


def npz_names(file: Path) -> list[str]:
    """The names of the arrays of a `.npz`; raises UserError if it cannot be read."""
    with _named_read_errors(file), np.load(file, allow_pickle=False) as arrays:
        return _array_names(arrays)


def _array_names(arrays: np.lib.npyio.NpzFile) -> list[str]:
    """The names of the arrays, without other files in the archive."""
    return [name.removesuffix(".npy") for name in arrays.zip.namelist() if name.endswith(".npy")]


def read_column(file: Path, name: str, *, ragged: bool) -> np.ndarray | Ragged:
    """One column of a `.npz`; see `ragged.column_names`.

    Raises:
        UserError: it cannot be read, or is not a column.
    """
    with _named_read_errors(file), np.load(file, allow_pickle=False) as arrays:
        keys = [name + VALUES, name + OFFSETS] if ragged else [name]
        for key in keys:
            _check_size(arrays, key, file)
        parts = [arrays[key] for key in keys]
    if not ragged:
        return parts[0]
    try:
        return Ragged(*parts)
    except ValueError as error:
        raise UserError(f"{str(file)!r}: {name + OFFSETS!r}: {error}") from None


@contextmanager
def _named_read_errors(file: Path) -> Iterator[None]:
    """Turns errors of NumPy into one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{str(file)!r} does not fit in memory ({error}); save the images alone as .npy") from None
    except _READ_ERRORS as error:
        raise UserError(
            f"{str(file)!r} cannot be read as a NumPy file ({' '.join(str(error).split())}); "
            "save it again with np.save or np.savez (no object arrays)"
        ) from None


def _read(file: Path, key: str) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """The images, the labels, and the names of the other arrays."""
    with _named_read_errors(file):
        if file.suffix.lower() == ".npy":
            if key == "test":
                raise UserError(f"{arg('split')} must be 'train' for a .npy file (it holds one array); got 'test'")
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise UserError(f"{str(file)!r} is a .npz file by its content; rename it")
            return array, None, []
        if not zipfile.is_zipfile(file):
            raise UserError(
                f"{str(file)!r} cannot be read as a NumPy file (its content is not a .npz archive); "
                "give it the right extension, or save it again with np.savez"
            )
        with np.load(file, allow_pickle=False) as arrays:
            names = _array_names(arrays)
            image_key = next((k for k in _IMAGE_KEYS[key] if k in names), None)
            if image_key is None and key == "train" and len(names) == 1:
                image_key = names[0]
            if image_key is None:
                wanted = ", ".join(_IMAGE_KEYS[key])
                raise UserError(
                    f"{str(file)!r} must hold its images as {wanted}"
                    + (" or as its only array" if key == "train" else "")
                    + f" for {arg('split')}={key!r}; it holds {', '.join(names) or 'nothing'}"
                )
            label_key = next((k for k in _LABEL_KEYS[key] if k in names and k != image_key), None)
            _check_size(arrays, image_key, file)
            # If there is an x_test, it would be unclear to which images the rows belong.
            others = [] if "x_test" in names else [name for name in names if name not in (*_ALL_KEYS, image_key)]
            return arrays[image_key], arrays[label_key] if label_key else None, others


def _check_size(arrays: np.lib.npyio.NpzFile, key: str, file: Path) -> None:
    """Raises UserError if the unpacked array is larger than the machine's memory; a small file may claim any size."""
    entries = {entry.filename: entry.file_size for entry in arrays.zip.infolist()}
    size, memory = entries.get(f"{key}.npy", entries.get(key, 0)), _memory_bytes()
    if memory is not None and size > memory:
        raise UserError(
            f"{str(file)!r}: {key!r} takes {size / 1e9:.1f} GB unpacked, and the machine has {memory / 1e9:.1f} GB of "
            "memory; save the images alone with np.save as .npy, which is read piece by piece"
        )


def _memory_bytes() -> int | None:
    """The memory of the whole machine; None if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _class_numbers(labels: np.ndarray | None, file: Path) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Integers [N] or [N, 1] as int64 [N]; None and a note for anything else."""
    if labels is None:
        return None, ()
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        got = f"{labels.dtype} {list(labels.shape)}"
        return None, (f"the labels in {str(file)!r} are ignored: they must be integers [N]; got {got}",)
    return labels.astype(np.int64), ()


def _range_note(images: np.ndarray, file: Path) -> tuple[str, ...]:
    """A note if the pixels of some images from all over the file are 0..1 instead of 0..255."""
    if images[:: max(len(images) // 256, 1)].max() > 1:
        return ()
    return (f"the pixels in {str(file)!r} are all 0 or 1 of 255, nearly black; save 255 * x if they mean 0..1",)


def _other_data(values: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, file: Path) -> np.ndarray:
    """[N, *shape], as the file holds it; raises a UserError for another shape, another type, or NaN."""
    if values.ndim == len(shape) and shape[-1] == 1:
        values = values[..., None]
    got = f"{values.dtype} {list(values.shape)}"
    if values.shape[1:] != shape:
        raise UserError(
            f"{str(file)!r} must hold rows of shape {list(shape)}, {arg('image_size')} and {arg('num_channels')}; "
            f"got {got}"
        )
    if not len(values):
        raise UserError(f"{str(file)!r} has no rows: {got}")
    if dtype == np.uint8:
        if values.dtype != np.uint8:
            raise UserError(
                f"{str(file)!r} must hold uint8 for {arg(_PIXELS)}; got {got}: for real numbers give {arg(_VALUES)}"
            )
        return values
    if values.dtype.kind not in "fiu":
        raise UserError(f"{str(file)!r} must hold real numbers; got {got}")
    if values.nbytes > MEMORY_BUDGET_BYTES:
        return values  # reading it all would take too long: NaN shows in the loss
    most, num_rows = np.finfo(np.float32).max, max(1, _CHECKED_VALUES // math.prod(shape))
    for first in range(0, len(values), num_rows):
        part = values[first : first + num_rows]
        wrong = ~(np.abs(part.astype(np.float64)) <= most)
        if wrong.any():
            row = first + int(np.argmax(wrong.reshape(len(part), -1).any(1)))
            what = f"NaN, infinite or too large values, first in row {row}"
            raise UserError(f"{str(file)!r} has {what}; leave such rows out")
    return values


def _checked(images: np.ndarray, num_channels: int | None, file: Path) -> np.ndarray:
    """uint8 [N, H, W, C]; raises a UserError that says how to convert anything else.

    Where the axes can be read in two ways, the number of channels that is asked for decides.
    """
    got = f"{images.dtype} {list(images.shape)}"
    want = f"{str(file)!r} must hold uint8 images [N, H, W] or [N, H, W, C]; got {got}"
    if images.ndim == 3:
        if images.shape[-1] == num_channels and num_channels in (3, 4):
            raise UserError(f"{want}, which looks like one image [H, W, C]; save x[None]")
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise UserError(f"{want}; reshape it")
    channels_first = images.shape[1] in (1, 3, 4) and images.shape[3] not in (1, 3, 4)
    if channels_first and images.shape[3] != num_channels:
        raise UserError(f"{want}, which looks like [N, C, H, W]; save x.transpose(0, 2, 3, 1)")
    if images.dtype != np.uint8:
        raise UserError(f"{want}{_to_uint8_remedy(images)}; for real numbers that are not pixels: {arg(_VALUES)}")
    if not len(images):
        raise UserError(f"{want}: no images")
    return images


def _to_uint8_remedy(images: np.ndarray) -> str:
    """` with values LOW..HIGH; save ...`, from the first images."""
    part = np.asarray(images[:256])
    if part.dtype.kind not in "iuf" or not part.size:
        return "; save it as uint8, 0..255"
    low, high = part.min(), part.max()
    remedy = "scale it to 0..255 and save it as uint8"
    if 1 < high <= 255 and low >= 0:
        remedy = "save x.round().astype('uint8')" if part.dtype.kind == "f" else "save x.astype('uint8')"
    elif 0 <= low and high <= 1:
        remedy = "save (255 * x).round().astype('uint8')"
    elif -1 <= low and high <= 1:
        remedy = "save ((x + 1) * 127.5).round().astype('uint8')"
    return f" with values {low:g}..{high:g}; {remedy}"
