"""Files that are there whole or not at all, whatever moment the process ends at."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ddpm_jax.errors import UserError


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
