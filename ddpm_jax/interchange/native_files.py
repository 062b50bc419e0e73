"""Our own weights as plain files, .safetensors and .npz: arrays by path, together with the config."""

import os
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ddpm_jax.experiment.config_files import Config
from ddpm_jax.experiment.config_json import config_to_json, whole_config_from_json
from ddpm_jax.interchange.imported_model import OWN_CONFIG, Imported, own_shapes_of
from ddpm_jax.interchange.tensor_files import Tensors, read_safetensors, write_safetensors
from ddpm_jax.interchange.tensor_mapping import Match, leaf_shapes, params_from, tensors_from
from ddpm_jax.interchange.tensor_mapping import Path as LeafPath
from ddpm_jax.runtime.atomic_files import replace_file
from ddpm_jax.runtime.errors import UserError

_MOST_COMPRESSED, _SPARE_BYTES = 20, 2**28  # weights hardly compress: to a twentieth of their size, and 256 MB more
# NumPy parses headers as Python, and allocates what they claim; an archive with a password raises RuntimeError.
_DAMAGE = (
    ValueError, TypeError, EOFError, KeyError, AttributeError, MemoryError, OverflowError, RuntimeError, SyntaxError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def is_own_safetensors(path: Path) -> bool:
    """Whether a path is a .safetensors file."""
    return path.suffix == ".safetensors" and path.is_file()


def is_npz(path: Path) -> bool:
    """Whether a path is an .npz file."""
    return path.suffix == ".npz" and path.is_file()


def read_own_safetensors(path: str | os.PathLike) -> Imported:
    """The network in a .safetensors file of ours; raises UserError for anything else."""
    tensors, texts = read_safetensors(Path(path))
    return _imported(tensors, texts.get(OWN_CONFIG), Path(path))


def read_npz(path: str | os.PathLike) -> Imported:
    """The network in an .npz file of ours; raises UserError for anything else. Pickled arrays are not read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            unpacked = sum(entry.file_size for entry in file.zip.infolist())
            if unpacked > _MOST_COMPRESSED * os.path.getsize(path) + _SPARE_BYTES:
                raise ValueError(f"it unpacks to {unpacked / 1e9:.3g} GB")
            arrays = {name: file[name] for name in file.files}
        for name, array in arrays.items():
            if name != OWN_CONFIG and array.dtype.kind not in "fiu":
                raise ValueError(f"{name[:100]!r} is no array of numbers but of {array.dtype}")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except _DAMAGE as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is truncated, damaged or not a numeric .npz file ({said}): copy it again") from error
    config = arrays.pop(OWN_CONFIG, None)
    return _imported(arrays, None if config is None else str(config), Path(path))


def write_own_safetensors(path: str | os.PathLike, config: Config, params: dict) -> None:
    """Writes a .safetensors file of the leaves by path, such as `conv_in/kernel`."""
    write_safetensors(path, tensors_from(_matches(leaf_shapes(params)), params), {OWN_CONFIG: config_to_json(config)})


def write_npz(path: str | os.PathLike, config: Config, params: dict) -> None:
    """Writes an .npz file of the leaves by path, such as `conv_in/kernel`."""
    tensors = tensors_from(_matches(leaf_shapes(params)), params)
    with replace_file(path) as file:
        np.savez(file, **tensors, **{OWN_CONFIG: np.array(config_to_json(config))})


def _imported(tensors: Tensors, config_json: str | None, path: Path) -> Imported:
    if config_json is None:
        raise UserError(
            f"{path} contains no config of ddpm_jax, so it is unknown which network its tensors belong to: give the "
            "folder that it came in, with its config.json and scheduler_config.json"
        )
    config = whole_config_from_json(config_json, str(path))
    shapes = own_shapes_of(config)
    params = params_from(_matches(shapes), tensors, shapes, str(path))
    return Imported(config, params, params, ("it has one set of weights, used for both raw and averaged weights",))


def _matches(shapes: dict[LeafPath, tuple[int, ...]]) -> list[Match]:
    return [Match(path, "/".join(path)) for path in shapes]
