"""CIFAR-10 in the files of its author: the binary or the Python version, packed or unpacked."""

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddpm_jax.runtime.errors import UserError, arg

_RECORD = 1 + 3 * 32 * 32  # a label byte, then the red, green and blue planes
_BINARY = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
_PYTHON = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def read_cifar10(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels int64 [N] of `train` or `test`.

    Searched in this order in `folder`: cifar-10-binary.tar.gz, data_batch_1.bin ... (there or in
    cifar-10-batches-bin/), cifar-10-python.tar.gz, data_batch_1 ... (there or in cifar-10-batches-py/).

    Raises:
        UserError: none is there, or a file is missing, truncated or of another kind.
    """
    for names, archive, unpacked, parse in (
        (_BINARY[split], "cifar-10-binary.tar.gz", "cifar-10-batches-bin", _parse_binary),
        (_PYTHON[split], "cifar-10-python.tar.gz", "cifar-10-batches-py", _parse_python),
    ):
        if (folder / archive).is_file():
            files = _read_archive(folder / archive, names)
        else:
            place = next((p for p in (folder, folder / unpacked) if (p / names[0]).is_file()), None)
            if place is None:
                continue
            missing = [name for name in names if not (place / name).is_file()]
            if missing:
                raise UserError(f"{arg('path')} {str(place)!r} lacks {', '.join(missing)}; put them there too")
            files = {str(place / name): (place / name).read_bytes() for name in names}
        parts = [parse(name, data) for name, data in files.items()]
        planes = np.concatenate([images for images, _ in parts]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([labels for _, labels in parts]).astype(np.int64)
        return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels
    raise UserError(
        f"{arg('path')} {str(folder)!r} holds neither cifar-10-binary.tar.gz nor {_BINARY[split][0]}, nor the "
        f"Python version of either; put the original file there, or read images with {arg('name')}=image_folder"
    )


def _read_archive(archive: Path, names: list[str]) -> dict[str, bytes]:
    """The members with these file names, in any folder of the tar; nothing is unpacked on disk."""
    found = {}
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]
                if name in names and member.isfile():
                    found[name] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{str(archive)!r} is damaged or truncated ({reason}); download it again") from None
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{str(archive)!r} holds no {', '.join(missing)}; download the original file again")
    return {f"{archive}:{name}": found[name] for name in names}


def _parse_binary(name: str, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Planes [n, 3072] and labels [n]."""
    if not data or len(data) % _RECORD:
        raise UserError(f"{name!r} must hold whole records of {_RECORD} bytes; got {len(data)}; download it again")
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD)
    return _checked(name, records[:, 1:], records[:, 0])


def _parse_python(name: str, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Planes [n, 3072] and labels [n]."""
    try:
        batch = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
        planes, labels = batch[b"data"].to_uint8(), np.array(batch[b"labels"], np.int64)
    except Exception as error:  # a pickle can fail in any way
        raise UserError(f"{name!r} is not a file of CIFAR-10's Python version ({error}); download it again") from None
    return _checked(name, planes, labels)


def _checked(name: str, planes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if planes.shape != (len(labels), _RECORD - 1) or not len(labels) or labels.min() < 0 or labels.max() > 9:
        raise UserError(
            f"{name!r} must hold labels 0..9, each with {_RECORD - 1} bytes of pixels; got labels "
            f"{labels.min(initial=0)}..{labels.max(initial=0)} and pixels {list(planes.shape)}; download it again"
        )
    return planes, labels


class _PlainDtype:
    """Stands in for numpy.dtype: keeps the code, such as 'u1'."""

    def __init__(self, code: object = "", *unused: object):
        self.code = code.decode() if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        pass


class _PlainArray:
    """Stands in for numpy.ndarray: keeps shape, dtype and bytes."""

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.dtype, self.is_fortran, self.data = state

    def to_uint8(self) -> np.ndarray:
        if self.dtype.code != "u1":
            raise ValueError(f"pixels of type {self.dtype.code!r}")
        order = "F" if self.is_fortran else "C"
        return np.frombuffer(self.data, np.uint8).reshape(self.shape, order=order)


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, numbers, strings and arrays.

    A pickle can name any function to be called. This reader calls no function that the file names: the three names
    of a NumPy array lead to the stand-ins above, and any other name is refused.
    """

    _STAND_INS: dict[str, Callable[..., object]] = {
        "_reconstruct": lambda *unused: _PlainArray(),
        "ndarray": _PlainArray,
        "dtype": _PlainDtype,
    }

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if module.split(".")[0] == "numpy" and name in self._STAND_INS:
            return self._STAND_INS[name]
        raise pickle.UnpicklingError(f"it wants to call {module}.{name}")
