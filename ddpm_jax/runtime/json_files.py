"""JSON from files that may be damaged, edited by hand, or of another kind: every fault is a ValueError of one line."""

import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 2**20  # no file that ddpm_jax writes comes near


def parse_json(text: str | bytes, kind: type | None = None) -> Any:
    """The value of a JSON text.

    Args:
      kind: dict or list: what the value must be; None: anything.

    Raises:
      ValueError: not UTF-8, not JSON, nested too deeply, or another kind.
    """
    try:
        value = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except ValueError as error:  # a number of too many digits, too
        raise ValueError(str(error).splitlines()[0]) from None
    if kind is not None and not isinstance(value, kind):
        wanted = "an object" if kind is dict else "a list"
        raise ValueError(f"must hold {wanted}; got {type(value).__name__}")
    return value


def read_json(path: str | os.PathLike, kind: type | None = None) -> Any:
    """The value of a JSON file; see `parse_json`.

    Raises:
      OSError: no such file, or no permission.
      ValueError: also if the file is larger than MAX_BYTES, or no regular file, such as a pipe or a device.
    """
    return parse_json(read_limited(path), kind)


def read_limited(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most `max_bytes`; raises like `read_json`."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("not a regular file")
    if found.st_size > max_bytes:
        raise ValueError(f"{found.st_size} bytes, more than the {max_bytes} that are read")
    return Path(path).read_bytes()


def is_count(value: Any, least: int = 0) -> bool:
    """Whether a value of JSON is a whole number of at least `least`, small enough for a step or an index."""
    return type(value) is int and least <= value < 2**53
