"""A folder of images packed into one file at one size, as written by `python -m ddpm_jax.data pack`.

The file is an array_record with N + 2 records and those of its columns: the pixels of each image file of the folder,
H * W * C bytes in the order of the names (empty for a file that could not be read); the columns
(`data.packed_columns`); the names; and a header in JSON. Each record has a checksum.
"""

import bisect
import importlib
import os
import sys
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.data import image_source as source_lib
from ddpm_jax.data.image_decoding import fit_array
from ddpm_jax.data.image_listing import class_labels, is_hidden, printable, skipped_note
from ddpm_jax.data.image_source import ImageSource
from ddpm_jax.data.packed_columns import PackedColumns
from ddpm_jax.data.splits import split_name, split_rows
from ddpm_jax.data.unreadable_images import ReplacingSource
from ddpm_jax.runtime.errors import UserError, arg, did_you_mean
from ddpm_jax.runtime.json_files import is_count, parse_json

ENDING = ".array_record"
FORMAT = "pictures packed by ddpm_jax"
VERSION = 2  # 1: without columns


def make_packed(*, split: str, image_size: tuple[int, int], num_channels: int, path: str) -> ImageSource:
    """The images of a packed file. At the size of the file they are the same as those of `make_folder`.

    Args:
        split: as for the folder: the name of a first-level sub-folder; otherwise `train` or `all`; slices of them.
        image_size: (H, W) in pixels; if it is not the size of the file, images are resized, and `notes` says so.
        num_channels: 1 or 3.
        path: the file.

    Raises:
        UserError: the file is damaged or of another kind, or there is no such split.
    """
    pack = open_pack(path)
    start, files = _part(pack, split)
    rows = split_rows(split, num_examples=len(files))
    labels, class_names = class_labels(files)
    shape = (*image_size, num_channels)
    # As for the folder: a data set that fits in memory was read completely, so it lacks every damaged file. Of a larger
    # one only the headers were checked, and an image that is damaged further on is replaced by another.
    in_memory = source_lib.fits_in_memory(len(files), shape)
    unreadable = {index - start: fault for index, fault in pack.unreadable.items()}
    left_out = [row for row in rows.tolist() if row in unreadable and (in_memory or unreadable[row][0] == "header")]
    notes = _size_note(pack, shape)
    if left_out:
        notes += (skipped_note([(files[row], unreadable[row][1]) for row in left_out], len(rows), split),)
    good = rows[~np.isin(rows, left_out)]
    if not len(good):
        raise UserError(f"{arg('path')} {path!r}: no image of {arg('split')} {split!r} could be read; {notes[-1]}")

    def fit(image: np.ndarray | Exception) -> np.ndarray | Exception:
        if isinstance(image, Exception):
            return image
        return fit_array(image, image_size=image_size, num_channels=num_channels)

    def attempt_many(indices: list[int]) -> list[np.ndarray | Exception]:
        return [fit(image) for image in pack.read([start + int(good[index]) for index in indices])]

    source = ReplacingSource(
        attempt_many,
        lambda index: printable(files[good[index]]),
        place=pack.path,
        num_examples=len(good),
        image_shape=shape,
        labels=None if labels is None else labels[good],
        notes=notes,
        columns=pack.columns(start + good),
    )
    source.class_names = class_names
    return source


def is_packed(path: str) -> bool:
    """Whether `path` is a packed file, not a folder."""
    return path.endswith(ENDING) and not Path(os.path.expanduser(path)).is_dir()


@dataclass
class Pack:
    """An open packed file."""

    path: str
    image_shape: tuple[int, int, int]
    names: list[str]  # of the N image files of the folder, separated by "/", sorted
    unreadable: dict[int, tuple[str, str]]  # number -> ("header" or "body", reason)
    _columns: list[dict]  # as in the header
    _reader: Any
    _lock: threading.Lock

    def read(self, indices: list[int]) -> list[np.ndarray | Exception]:
        """n numbers -> n images uint8 [H, W, C], or exceptions for damaged ones."""
        with self._lock:
            try:
                records = self._reader.read(indices)
            except Exception:  # one of them is damaged: find out which
                records = [self._read_one(index) for index in indices]
        return [
            OSError(self.unreadable[index][1]) if record == b""
            else record if isinstance(record, Exception)
            else np.frombuffer(record, np.uint8).reshape(self.image_shape)
            for index, record in zip(indices, records, strict=True)
        ]  # fmt: skip

    def columns(self, rows: np.ndarray) -> PackedColumns:
        """The columns of these images, by name."""
        return PackedColumns(self._columns, self._read_records, rows, self.path)

    def _read_records(self, numbers: list[int]) -> list[bytes]:
        with self._lock:
            return self._reader.read(numbers)

    def _read_one(self, index: int) -> bytes | Exception:
        try:
            return self._reader.read([index])[0]
        except Exception as error:  # RuntimeError at present; not documented by the library
            return error


