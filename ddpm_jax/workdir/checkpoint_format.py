"""The format version of a checkpoint, which is stored in it, and the conversion from every earlier version.

The version is in the item `config`, together with the config itself, so that it is committed with the arrays:
{"config": "...", "format_version": 3, "written_by": {"ddpm_jax": "0.1.0", "jax": "0.10.2", ...}}.
"""

import importlib.metadata
from collections.abc import Callable

from ddpm_jax.runtime.errors import UserError

# 1: only the config, without a version. 2: with the version and the versions of the writing libraries. 3: there may be
# several averages of the parameters, named by the config: the item ema_params is the first, the others are ema_NAME.
FORMAT_VERSION = 3

# Version -> function that converts its item `config` to that of the next version.
MIGRATIONS: dict[int, Callable[[dict], dict]] = {
    1: lambda item: item | {"written_by": {}},
    2: lambda item: item,  # one average, in ema_params
}

_LIBRARIES = ("ddpm_jax", "jax", "flax", "optax", "orbax-checkpoint")


def config_item(config_json: str) -> dict:
    """The item `config` as it is saved: the JSON text of a config, the format version, and the library versions."""
    return {"config": config_json, "format_version": FORMAT_VERSION, "written_by": installed_versions()}


def installed_versions() -> dict[str, str]:
    """Library -> version, for the libraries that a checkpoint depends on; only for information."""
    return {name: _version(name) for name in _LIBRARIES}


def migrated(item: dict, where: str) -> dict:
    """Converts an item `config` of any earlier version to FORMAT_VERSION.

    Args:
      where: names the checkpoint in error messages, such as "the checkpoint of step 8 in DIR".

    Raises:
      UserError: a later version.
      ValueError: not an item of any version.
    """
    version = item.get("format_version", 1)
    if type(version) is not int or version < 1:
        raise ValueError(f"its format_version is {version!r}")
    if version > FORMAT_VERSION:
        writer = (item.get("written_by") or {}).get("ddpm_jax", "a later one")
        raise UserError(
            f"{where} has format {version}, written by ddpm_jax {writer}; this ddpm_jax "
            f"{_version('ddpm_jax')} reads formats 1 to {FORMAT_VERSION}: upgrade ddpm_jax"
        )
    for earlier in range(version, FORMAT_VERSION):
        item = MIGRATIONS[earlier](item)
    if not isinstance(item.get("config"), str):
        raise ValueError("its config is not text")
    return item


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # such as a ddpm_jax that runs from its source folder
