"""Experiments as ConfigDicts: found by name or path, kept as JSON, compared before a run goes on."""

import fnmatch
import importlib
import importlib.machinery
import importlib.util
import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import ddpm_jax
from ddpm_jax.experiment.config_overrides import apply_override, flatten
from ddpm_jax.runtime.errors import UserError, did_you_mean

# What may change between the runs that share a workdir: how long, on how many devices, how often
# something is written, where the data lie, and what does not touch the parameters.
CHANGEABLE = (
    "train.num_steps", "train.num_devices", "train.keep_checkpoints", "train.nonfinite*",
    "train.wandb_project", "*_every_steps",
    "mesh.*", "sample.*", "eval.*", "data.path", "data.data_dir", "model.remat",
)

# What may change when a run starts from imported weights: all but what the weights mean.
CHANGEABLE_AT_IMPORT = (
    "data.name", "data.path", "data.data_dir", "data.split", "data.eval_split", "data.flip", "optim.*", "train.*",
    "sample.*", "eval.*", "model.dropout", "model.dtype", "model.remat", "diffusion.loss", "diffusion.huber_delta",
    "diffusion.vlb_lambda", "diffusion.weighting", "diffusion.*_gamma", "diffusion.p2_k", "mesh.*",
)

_PACKAGE = "ddpm_jax.configs"
_STORABLE = (bool, int, float, str, type(None))


def _experiments_folder() -> Path:
    """The folder of the packaged experiments, importable as `ddpm_jax.configs` afterwards.

    Installed, it is an ordinary package (setup.py maps configs/ there). In a checkout that is not
    installed it is `<repository>/configs`, which is given the same name here.
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
    names = [path.stem for path in _experiments_folder().glob("*.py")]
    return sorted(name for name in names if name != "base" and not name.startswith("_"))


def _experiment_module(name_or_path: str) -> types.ModuleType:
    """The module of an experiment: a file of one's own, or a packaged one."""
    folder = _experiments_folder()
    path = Path(name_or_path).expanduser()
    is_name = len(path.parts) == 1 and path.suffix != ".py"
    if not is_name and path.is_file() and path.resolve().parent != folder:
        # Not through the import system: two files of one name must not be mistaken for each other.
        module = types.ModuleType(f"experiment_{path.stem}")
        module.__file__ = str(path)
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
        return module
    # `configs/digits.py` works from every directory; a mistyped path of one's own does not turn into
    # a packaged experiment that happens to have the same name.
    may_be_packaged = is_name or path.resolve().parent == folder or str(path.parent) in (".", "configs")
    if may_be_packaged and (folder / f"{path.stem}.py").is_file():
        return importlib.import_module(f"{_PACKAGE}.{path.stem}")
    names = packaged_experiments()
    raise UserError(
        f"no experiment {name_or_path!r}{did_you_mean(path.stem, names)}; "
        f"give a file that exists or one of {names}"
    )


