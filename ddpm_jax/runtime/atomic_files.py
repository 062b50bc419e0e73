"""Files that are there whole or not at all, whatever moment the process ends at."""

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
    """An open file that takes the place of `path` when the block ends without an exception.

    The folder of `path` is made where it is missing. After an exception `path` is as it was before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is atomic only within one file system.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_folder(flag: str, folder: str) -> None:
    """Makes the folder; raises UserError, which names the flag, where nothing can be written: before hours of work."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{flag}: the folder {folder} cannot be written ({error.strerror}); give another") from error


@contextmanager
def new_folder(flag: str, path: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends without an exception: whole or not at all.

    Raises:
      UserError: names the flag; `path` is there and holds something, or it cannot be made.
    """
    path = Path(os.path.abspath(path))
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{flag} must be a new folder or an empty one; {path} holds something")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{flag}: the folder {path} cannot be made ({error.strerror}); give another") from error
    try:
        yield part
        os.replace(part, path)  # an empty folder gives way
    finally:
        shutil.rmtree(part, ignore_errors=True)
