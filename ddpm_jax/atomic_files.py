"""Files that are there whole or not at all, whatever moment the process ends at."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


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
