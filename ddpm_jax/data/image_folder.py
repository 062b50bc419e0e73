"""A folder of images of any size, in any of the common formats, some of which may be damaged."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ddpm_jax.data import image_source as source_lib
from ddpm_jax.data.image_decoding import decode_image, read_header, stored_shape
from ddpm_jax.data.image_listing import (
    Listing,
    checked_folder,
    class_labels,
    is_hidden,
    list_images,
    printable,
    skipped_note,
)
from ddpm_jax.data.image_source import ImageSource, RowsSource, ThreadMap
from ddpm_jax.data.splits import split_name, split_rows
from ddpm_jax.data.unreadable_images import ReplacingSource, reason_of
from ddpm_jax.runtime.errors import UserError, arg, did_you_mean
from ddpm_jax.runtime.progress import ProgressBar

_BLOCK = 2048  # files read between two updates of the progress bar and checks for Ctrl-C
_HEADER_THREADS = 16  # reading a header is mostly waiting for the disk or the network
_QUIET_SECONDS = 2.0  # reading that takes longer shows a progress bar


def make_folder(*, split: str, image_size: tuple[int, int], num_channels: int, path: str) -> ImageSource:
    """The images under `path`, at any depth, in the order of their relative names.

    Hidden files and folders, `__MACOSX`, and files without the extension of an image are ignored. An unreadable file is
    skipped and listed in `notes`. If every image is in one of at least two sub-folders, the label is the alphabetical
    rank of the (first-level) sub-folder. `image_decoding.decode_image` says how modes, transparency and sizes are
    converted.

    A folder that fits in `source.MEMORY_BUDGET_BYTES` is decoded here, once for all splits in use. Of a larger one only
    the headers are read here; a file that turns out to be damaged later is replaced by the next good one (with the same
    class).

    Args:
        split: the name of a sub-folder of `path`; otherwise `train` or `all` for everything; slices of them.
        image_size: (H, W) in pixels.
        num_channels: 1 or 3.
        path: the folder.

    Raises:
        UserError: there is no such folder or split, or no readable image in it.
    """
    listing = list_images(_split_folder(checked_folder(path), split))
    rows = split_rows(split, num_examples=len(listing.files))
    labels, class_names = class_labels(listing.files)
    shape = (*image_size, num_channels)

    in_memory = source_lib.fits_in_memory(len(listing.files), shape)
    if in_memory:
        store = listing.stores.get(shape) or _Store(listing, shape)
        reasons = _attempt(store.decode, listing, rows[~store.is_good[rows]])
        good = rows[store.is_good[rows]]
    else:
        reasons = _check_headers(listing, rows)
        good = rows[listing.is_good[rows]]
    notes = listing.notes()
    if reasons:
        notes += (skipped_note(reasons, len(rows), split),)
    if not len(good):
        raise UserError(f"{arg('path')} {listing.root!r}: no image could be read; {notes[-1]}")
    labels = None if labels is None else labels[good]
    source = _SharedSource(store, good, labels, notes) if in_memory else _OnDemand(listing, good, shape, labels, notes)
    source.class_names = class_names
    return source


def first_image_shape(path: str) -> tuple[int, int, int]:
    """(H, W, C) of the first readable image under `path`, C = 1 for grey, else 3; UserError if there is none."""
    listing = list_images(path)
    for row in range(len(listing.files)):
        try:
            return stored_shape(listing.openable(row))
        except Exception:  # Pillow's decoders raise nearly anything on a damaged file
            continue
    raise UserError(f"{arg('path')} {listing.root!r} holds no image file that can be read")


class _Store:
    """The decoded images of one folder at one size, shared by the splits."""

    def __init__(self, listing: Listing, shape: tuple[int, int, int]):
        # The system allocates pages when they are written, so rows that belong to no split cost nothing.
        self.images = np.empty((len(listing.files), *shape), np.uint8)
        self.is_good = np.zeros(len(listing.files), bool)
        self._listing, self._shape = listing, shape
        listing.stores[shape] = self

    def decode(self, row: int) -> None:
        """Decodes one file into its row; raises on failure."""
        self.images[row] = _decode(self._listing, row, self._shape)
        self.is_good[row] = True


class _SharedSource(RowsSource):
    """A split of a folder in memory; keeps the decoded images alive, which other splits may share."""

    def __init__(self, store: _Store, rows: np.ndarray, labels: np.ndarray | None, notes: tuple[str, ...]):
        super().__init__(store.images, rows, labels, notes)
        self._store = store


class _OnDemand(ReplacingSource):
    """A split of a folder too large for memory."""

    def __init__(self, listing: Listing, rows: np.ndarray, shape: tuple[int, int, int], labels, notes):
        def attempt(index: int) -> np.ndarray | Exception:
            try:
                return _decode(listing, int(rows[index]), shape)
            except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
                return error

        super().__init__(
            ThreadMap(attempt),
            lambda index: printable(listing.files[rows[index]]),
            place=listing.root,
            num_examples=len(rows),
            image_shape=shape,
            labels=labels,
            notes=notes,
        )


def progress_blocks(items: np.ndarray, description: str, block: int = _BLOCK) -> Iterator[np.ndarray]:
    """`items` in blocks, with a progress bar if it takes more than two seconds."""
    bar, start = None, time.monotonic()
    for done in range(0, len(items), block):
        if bar is None and time.monotonic() - start > _QUIET_SECONDS:
            bar = ProgressBar(len(items), description, "image", initial=done)
        part = items[done : done + block]
        yield part
        if bar is not None:
            bar.update(len(part))
    if bar is not None:
        bar.close()


def _decode(listing: Listing, row: int, shape: tuple[int, int, int]) -> np.ndarray:
    return decode_image(listing.openable(row), image_size=shape[:2], num_channels=shape[2])


def _check_headers(listing: Listing, rows: np.ndarray) -> list[tuple[str, str]]:
    """Marks the good files in the listing; returns (name, reason) of the others."""

    def check(row: int) -> None:
        read_header(listing.openable(row))
        listing.is_good[row] = True

    return _attempt(check, listing, rows[~listing.is_good[rows]], _HEADER_THREADS)


def _attempt(
    function: Callable[[int], None], listing: Listing, rows: np.ndarray, num_threads: int = 0
) -> list[tuple[str, str]]:
    """Calls `function(row)` from threads; returns (name, reason) of the rows for which it raised, in order."""

    def attempt(row: int) -> tuple[str, str] | None:
        try:
            function(row)
        except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
            return listing.files[row], reason_of(error)
        return None

    attempt_many = ThreadMap(attempt, num_threads)
    blocks = progress_blocks(rows, "reading images")
    return [reason for block in blocks for reason in attempt_many(block.tolist()) if reason is not None]


def _split_folder(folder: Path, split: str) -> str:
    """The sub-folder with the split's name, else the folder itself for `train` and `all`."""
    name = split_name(split)
    if (folder / name).is_dir() and not is_hidden(name):
        return str(folder / name)
    if name in ("train", "all"):
        return str(folder)
    allowed = sorted(p.name for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))
    shown = ", ".join(allowed[:8]) + (", ..." if len(allowed) > 8 else "")
    raise UserError(
        f"{arg('split')} must be 'train' (all images), a slice such as 'train[:95%]', or a sub-folder of "
        f"{str(folder)!r} ({shown or 'it has none'}); got {split!r}{did_you_mean(name, allowed)}"
    )
