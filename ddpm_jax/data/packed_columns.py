"""The columns of a packed file: further data of each image besides its label, packed together with the pixels.

They come from a `.npz` with the array `names`, which lists the image files as they are named below the folder (with
"/"), and any other arrays with one row for each of these, or ragged (`data.ragged`). In the packed file each column is
a series of records of at most `BLOCK_BYTES`, in the order of the image files.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.data.array_file import NpzColumns, npz_names, read_column
from ddpm_jax.data.ragged import Ragged
from ddpm_jax.runtime.errors import UserError, arg

BLOCK_BYTES = 2**24
NAMES = "names"
_KINDS = "biuf"  # kinds of dtypes: bool, integers, floats


def columns_for(path: str, files: list[str]) -> dict[str, np.ndarray | Ragged]:
    """The columns of the `.npz` at `path`, with a row for each of `files`, in their order.

    Raises:
        UserError: it cannot be read, lacks `names`, a file or a row, or a column is not numeric.
    """
    file = Path(os.path.expanduser(path))
    if not file.is_file() or file.suffix.lower() != ".npz":
        why = "" if file.is_file() else " (no such file)"
        raise UserError(f"{arg('columns')} must name a .npz file; got {path!r}{why}")
    arrays = npz_names(file)
    if NAMES not in arrays:
        raise UserError(
            f"{arg('columns')} {path!r} must hold the array 'names', the image file of each row, such as "
            f"{files[0]!r}; it holds {arrays}"
        )
    names = [str(name) for name in read_column(file, NAMES, ragged=False).tolist()]
    row_of = {name: row for row, name in enumerate(names)}
    missing = [name for name in files if name not in row_of]
    if missing or len(row_of) < len(names):
        what = f"no row for {missing[0]!r}" if missing else "a name twice"
        raise UserError(
            f"{arg('columns')} {path!r} must have one row for each of the {len(files)} images; it has {what}"
        )
    rows = np.array([row_of[name] for name in files], np.int64)
    columns = dict(NpzColumns(file, [name for name in arrays if name != NAMES], len(names), rows))
    if "label" in columns:
        raise UserError(
            f"{arg('columns')} {path!r} must not hold 'label': labels come from the sub-folders of the images; give it "
            "another name"
        )
    for name, column in columns.items():
        if column.dtype.kind not in _KINDS:
            raise UserError(f"{arg('columns')} {path!r}: {name!r} must hold numbers; got {column.dtype}")
    return columns


def write_columns(write: Callable[[bytes], Any], first: int, columns: Mapping[str, np.ndarray | Ragged]) -> list[dict]:
    """Writes the columns as records, from record number `first` on; returns their entry in the header."""
    facts = []
    for name, column in columns.items():
        ragged = isinstance(column, Ragged)
        arrays = [column.values, column.offsets.astype(np.int64)] if ragged else [column]
        parts = []
        for array in arrays:
            array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            whole = array.tobytes()
            blocks = range(0, max(len(whole), 1), BLOCK_BYTES)
            for start in blocks:
                write(whole[start : start + BLOCK_BYTES])
            last = first + len(blocks)
            parts.append({"dtype": array.dtype.str, "shape": list(array.shape), "records": [first, last]})
            first = last
        facts.append({"name": name, "ragged": ragged, "parts": parts})
    return facts


class PackedColumns(Mapping):
    """The columns of a packed file by name; each is read at its first access and then kept.

    Args:
      facts: the entry in the header; see `write_columns`.
      read: numbers of records -> their bytes.
      rows: the images of the file that belong to the source.
      path: for messages.
    """

    def __init__(self, facts: list[dict], read: Callable[[list[int]], list[bytes]], rows: np.ndarray, path: str):
        self._facts = {fact["name"]: fact for fact in facts}
        self._read, self._rows, self._path = read, rows, path
        self._kept: dict[str, np.ndarray | Ragged] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)

    def __contains__(self, name: object) -> bool:
        return name in self._facts  # does not read the column

    def __getitem__(self, name: str) -> np.ndarray | Ragged:
        fact = self._facts[name]
        if name not in self._kept:
            parts = [self._array(part) for part in fact["parts"]]
            self._kept[name] = (Ragged(*parts) if fact["ragged"] else parts[0])[self._rows]
        return self._kept[name]

    def _array(self, part: dict) -> np.ndarray:
        try:
            whole = b"".join(self._read(list(range(*part["records"]))))
            return np.frombuffer(whole, part["dtype"]).reshape(part["shape"])
        except (RuntimeError, ValueError) as error:  # from the library: a damaged record
            reason = str(error).splitlines()[0][:80]
            raise UserError(
                f"{arg('path')} {os.fspath(self._path)!r} has a damaged column ({reason}); pack the folder again"
            ) from None