def load_config(name_or_path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The locked config of an experiment, with `overrides` applied in order.

    Args:
      name_or_path: a packaged name (`digits`), or a file (`configs/digits.py`) with `get_config()`.
        A relative `configs/NAME.py` that does not exist here means the packaged experiment NAME.
        A run's `config.json` means the config of that run.
      overrides: `group.field=value` strings, parsed by the type of the field's default.

    Raises:
      UserError: no such experiment, no `get_config` in it, an unknown field, a value of a wrong type.

    Example: `load_config("digits", ["train.batch_size=64", "model.channel_mults=1,2,4"])`
    """
    if Path(name_or_path).suffix == ".json" and Path(name_or_path).is_file():
        return _with_overrides(whole_config_from_json(Path(name_or_path).read_text("utf-8"), name_or_path), overrides)
    module = _experiment_module(name_or_path)
    if not callable(getattr(module, "get_config", None)):
        raise UserError(
            f"config file {name_or_path!r} has no function get_config(); add one that returns a ConfigDict"
        )
    config = module.get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() of {name_or_path!r} must return a ConfigDict; got {type(config).__name__}"
        )
    for field, value in flatten(config).items():
        _check_storable(field, value)
    return _with_overrides(config, overrides)


def _with_overrides(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    for override in overrides:
        apply_override(config, override)
    return config.lock()


def changed(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """A locked copy, whose references are values now, with `group.field=value` applied in order.

    Raises:
      UserError: a field that there is not, or a value that is not like its default.
    """
    return _with_overrides(config.copy_and_resolve_references().unlock(), overrides)


def _base_config() -> ConfigDict:
    """Every field that there is, at its default."""
    _experiments_folder()
    return importlib.import_module(f"{_PACKAGE}.base").get_config()


def with_defaults(config: ConfigDict) -> ConfigDict:
    """`config` and the fields of configs/base.py that it lacks, at their defaults; locked.

    A run that is older than a field did what the field's default does.
    """
    filled = config.copy_and_resolve_references()
    with filled.unlocked():
        for group, fields in _base_config().items():
            if group not in filled:
                filled[group] = ConfigDict()
            for name, value in fields.items():
                if name not in filled[group]:
                    filled[group][name] = value
    return filled.lock()


def _check_storable(field: str, value: Any) -> None:
    """Raises UserError for a default that could not be overridden or kept as JSON."""
    for item in value if isinstance(value, tuple) else (value,):
        if type(item) not in _STORABLE:
            raise UserError(
                f"config field {field!r} must be an int, float, bool, str, None or a tuple of them; "
                f"got {type(item).__name__}"
            )


def config_to_json(config: ConfigDict) -> str:
    """`config` as JSON, one field a line, keys sorted; `config_from_json` gives it back exactly."""
    groups = []
    for key, value in sorted(config.items()):
        text = json.dumps(value) if not isinstance(value, ConfigDict) else config_to_json(value)
        groups.append(f"{json.dumps(key)}: {text.rstrip()}".replace("\n", "\n  "))
    return "{\n  " + ",\n  ".join(groups) + "\n}\n" if groups else "{}\n"


def config_from_json(text: str) -> ConfigDict:
    """The locked config that `config_to_json` wrote; lists become tuples again.

    Raises:
      UserError: the text is no JSON object.
    """
    def with_tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: with_tuples(item) for key, item in value.items()}
        return tuple(with_tuples(item) for item in value) if isinstance(value, list) else value

    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"the saved config is damaged: {error}; restore it or start in another workdir"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"the saved config must be a JSON object; got {type(values).__name__}")
    return ConfigDict(with_tuples(values)).lock()


def whole_config_from_json(text: str, what: str) -> ConfigDict:
    """The config in a file that a person may have edited or been given, with all fields; locked.

    Args:
      what: names the file in complaints.

    Raises:
      UserError: no JSON object, a field that there is not, or a value of another type than the field's default.
    """
    try:
        config = config_from_json(text)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    fields, defaults = flatten(config), flatten(_base_config())
    for field, value in fields.items():
        if field not in defaults:
            raise UserError(f"{what} has the field {field!r}, which no experiment has{did_you_mean(field, defaults)}")
        if not _is_like(value, defaults[field]):
            raise UserError(f"{field} of {what} must be like {defaults[field]!r}; got {value!r}")
    return with_defaults(config)


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        kinds = {type(item) for item in default} or set(_STORABLE)
        kinds |= {int, float} if kinds & {int, float} else set()
        return isinstance(value, tuple) and all(type(item) in kinds for item in value)
    return type(value) is type(default) or (type(default) is float and type(value) is int)


def check_same_run(saved: ConfigDict, given: ConfigDict, changeable: Sequence[str] = CHANGEABLE) -> None:
    """Raises UserError where `given` differs from the config of the run that it would continue.

    A field that one of them lacks has its default of configs/base.py: see `with_defaults`.

    Args:
      saved: the config that the run was started with.
      given: the config that it would be continued with.
      changeable: patterns of dotted fields that may differ, as for `fnmatch`.
    """
    absent = object()
    defaults = flatten(_base_config())
    before, now = defaults | flatten(saved), defaults | flatten(given)
    differing = [field for field in sorted(before | now)
                 if before.get(field, absent) != now.get(field, absent)
                 and not any(fnmatch.fnmatchcase(field, pattern) for pattern in changeable)]
    if not differing:
        return

    def shown(fields: dict[str, Any], field: str) -> str:
        return repr(fields[field]) if field in fields else "nothing"

    parts = [f"{field} was {shown(before, field)} and is {shown(now, field)}" for field in differing[:3]]
    if len(differing) > 3:
        parts.append(f"and {len(differing) - 3} more")
    raise UserError(f"the workdir holds a run with another config: {'; '.join(parts)}; "
                    "give the values of that run to continue it, or another workdir to start anew")
