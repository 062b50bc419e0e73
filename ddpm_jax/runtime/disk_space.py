"""A disk without room: asked before a checkpoint, recognised in what fails, and said in one line."""

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ddpm_jax.runtime import multi_host
from ddpm_jax.runtime.errors import UserError

# What a checkpoint holds beside the arrays: metadata, the config, the manifest, and room for metrics and images.
MARGIN_BYTES = 1_000_000

# No space left, the quota is used up, a file larger than is permitted (ulimit -f).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(UserError):
    """The disk has no room; all that was committed before stays, and the same command goes on once there is some.

    Its exit code is apart from 2, since nothing in the command is to be mended: whatever starts the command
    again may do so as it is. 74 is EX_IOERR of sysexits.h.
    """

    exit_code = 74


def is_full(error: BaseException) -> bool:
    """Whether an error, or one that caused it, says that the disk is full; those of Orbax say it in their text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(f"[os_error_code='{number}']" in str(error) for number in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def check_room(folder: str | os.PathLike, num_bytes: int, purpose: str) -> None:
    """Raises DiskFullError, on all processes alike, where `folder` has less room than `num_bytes`.

    Args:
      purpose: what needs it, such as "the next checkpoint".
    """
    # As process 0 sees it: with two answers one process would save and another stop.
    if multi_host.broadcast_from_first(shutil.disk_usage(folder).free < num_bytes):
        raise full_error(folder, f"{purpose} needs about {size_text(num_bytes)}")


def full_error(folder: str | os.PathLike, what: str) -> DiskFullError:
    """The error with what happened, how much is free, and the remedy."""
    free = size_text(shutil.disk_usage(folder).free)
    return DiskFullError(
        f"no room on the disk: {what}, and {folder} has {free} free (a quota may allow less); free some space, "
        "then the same command goes on from the last checkpoint"
    )


@contextmanager
def disk_full_as_user_error(folder: str | os.PathLike) -> Iterator[None]:
    """Makes an error that says that the disk is full a DiskFullError."""
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
    """Ends the block with a warning where the disk is full: for what a run can do without."""
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        print(f"warning: {what} could not be written, since the disk is full; training goes on", file=sys.stderr,
              flush=True)


def folder_bytes(folder: str | os.PathLike) -> int:
    """The bytes of all files below a folder; of those that go meanwhile, none."""
    total = 0
    for parent, _, names in os.walk(folder):  # passes over folders that go meanwhile
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue  # deleted since it was listed
    return total


def size_text(num_bytes: int) -> str:
    """`num_bytes` as a person says it: 1.4 GB."""
    power = min(max(len(str(num_bytes)) - 1, 0) // 3, 4)
    return f"{num_bytes / 1000**power:.{1 if power else 0}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
