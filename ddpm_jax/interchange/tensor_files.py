"""Named tensors from files of several formats: .safetensors, PyTorch's, and shards of either."""

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from ddpm_jax.interchange.torch_files import read_torch_file
from ddpm_jax.runtime import json_files
from ddpm_jax.runtime.atomic_files import replace_file
from ddpm_jax.runtime.errors import UserError

TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
INDEX_SUFFIX = ".index.json"

_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip

Tensors = dict[str, np.ndarray]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      UserError: no such file, not JSON, or not an object.
    """
    try:
        return json_files.read_json(path, dict)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{path} is not a JSON object ({error})") from error


def read_tensors(path: str | os.PathLike) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a file by name, and the texts that a .safetensors file may contain in addition.

    Raises:
      UserError: no such file, a file of another kind, a truncated or damaged file, or a missing shard.
    """
    path = Path(path)
    _check_fetched(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path), {}
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return state_dict_of(read_torch_file(path), path), {}
    kinds = ", ".join((".safetensors", *TORCH_SUFFIXES, INDEX_SUFFIX))
    raise UserError(f"{path} does not have the name of a file of weights: it must end in one of {kinds}")


def _check_fetched(path: Path) -> None:
    """Raises UserError for the pointer that a clone without git-lfs has in place of a large file."""
    start = b"version https://git-lfs"
    if path.is_file():
        with open(path, "rb") as file:
            if file.read(len(start)) == start:
                raise UserError(f"{path} is a git-lfs pointer, not the file itself: run git lfs pull there")


def read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors and the texts of a .safetensors file; bfloat16 is that of ml_dtypes."""
    try:
        data = path.read_bytes()
        entries = deserialize(data)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or not a .safetensors file ({error}): download it again") from error
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise UserError(f"{name} of {path} has the type {entry['dtype']}; allowed are {sorted(_DTYPES)}")
        try:
            tensors[name] = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        except (ValueError, OverflowError) as error:  # more axes than NumPy has, or a size beyond its numbers
            raise UserError(f"{name:.100} of {path} has a shape that cannot be read ({error})") from None
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, header.get("__metadata__") or {}


def write_safetensors(path: str | os.PathLike, tensors: Tensors, texts: dict[str, str]) -> None:
    """Writes a .safetensors file, completely or not at all."""
    data = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, metadata=texts)
    with replace_file(path) as file:
        file.write(data)


def state_dict_of(loaded: dict[str, Any], path: Path) -> Tensors:
    """The tensors by name from the contents of a `torch.save` file: all of it, or its entry `state_dict`.

    Raises:
      UserError: it contains something other than tensors.
    """
    nested = loaded.get("state_dict", loaded)
    others = [name for name, value in nested.items() if not isinstance(value, np.ndarray)]
    if others:
        raise UserError(
            f"{path} must contain tensors by name, directly or under 'state_dict'; {others[0]!r} in it is a "
            f"{type(nested[others[0]]).__name__}"
        )
    return nested


def _read_shards(index: Path) -> Tensors:
    """All tensors that an index names, from the files in its folder."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise UserError(f"{index} has no weight_map: it is not an index of shards")
    tensors: Tensors = {}
    for file in sorted(set(files.values())):
        if Path(file).name != file:
            raise UserError(f"{index} names the shard {file!r}: shards must be in the folder of their index")
        if not (index.parent / file).is_file():
            raise UserError(f"{index} names the shard {file!r}, which is missing: download it too")
        shard, _ = read_tensors(index.parent / file)
        for name in sorted(name for name, where in files.items() if where == file):
            if name not in shard:
                raise UserError(f"{index.parent / file} lacks {name}, which {index.name} says is in it")
            tensors[name] = shard[name]
    return tensors


