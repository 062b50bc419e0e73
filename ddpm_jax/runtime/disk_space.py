"""Full disks: checked before a checkpoint, recognised in exceptions, and reported in one line."""

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ddpm_jax.runtime import multi_host
from ddpm_jax.runtime.errors import UserError

# Room for everything but the arrays of a checkpoint: metadata, config, manifest, metrics and images.
MARGIN_BYTES = 1_000_000

# No space left, quota exceeded, file larger than permitted (ulimit -f).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(UserError):
    """The disk is full. Everything committed before stays, and the same command resumes once there is room.

    The exit code differs from 2, because the command itself is correct: whatever restarts the command may do so
    without a change. 74 is EX_IOERR of sysexits.h.
    """

    exit_code = 74


def is_full(error: BaseException) -> bool:
    """Whether an error, or one that caused it, says that the disk is full; those of Orbax say so only in their text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(f"[os_error_code='{number}']" in str(error) for number in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def check_room(folder: str | os.PathLike, num_bytes: int, purpose: str) -> None:
    """Raises DiskFullError, on all processes together, if `folder` has less room than `num_bytes`.

    Args:
      purpose: what needs the room, such as "the next checkpoint".
    """
    # Process 0 decides for all; otherwise one process might save and another stop.
    if multi_host.broadcast_from_first(shutil.disk_usage(folder).free < num_bytes):
        raise full_error(folder, f"{purpose} needs about {size_text(num_bytes)}")


def full_error(folder: str | os.PathLike, what: str) -> DiskFullError:
    """The error: what happened, how much space is free, and the remedy."""
    if hasattr(os, "statvfs") and (found := os.statvfs(folder)).f_files and not found.f_favail:
        state, remedy = "the disk of {} has no inode left for another file", "delete some files"
    else:
        free = size_text(shutil.disk_usage(folder).free)
        state, remedy = f"{{}} has {free} free (a quota may allow less)", "free some space"
    return DiskFullError(
        f"no room on the disk: {what}, and {state.format(folder)}; {remedy}, then the same command resumes from the "
        "last checkpoint"
    )


@contextmanager
def disk_full_as_user_error(folder: str | os.PathLike) -> Iterator[None]:
    """Turns any error that says that the disk is full into a DiskFullError."""
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        name = getattr(error, "filename", None)
        raise full_error(folder, f"{name or 'a file'} could not be written") from error


@contextmanager
def disk_full_as_warning(what: str) -> Iterator[None]:
    """Ends the block with a warning if the disk is full: for files that a run can do without."""
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        print(f"warning: {what} could not be written, because the disk is full; training continues", file=sys.stderr,
              flush=True)


def folder_bytes(folder: str | os.PathLike) -> int:
    """The bytes of all files below a folder; files that are deleted meanwhile do not count."""
    total = 0
    for parent, _, names in os.walk(folder):  # skips folders that are deleted meanwhile
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue  # deleted since it was listed
    return total


def size_text(num_bytes: int) -> str:
    """`num_bytes` in a readable form: 1.4 GB."""
    power = min(max(len(str(num_bytes)) - 1, 0) // 3, 4)
    return f"{num_bytes / 1000**power:.{1 if power else 0}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
