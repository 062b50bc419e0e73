"""Writes a folder of images into one file, which is read faster than the images can be decoded."""

import glob
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddpm_jax.data.image_decoding import decode_image, read_header
from ddpm_jax.data.image_listing import Listing, list_images, skipped_note
from ddpm_jax.data.image_source import ThreadMap
from ddpm_jax.data.packed_columns import columns_for, write_columns
from ddpm_jax.data.packed_file import ENDING, FORMAT, VERSION, array_record_module, open_pack
from ddpm_jax.data.unreadable_images import reason_of
from ddpm_jax.runtime.errors import UserError, arg, arguments_named
from ddpm_jax.runtime.progress import ProgressBar

# One record per chunk, so that reading one record reads no other. With compression, reading takes twice as long (zstd,
# 12 % smaller) or ten times (PNG, 36 % smaller); benchmarks/data_rates.py measures it.
_OPTIONS = "group_size:1,uncompressed"
_BLOCK_BYTES = 2**26  # of pixels decoded before they are written


@dataclass(frozen=True)
class Packed:
    """The result of `pack_folder`."""

    path: str
    num_images: int
    num_bytes: int
    notes: tuple[str, ...]
    columns: tuple[str, ...]  # the names of the stored columns


def pack_folder(
    folder: str,
    out: str,
    *,
    image_size: tuple[int, int],
    num_channels: int,
    columns: str = "",
    overwrite: bool = False,
) -> Packed:
    """Writes all images below `folder`, at one size, to `out`; the file is complete or does not exist.

    Args:
        folder: see `make_folder`.
        out: the file; `.array_record` is appended if it is missing.
        image_size: (H, W) in pixels.
        num_channels: 1 or 3.
        columns: a `.npz` with further data of each image, see `packed_columns`; empty: none.
        overwrite: whether an existing file may be replaced.

    Raises:
        UserError: no image can be read, `columns` does not fit the images, `out` exists or cannot be written, or the
            disk is too small.
    """
    path = Path(os.path.abspath(Path(os.path.expanduser(out))))
    if path.suffix != ENDING:
        path = path.with_name(path.name + ENDING)
    if path.exists() and not overwrite:
        raise UserError(f"{str(path)!r} exists; give another name, or {arg('overwrite')} to replace it")
    if path.is_dir():
        raise UserError(f"{str(path)!r} is a folder; give the name of a file")
    module = array_record_module()  # before the folder is listed, because the module may be missing
    with arguments_named({"path": arg("folder")}.get):
        listing = list_images(folder)
    known = columns_for(columns, listing.files) if columns else {}
    shape = (*image_size, num_channels)
    with _new_file(path) as part:
        _check_space(part, len(listing.files), shape)
        writer = module.ArrayRecordWriter(str(part), _OPTIONS)
        try:
            unreadable = _write_images(writer, listing, shape)
            if len(unreadable) == len(listing.files):
                reasons = [(listing.files[index], reason) for index, _, reason in unreadable]
                raise UserError(f"no image could be read: {skipped_note(reasons, len(listing.files))}")
            facts = write_columns(writer.write, len(listing.files), known)
            header = {
                "format": FORMAT, "version": VERSION, "image_shape": shape, "unreadable": unreadable, "columns": facts
            }  # fmt: skip
            writer.write(zlib.compress(os.fsencode("\0".join(listing.files))))
            writer.write(json.dumps(header).encode())
        finally:
            writer.close()
    notes = listing.notes()
    if unreadable:
        reasons = [(listing.files[index], reason) for index, _, reason in unreadable]
        notes += (skipped_note(reasons, len(listing.files)),)
    return Packed(str(path), len(listing.files) - len(unreadable), path.stat().st_size, notes, tuple(known))


def _write_images(writer, listing: Listing, shape: tuple[int, int, int]) -> list[tuple[int, str, str]]:
    """Writes one record per file; returns (number, "header" or "body", reason) of the unreadable files."""

    def attempt(index: int) -> bytes | tuple[int, str, str]:
        try:
            name = listing.openable(index)
            return decode_image(name, image_size=shape[:2], num_channels=shape[2]).tobytes()
        except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
            return index, "body" if _has_header(listing, index) else "header", reason_of(error)

    unreadable = []
    attempt_many = ThreadMap(attempt)
    block = max(_BLOCK_BYTES // int(np.prod(shape)), 16)
    with ProgressBar(len(listing.files), "packing", "image") as bar:
        for start in range(0, len(listing.files), block):
            results = attempt_many(range(start, min(start + block, len(listing.files))))
            for result in results:
                if not isinstance(result, bytes):
                    unreadable.append(result)
                writer.write(result if isinstance(result, bytes) else b"")
            bar.update(len(results))
    return unreadable


def _has_header(listing: Listing, index: int) -> bool:
    """Whether a damaged file passes the header check that is used for folders too large for memory."""
    try:
        read_header(listing.openable(index))
    except Exception:  # Pillow's decoders raise nearly anything on a damaged file
        return False
    return True


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to; its file replaces `path` when the block ends without an exception."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        part.touch()
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written ({error.strerror}); give another name") from None
    try:
        yield part
        open_pack(str(part))  # the library reports a full disk late: the file counts as complete once it was read
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{str(path)!r} could not be written ({str(error).splitlines()[0][:100]})") from None
    finally:
        part.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Deletes temporary files of killed commands that packed into the same file."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        process = leftover.name[len(path.name) + 2 : -len(".part")]
        if process.isdigit() and not _is_running(int(process)):
            leftover.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only asks whether the process exists
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # a process of another user
    return True


def _check_space(part: Path, num_images: int, shape: tuple[int, int, int]) -> None:
    needed = num_images * (int(np.prod(shape)) + 128)  # a record has some bytes of overhead
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise UserError(
            f"{num_images:,} images of {'x'.join(map(str, shape))} take {needed / 1e9:.1f} GB, and "
            f"{str(part.parent)!r} has {free / 1e9:.1f} GB left; pack to another disk or at a smaller "
            f"{arg('image_size')}"
        )
