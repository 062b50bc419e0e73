"""Files that are either complete or absent, even if the process is killed while it writes."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ddpm_jax.runtime.errors import UserError


@contextmanager
def replace_file(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """An open file that replaces `path` when the block ends without an exception.

    The folder of `path` is created if it is missing. After an exception `path` is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_folder(flag: str, folder: str) -> None:
    """Creates the folder; raises UserError, naming the flag, if it cannot be written. For a check before long work."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{flag}: the folder {folder} cannot be written ({error.strerror}); give another") from error


def check_new_folder(flag: str, path: str | os.PathLike) -> None:
    """Raises UserError if `path` exists and is not an empty folder, or is the current folder."""
    path = Path(os.path.abspath(path))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{flag} must be a new or empty folder; {path} is not empty")
    if path.exists() and path.samefile(os.curdir):  # it is replaced: a shell in it would be nowhere
        raise UserError(f"{flag} must be a new or empty folder; {path} is the current one: give one inside it")


@contextmanager
def new_folder(flag: str, path: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill, which becomes `path`, complete, when the block ends without an exception.

    Raises:
      UserError: `path` exists and is not empty, or it cannot be created; the message names the flag.
    """
    check_new_folder(flag, path)
    path = Path(os.path.abspath(path))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{flag}: the folder {path} cannot be created ({error.strerror}); give another") from error
    try:
        yield part
        os.replace(part, path)  # replaces an empty folder
    finally:
        shutil.rmtree(part, ignore_errors=True)
