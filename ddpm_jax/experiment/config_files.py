"""Loads experiments as ConfigDicts, by name or path, and applies overrides."""

import linecache
import os
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.experiment.config_json import check_storable, is_like, whole_config_from_json
from ddpm_jax.experiment.config_overrides import apply_override, flatten
from ddpm_jax.experiment.moved_fields import MOVED, moved_fields_in, new_form
from ddpm_jax.experiment.packaged_configs import base_config, experiments_folder, packaged_experiments, packaged_module
from ddpm_jax.runtime.errors import UserError, did_you_mean
from ddpm_jax.runtime.json_files import read_limited

Config = ConfigDict  # for other folders, which pass a config on and read none of its fields


def _experiment_module(name_or_path: str) -> types.ModuleType:
    """The module of an experiment: a file of the user, or a packaged one."""
    folder = experiments_folder()
    path = Path(os.path.expanduser(name_or_path))  # that of Path raises for an unknown user
    is_name = len(path.parts) == 1 and path.suffix != ".py"
    if not is_name and path.is_file() and _folder_of(path) != folder:
        # Not through the import system: two files with the same name must not be confused.
        module = types.ModuleType(f"experiment_{path.stem}")
        module.__file__ = str(path)
        with _failure_in_one_line(path):
            exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
        return module
    # `configs/digits.py` works from every directory; a mistyped path to the user's own file does not turn into a
    # packaged experiment of the same name.
    may_be_packaged = is_name or _folder_of(path) == folder or str(path.parent) in (".", "configs")
    if may_be_packaged and (folder / f"{path.stem}.py").is_file():
        return packaged_module(path.stem)
    names = packaged_experiments()
    raise UserError(
        f"no experiment {name_or_path!r}; give a Python file that exists or one of {names}"
        f"{did_you_mean(path.stem, names)}"
    )


def _folder_of(path: Path) -> Path:
    """The folder of a file after links; also of a link to itself, for which `Path.resolve` raises."""
    return Path(os.path.realpath(path)).parent


@contextmanager
def _failure_in_one_line(path: Path) -> Iterator[None]:
    """Turns an exception in a config file, which is the user's code, into a UserError with the file and the line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line, said = (lines or [None])[-1], str(error)
        if isinstance(error, SyntaxError):
            line, said = error.lineno, error.msg
        said = " ".join(said.split())
        where = f"{path}, line {line}" if line else str(path)
        moved = moved_fields_in(linecache.getline(str(path), line)) if line else []
        if moved:
            raise UserError(f"config file {where}: {', '.join(moved)}; correct the file") from error
        raise UserError(f"config file {where}: {type(error).__name__}: {said}; correct the file") from error


def load_config(name_or_path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The locked config of an experiment, with `overrides` applied in order.

    Args:
      name_or_path: a packaged name (`digits`), or a file (`configs/digits.py`) with `get_config()`.
        A relative `configs/NAME.py` that does not exist here means the packaged experiment NAME.
        A run's `config.json` means the config of that run.
      overrides: `group.field=value` strings, parsed according to the type of the field's default.

    Raises:
      UserError: no such experiment, no `get_config` in it, an unknown field, or a value of the wrong type.

    Example: `load_config("digits", ["train.batch_size=64", "unet.channel_mults=1,2,4"])`
    """
    if Path(name_or_path).suffix == ".json" and os.path.exists(os.path.expanduser(name_or_path)):
        try:
            text = read_limited(os.path.expanduser(name_or_path)).decode("utf-8")
        except (OSError, ValueError) as error:
            said = str(error).splitlines()[0]
            raise UserError(f"config file {name_or_path!r} cannot be read: {said}; correct the file") from error
        return _with_overrides(whole_config_from_json(text, name_or_path), overrides)
    module = _experiment_module(name_or_path)
    if not callable(getattr(module, "get_config", None)):
        raise UserError(
            f"config file {name_or_path!r} has no function get_config(); add one that returns a ConfigDict"
        )
    with _failure_in_one_line(Path(module.__file__)):
        config = module.get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() of {name_or_path!r} must return a ConfigDict; got {type(config).__name__}"
        )
    defaults = flatten(base_config())
    for field, value in flatten(config).items():
        check_storable(field, value)
        if field in defaults and not is_like(value, defaults[field]):
            raise UserError(
                f"{field} of config file {name_or_path!r} must be like {defaults[field]!r}; got {value!r}"
            )
        if field in MOVED:
            raise UserError(
                f"config file {name_or_path!r} sets {field!r}, which is now {MOVED[field]!r}{new_form(field)}; "
                "correct the file"
            )
    return _with_overrides(config, overrides)


def _with_overrides(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    if isinstance(overrides, str) or not all(isinstance(override, str) for override in overrides):
        raise UserError(f"overrides must be a list such as ['train.batch_size=64']; got {overrides!r}")
    for override in overrides:
        apply_override(config, override)
    return config.lock()


def config_of_groups(groups: Mapping[str, Mapping[str, Any]]) -> ConfigDict:
    """The defaults of configs/base.py with the fields of `{"group": {"field": value}}` set; locked."""
    config = base_config()
    for group, fields in groups.items():
        for name, value in fields.items():
            config[group][name] = value
    return config


def changed(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """A locked copy, with references replaced by their values, and with `group.field=value` applied in order.

    Raises:
      UserError: an unknown field, or a value of another type than its default.
    """
    return _with_overrides(config.copy_and_resolve_references().unlock(), overrides)
