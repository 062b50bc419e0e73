"""Reads TensorFlow checkpoints (the V2 format of TF 1.x and 2.x) as NumPy arrays by name, without TensorFlow.

PREFIX.index is a table (`leveldb_table`): name -> a protocol buffer with type, shape, shard, position and checksum.
PREFIX.data-00000-of-0000N are the shards: the concatenated bytes of the tensors.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ddpm_jax.interchange.crc32c import crc32c, unmasked
from ddpm_jax.interchange.leveldb_table import DamagedFile, read_varint, table_items
from ddpm_jax.runtime.errors import UserError

# Their type numbers; 7 is text.
_TEXT = 7
_DTYPES = {
    1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 14: jnp.bfloat16, 17: "<u2", 19: "<f2",
    22: "<u4", 23: "<u8",
}  # fmt: skip
_MOST_DIMENSIONS = 32  # the limit of NumPy is this, or 64


@dataclass
class _Entry:
    """The position of a tensor."""

    dtype: int = 0
    shape: list[int] = field(default_factory=list)
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int = 0
    is_sliced: bool = False


def read_tensorflow_checkpoint(
    path: str | Path, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, np.ndarray]:
    """The tensors by name, without text.

    Args:
      path: PREFIX, such as `model.ckpt-790000`, one of its files, or a folder with one checkpoint.
      wanted: name -> whether to read it; other tensors cost no time.

    Raises:
      UserError: no such checkpoint, one that is damaged or truncated (checksums are verified), or a wanted tensor that
        is stored in slices or has a type that NumPy lacks.
    """
    prefix = _prefix(Path(os.path.expanduser(path)))
    index = Path(f"{prefix}.index")
    try:
        num_shards, entries = _read_index(index.read_bytes())
    except DamagedFile as error:
        raise UserError(f"{index} is not the index of a TensorFlow checkpoint: {error}") from None
    except OSError as error:
        raise UserError(f"{index} cannot be read: {error.strerror}") from None
    shards = [Path(f"{prefix}.data-{i:05d}-of-{num_shards:05d}") for i in range(num_shards)]
    tensors = {}
    for name, entry in entries.items():
        if entry.dtype != _TEXT and wanted(name):
            tensors[name] = _read_tensor(name, entry, shards)
    return tensors


def _prefix(path: Path) -> str:
    """PREFIX of the checkpoint that the user means by `path`."""
    if path.is_dir():
        found = sorted(str(file).removesuffix(".index") for file in path.glob("*.index"))
        if len(found) != 1:
            names = ", ".join(Path(name).name for name in found[:5]) or "no file *.index"
            raise UserError(f"{path} must hold one TensorFlow checkpoint; got {names}; give PREFIX of PREFIX.index")
        return found[0]
    prefix = str(path).removesuffix(".index")
    if path.suffix.startswith((".data-", ".meta")):
        prefix = str(path.with_suffix(""))
    if not Path(f"{prefix}.index").is_file():
        raise UserError(
            f"no TensorFlow checkpoint {path}: there is no file {prefix}.index; give PREFIX of PREFIX.index, "
            "such as model.ckpt-790000"
        )
    return prefix


def _read_index(data: bytes) -> tuple[int, dict[str, _Entry]]:
    """(the number of shards, name -> entry)."""
    items = table_items(data)
    key, header = next(items, (None, b""))
    if key != b"":
        raise DamagedFile("it has no header")
    fields = {number: value for number, value in _fields(header)}
    if fields.get(2, 0) != 0:
        raise DamagedFile("its numbers are big-endian")
    num_shards = fields.get(1, 0)
    if not isinstance(num_shards, int) or not 1 <= num_shards < 100_000:
        raise DamagedFile(f"its number of shards is {num_shards}")
    return num_shards, {key.decode("utf-8", "backslashreplace"): _entry(value) for key, value in items}


def _entry(data: bytes) -> _Entry:
    entry = _Entry()
    names = {1: "dtype", 3: "shard", 4: "offset", 5: "size", 6: "checksum"}
    for number, value in _fields(data):
        if number == 2:
            entry.shape = [_dimension(_message(dim)) for part, dim in _fields(_message(value)) if part == 2]
        elif number == 7:
            entry.is_sliced = True
        elif number in names:
            if not isinstance(value, int):
                raise DamagedFile("a field of an entry has the wrong kind")
            setattr(entry, names[number], value)
    return entry


def _dimension(data: bytes) -> int:
    size = dict(_fields(data)).get(1, 0)
    if not isinstance(size, int) or size >= 1 << 40:  # also negative ones, which are stored modulo 2^64
        raise DamagedFile("a dimension has no valid size")
    return size


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise DamagedFile("a field of an entry has the wrong kind")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of the fields of a protocol buffer: numbers as stored, text and messages as bytes."""
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = read_varint(data, at)
            yield number, value
            continue
        if wire not in (1, 2, 5):
            raise DamagedFile("an entry has an unknown form")
        size = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            size, at = read_varint(data, at)
        if at + size > len(data):
            raise DamagedFile("an entry is truncated")
        piece = data[at : at + size]
        yield number, piece if wire == 2 else int.from_bytes(piece, "little")
        at += size


def _read_tensor(name: str, entry: _Entry, shards: list[Path]) -> np.ndarray:
    if entry.is_sliced:
        raise UserError(f"{name} is stored in slices, which cannot be read; save it again without a partitioner")
    if entry.dtype not in _DTYPES:
        raise UserError(f"{name} has TensorFlow's type number {entry.dtype}; only {sorted(_DTYPES)} can be read")
    dtype = np.dtype(_DTYPES[entry.dtype])
    fits = entry.size == math.prod(entry.shape) * dtype.itemsize and len(entry.shape) <= _MOST_DIMENSIONS
    fits &= math.prod(max(size, 1) for size in entry.shape) < 2**48  # NumPy checks the product without zeros
    if not fits or entry.shard >= len(shards):
        raise UserError(f"the checkpoint is damaged: the entry of {name} contradicts itself; copy it again")
    shard = shards[entry.shard]
    try:
        with shard.open("rb") as file:
            if entry.offset + entry.size > shard.stat().st_size:
                raise UserError(f"{shard} is truncated: {name} is behind its end; copy it again")
            file.seek(entry.offset)
            data = np.fromfile(file, np.uint8, entry.size)
    except OSError as error:
        raise UserError(f"{shard} cannot be read: {error.strerror}; all shards must be present") from None
    if len(data) != entry.size or crc32c(data) != unmasked(entry.checksum):
        raise UserError(f"{shard} is damaged: the checksum of {name} is wrong; copy it again")
    return data.view(dtype).reshape(entry.shape)
