"""The experiments that ship with the package, and the defaults that all of them start from."""

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

from ml_collections import ConfigDict

import ddpm_jax
from ddpm_jax.runtime.errors import UserError

_PACKAGE = "ddpm_jax.configs"


def experiments_folder() -> Path:
    """The folder of the packaged experiments, importable as `ddpm_jax.configs` afterwards.

    If ddpm_jax is installed, this is an ordinary package (setup.py maps configs/ there). In a checkout that is not
    installed, it is `<repository>/configs`, imported under the same name.
    """
    if importlib.util.find_spec(_PACKAGE) is None:
        folder = Path(ddpm_jax.__file__).resolve().parent.parent / "configs"
        if not folder.is_dir():
            raise UserError(f"the packaged experiments are missing: no {folder}; install ddpm_jax again")
        spec = importlib.machinery.ModuleSpec(_PACKAGE, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        package = importlib.util.module_from_spec(spec)
        sys.modules[_PACKAGE] = package
        setattr(sys.modules["ddpm_jax"], _PACKAGE.rpartition(".")[2], package)
    return Path(next(iter(importlib.import_module(_PACKAGE).__path__))).resolve()


def packaged_experiments() -> list[str]:
    """Names of the experiments that ship with the package, sorted."""
    names = [path.stem for path in experiments_folder().glob("*.py")]
    return sorted(name for name in names if name != "base" and not name.startswith("_"))


def packaged_module(name: str) -> types.ModuleType:
    """The module of a packaged experiment."""
    experiments_folder()
    return importlib.import_module(f"{_PACKAGE}.{name}")


def base_config() -> ConfigDict:
    """All fields at their defaults."""
    return packaged_module("base").get_config()


def with_defaults(config: ConfigDict) -> ConfigDict:
    """`config` with the fields of configs/base.py that it lacks, at their defaults; locked.

    A run that is older than a field behaves as the field's default says. Whole numbers become floats if the default is
    a float.
    """
    filled = config.copy_and_resolve_references()
    with filled.unlocked(), filled.ignore_type():
        for group, fields in base_config().items():
            if group not in filled:
                filled[group] = ConfigDict()
            for name, value in fields.items():
                if name not in filled[group]:
                    filled[group][name] = value
                elif type(value) is float and type(filled[group][name]) is int:
                    filled[group][name] = float(filled[group][name])
    return filled.lock()
