"""Reads PyTorch's own files (.pt, .pth, .bin, .ckpt) as NumPy arrays, without torch and without running their code."""

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.interchange.torch_pickle import DAMAGE, Storage, Tensor, load_pickle
from ddpm_jax.runtime.errors import UserError

_ZIP_START = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file by PyTorch before 1.6
_LEGACY_START = b"\x80"
_SHARED, _SPARE_BYTES = 4, 64 * 2**20  # tensors may take 4 times the bytes of the file, and 64 MB
_MOST_OBJECTS = 10**6  # when all references are followed
_LEGACY_VERSION = 1001


def read_torch_file(path: str | os.PathLike) -> dict[str, Any]:
    """The contents of a file by `torch.save` or `torch.jit.save`, with tensors as NumPy arrays.

    Reads the zip format, the format of PyTorch before 1.6, and the weights of a TorchScript module, as nested dicts
    by attribute. float16 and bfloat16 are kept (bfloat16 is that of ml_dtypes).

    Returns:
      Nested dicts with names as keys, which contain arrays, numbers, strings, None and lists.

    Raises:
      UserError: no such file, another format, a truncated or damaged file, or one that asks for anything but tensors
        and dicts; nothing in a file is executed.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            file.seek(0)
            if start == _ZIP_START:
                loaded = _read_zip(file, path)
            elif start[:1] == _LEGACY_START:
                loaded = _read_legacy(file, path)
            else:
                raise UserError(f"{path} was not written by torch.save: it starts with {start!r}")
        loaded = _Plain(os.path.getsize(path)).of(loaded)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except (*DAMAGE, zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path} is truncated or damaged ({said}): download it again") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} must contain a dict of tensors; it contains a {type(loaded).__name__}")
    return loaded


def _read_zip(file: io.BufferedIOBase, path: Path) -> Any:
    """The format of PyTorch 1.6 and later: NAME/data.pkl, the storages NAME/data/KEY, the byte order."""
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        # TorchScript compresses its code, which is not read, but never weights; so no entry can be a zip bomb.
        stored = {name: info for name, info in entries.items() if info.compress_type == zipfile.ZIP_STORED}
        if sum(info.file_size for info in stored.values()) > os.path.getsize(path):
            raise ValueError("its parts are larger than the whole")
        pickles = [name for name in entries if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise UserError(f"{path} is a zip file, but not by torch.save: it contains {sorted(entries)[:3]}")
        folder = pickles[0].partition("/")[0]

        def content(name: str) -> bytes:
            if name in entries and name not in stored:
                raise ValueError(f"{name} is compressed, which torch.save does not do")
            return archive.read(name)  # verifies the CRC

        byteorder = content(f"{folder}/byteorder").decode() if f"{folder}/byteorder" in entries else "little"
        if byteorder not in ("little", "big"):
            raise ValueError(f"the byte order {byteorder!r}")
        storages: dict[str, Storage] = {}

        def load_storage(pid: tuple) -> Storage:
            _, kind, key, _, numel = pid[:5]
            if key not in storages:
                storage = Storage(key, kind.dtype, numel)
                storage.data = _numbers(content(f"{folder}/data/{key}"), byteorder, storage)
                storages[key] = storage
            return _same_type(storages[key], kind.dtype)

        is_torch_script = any(name.startswith(f"{folder}/code/") for name in entries)
        pickled = io.BytesIO(content(pickles[0]))
        return load_pickle(pickled, str(path), load_storage, torch_script=is_torch_script)


def _read_legacy(file: io.BufferedIOBase, path: Path) -> Any:
    """The format of PyTorch before 1.6: three header pickles, the object, the keys of the storages, the storages."""
    what = str(path)
    if load_pickle(file, what) != _LEGACY_MAGIC:
        raise UserError(f"{path} is a pickle, but not by torch.save: it lacks the first number")
    version = load_pickle(file, what)
    if version != _LEGACY_VERSION:
        raise ValueError(f"version {version}")
    load_pickle(file, what)  # sizes of C types on the machine that wrote the file; the storages do not depend on them
    storages: dict[str, Storage] = {}

    def load_storage(pid: tuple) -> Storage:
        _, kind, key, _, numel = pid[:5]
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("a storage that is a part of another, as PyTorch before 0.4 wrote it")
        storage = Storage(key, kind.dtype, numel)
        return _same_type(storages.setdefault(key, storage), kind.dtype)

    loaded = load_pickle(file, what, load_storage)
    for key in load_pickle(file, what):
        storage = storages[key]
        (numel,) = struct.unpack("<q", file.read(8))
        if numel != storage.numel:
            raise ValueError(f"storage {key!r} has {numel} elements, not {storage.numel}")
        # Not more than the file has: a number in the file must not determine how much memory is allocated.
        num_bytes = min(numel * storage.dtype.itemsize, os.path.getsize(path))
        storage.data = _numbers(file.read(num_bytes), "little", storage)
    if any(storage.data is None for storage in storages.values()):
        raise ValueError("a storage is missing")
    return loaded


def _same_type(storage: Storage, dtype: np.dtype) -> Storage:
    if storage.dtype != dtype:
        raise ValueError(f"storage {storage.key!r} is both {storage.dtype} and {dtype}")
    return storage


def _numbers(data: bytes, byteorder: str, storage: Storage) -> np.ndarray:
    """[numel] in the machine's byte order; converted as integers, because bfloat16 has only the native order."""
    itemsize = storage.dtype.itemsize
    if len(data) < storage.numel * itemsize:
        raise ValueError(f"storage {storage.key!r} has {len(data)} of {storage.numel * itemsize} bytes")
    raw = np.frombuffer(data, f"{'>' if byteorder == 'big' else '<'}u{itemsize}", storage.numel)
    return raw.astype(raw.dtype.newbyteorder("="), copy=False).view(storage.dtype)


class _Plain:
    """Converts what a pickle held to dicts by name, arrays, numbers, strings and lists.

    Args:
      file_bytes: size of the file, which bounds the memory: tensors may share storages, but not without end.
    """

    def __init__(self, file_bytes: int):
        self._bytes_left = _SHARED * file_bytes + _SPARE_BYTES
        self._done: dict[int, tuple[Any, Any, int]] = {}  # id -> (value, converted, objects when unfolded)

    def of(self, value: Any) -> Any:
        """The converted value; objects that are referenced twice are converted once.

        Raises:
          ValueError: it contains itself, or an object of another kind, or is beyond a bound.
        """
        return self._converted(value)[0]

    def _converted(self, value: Any) -> tuple[Any, int]:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value, 1
        if id(value) in self._done:
            _, plain, unfolded = self._done[id(value)]
            if not unfolded:  # conversion started but not finished
                raise ValueError("a container that contains itself")
            return plain, unfolded
        self._done[id(value)] = value, None, 0
        unfolded = 1
        if isinstance(value, Tensor):
            self._bytes_left -= value.num_bytes
            if self._bytes_left < 0:
                raise ValueError("its tensors take far more memory than the file has bytes")
            plain: Any = value.array()
        elif isinstance(value, (dict, list, tuple)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            pairs = []
            for key, item in items:
                converted, number = self._converted(item)
                pairs.append((str(key), converted))
                unfolded += number
            plain = dict(pairs) if isinstance(value, dict) else [item for _, item in pairs]
        else:
            raise ValueError(f"it contains a {type(value).__name__}")
        if unfolded > _MOST_OBJECTS:
            raise ValueError("its objects refer to each other too often")
        self._done[id(value)] = value, plain, unfolded
        return plain, unfolded