def open_pack(path: str) -> Pack:
    """Opens the packed file at `path`, and reads its names and header.

    Raises:
        UserError: it is damaged, truncated, or another kind of file.
    """
    file = str(Path(os.path.expanduser(path)))
    if not os.path.isfile(file):
        raise UserError(f"{arg('path')} must name a folder of images or a packed file; got {path!r} (no such file)")
    reader = array_record_module().ArrayRecordReader(file)
    num_records = reader.num_records()  # 0 for any file without a proper end
    if num_records == 0:
        raise UserError(f"{arg('path')} {path!r} is damaged, truncated or not an array_record; pack the folder again")
    try:
        names, header = reader.read([num_records - 2, num_records - 1]) if num_records > 1 else (b"", b"")
        facts = parse_json(header, dict)
        if facts["format"] != FORMAT:
            raise ValueError("another format")
        names = os.fsdecode(zlib.decompress(names)).split("\0")
        version = facts["version"]
        is_later = is_count(version) and version > VERSION
        if not is_later:
            shape = tuple(facts["image_shape"])
            unreadable = {index: (kind, reason) for index, kind, reason in facts["unreadable"]}
            if len(shape) != 3 or not all(is_count(number, least=1) for number in (version, *shape)):
                raise ValueError("another header")
    except (RuntimeError, ValueError, KeyError, TypeError, zlib.error):
        raise UserError(
            f"{arg('path')} {path!r} is an array_record file with other contents, or damaged; "
            "give a file that python -m ddpm_jax.data pack wrote"
        ) from None
    if is_later:
        raise UserError(
            f"{arg('path')} {path!r} has version {version}, and this ddpm_jax reads versions 1 to {VERSION}; "
            "pack it again, or upgrade ddpm_jax"
        )
    return Pack(
        file,
        shape,
        names,
        unreadable,
        facts.get("columns", []),
        reader,
        threading.Lock(),
    )


def array_record_module():
    """`array_record.python.array_record_module`; raises UserError if none is installed that works."""
    try:
        return importlib.import_module("array_record.python.array_record_module")
    except ImportError as error:  # missing, or one of the old packages, which were built for Linux but install anywhere
        remedy = "there is none for Windows" if sys.platform == "win32" else "pip install -U array_record"
        reason = " ".join(str(error).split())[:80]
        raise UserError(
            f"packed images need the package array_record ({reason}): {remedy}; or read the folder itself"
        ) from None


def _part(pack: Pack, split: str) -> tuple[int, list[str]]:
    """The first file of the split, and the names from there on: those of the sub-folder, or all names."""
    name = split_name(split)
    start, stop = (bisect.bisect_left(pack.names, name + mark) for mark in ("/", "0"))  # "0" comes after "/"
    if start < stop and not is_hidden(name):
        return start, [file[len(name) + 1 :] for file in pack.names[start:stop]]
    if name in ("train", "all"):
        return 0, pack.names
    allowed = sorted({file.split("/", 1)[0] for file in pack.names if "/" in file})
    shown = ", ".join(allowed[:8]) + (", ..." if len(allowed) > 8 else "")
    raise UserError(
        f"{arg('split')} must be 'train' (all images), a slice such as 'train[:95%]', or a sub-folder that was packed "
        f"into {pack.path!r} ({shown or 'it had none'}); got {split!r}{did_you_mean(name, allowed)}"
    )


def _size_note(pack: Pack, shape: tuple[int, int, int]) -> tuple[str, ...]:
    if shape == pack.image_shape:
        return ()
    packed, wanted = ("x".join(map(str, sizes)) for sizes in (pack.image_shape, shape))
    return (f"packed at {packed} and resized to {wanted}: pack at that size for the same images as from the folder",)
