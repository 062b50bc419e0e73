"""Reads the pickles inside a PyTorch file without calling anything that they name.

A pickle may name any function and have it called. Here it gets inert stand-ins for the few names that tensors and dicts
of tensors need; every other name is refused before anything happens.
"""

import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ddpm_jax.interchange.pickle_limits import check_pickle
from ddpm_jax.runtime.errors import UserError

# torch's name of a storage and of a dtype -> NumPy's dtype.
STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_SMALL = 2**20  # elements: an expanded tensor (stride 0) may have this many more than its storage

# Exceptions of reading a damaged or hostile pickle, found by truncating and changing files.
DAMAGE = (
    pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError,
    MemoryError, RecursionError, RuntimeError, UnicodeDecodeError,
)  # fmt: skip


class Storage:
    """A flat array that tensors are views of; `data` is set when the bytes are read."""

    def __init__(self, key: str, dtype: np.dtype, numel: int):
        # Values of other types are not printed: the text of nested lists can exceed the memory.
        if not isinstance(key, str) or not isinstance(numel, int) or numel < 0:
            raise ValueError("a storage without a name or a size")
        self.key, self.dtype, self.numel = key, dtype, numel
        self.data: np.ndarray | None = None  # [numel]

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a storage has no state")


@dataclass(frozen=True)
class Tensor:
    """A tensor before the bytes of its storage are read; sizes in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a tensor has no state")

    @property
    def num_bytes(self) -> int:
        """Of the array; 0 for a shape that `array` refuses."""
        sizes = [size for size in self.shape if isinstance(size, int) and size >= 0]
        return math.prod(sizes[:64]) * self.storage.dtype.itemsize if len(sizes) == len(self.shape) else 0

    def array(self) -> np.ndarray:
        """A copy, C-contiguous.

        Raises:
          ValueError: a part of it would be outside its storage.
        """
        numbers = (self.offset, *self.shape, *self.strides)
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError("a tensor whose offset, shape or strides are not numbers of at least 0")
        if len(self.shape) != len(self.strides) or len(self.shape) > 32:
            raise ValueError(f"a tensor has {len(self.shape)} axes and {len(self.strides)} strides")
        count = math.prod(self.shape)
        if count == 0:
            return np.zeros(self.shape, self.storage.dtype)
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if last >= self.storage.numel or count > max(self.storage.numel, _SMALL):
            raise ValueError(
                f"a tensor of shape {self.shape} with strides {self.strides} from {self.offset} on exceeds its storage "
                f"{self.storage.key!r} of {self.storage.numel} elements"
            )
        strides = [stride * self.storage.dtype.itemsize for stride in self.strides]
        data = self.storage.data[self.offset :]
        view = np.lib.stride_tricks.as_strided(data, self.shape, strides, writeable=False)
        return np.array(view, self.storage.dtype, order="C")


class Object(dict):
    """A stand-in for an object: its attributes by name, without anything from its class."""

    def __setstate__(self, state: Any) -> None:
        self.update(state if isinstance(state, dict) else {"state": state})


class _OrderedDict(dict):
    """A stand-in for collections.OrderedDict, without what torch attaches to it (versions of modules)."""

    def __setstate__(self, state: Any) -> None:
        del state


class _StorageType:
    """The type of a storage, as named in the record of a storage."""

    def __init__(self, name: str):
        self.dtype = STORAGES[name]

    def __setstate__(self, state: Any) -> None:
        raise ValueError("the type of a storage has no state")


class _Function:
    """One of our functions under the name that the pickle uses; a pickle cannot change it."""

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a function has no state")


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _known(module: str, name: str, torch_script: bool) -> Any:
    """The stand-in for module.name; None if there is none."""
    if (module, name) == ("collections", "OrderedDict"):
        return _OrderedDict
    if module == "torch" and name in STORAGES:
        return _StorageType(name)
    functions = {
        ("torch", "Size"): lambda sizes=(): tuple(sizes),
        ("torch", "device"): lambda *_: None,
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    }
    if torch_script:
        lists = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")
        functions |= {("torch.jit._pickle", name): list for name in lists}
        functions[("torch.jit._pickle", "restore_type_tag")] = lambda value, _: value
        if module.split(".")[0] == "__torch__":
            return Object
    function = functions.get((module, name))
    return _Function(function) if function else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, text: bytes, what: str, load_storage: Callable[[tuple], Storage], torch_script: bool):
        super().__init__(io.BytesIO(text), encoding="utf-8")
        self._what, self._load_storage, self._torch_script = what, load_storage, torch_script

    def find_class(self, module: str, name: str) -> Any:
        found = _known(module, name, self._torch_script)
        if found is None:
            raise UserError(
                f"{self._what} asks for {module}.{name}, which weights do not need and which may run any code: nothing "
                "of it was executed; save the tensors alone (a state_dict), or as .safetensors"
            )
        return found

    def persistent_load(self, pid: Any) -> Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _StorageType):
            raise pickle.UnpicklingError("a reference to something that is not a storage")
        return self._load_storage(pid)


def load_pickle(
    file: io.BufferedIOBase,
    what: str,
    load_storage: Callable[[tuple], Storage] | None = None,
    torch_script: bool = False,
) -> Any:
    """The next pickle of `file`, which is then positioned after it; tensors as `Tensor`.

    Args:
      what: names the file in error messages.
      load_storage: a persistent id -> its storage; None if the pickle must not contain one.
      torch_script: also provide stand-ins for the classes of a TorchScript module.

    Raises:
      UserError: it names something that is not on the list of stand-ins.
      one of DAMAGE: it is not a pickle, or is truncated.
    """

    def no_storage(pid: tuple) -> Storage:
        raise pickle.UnpicklingError("a storage in a header")

    start = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(start)
    check_pickle(file, size)
    end = file.tell()
    file.seek(start)
    return _Unpickler(file.read(end - start), what, load_storage or no_storage, torch_script).load()
