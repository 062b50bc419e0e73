"""Configs as JSON: which values can be stored, writing, reading and checking."""

import json
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.experiment.config_overrides import flatten
from ddpm_jax.experiment.moved_fields import with_new_names
from ddpm_jax.experiment.packaged_configs import base_config, with_defaults
from ddpm_jax.runtime.errors import UserError, did_you_mean
from ddpm_jax.runtime.json_files import parse_json

_MAX_DEPTH = 10  # of groups in groups; those of configs/base.py are one deep
_STORABLE = (bool, int, float, str, type(None))


def check_storable(field: str, value: Any) -> None:
    """Raises UserError for a default that cannot be overridden or stored as JSON."""
    for item in value if isinstance(value, tuple) else (value,):
        if type(item) not in _STORABLE:
            raise UserError(
                f"config field {field!r} must be an int, float, bool, str, None or a tuple of them; "
                f"got {type(item).__name__}"
            )


def config_to_json(config: ConfigDict) -> str:
    """`config` as JSON, one field per line, keys sorted; `config_from_json` restores it exactly."""
    groups = []
    for key, value in sorted(config.items()):
        text = json.dumps(value) if not isinstance(value, ConfigDict) else config_to_json(value)
        groups.append(f"{json.dumps(key)}: {text.rstrip()}".replace("\n", "\n  "))
    return "{\n  " + ",\n  ".join(groups) + "\n}\n" if groups else "{}\n"


def config_from_json(text: str) -> ConfigDict:
    """The locked config that `config_to_json` of this or an older version wrote; lists become tuples again.

    Raises:
      UserError: the text is not a JSON object.
    """
    def with_tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: with_tuples(item) for key, item in value.items()}
        return tuple(with_tuples(item) for item in value) if isinstance(value, list) else value

    try:
        values = parse_json(text, dict)
        for group, fields in values.items():
            if isinstance(fields, dict):  # anything else is no field of any experiment, which a caller says
                _check_group(group, fields)
    except ValueError as error:
        raise UserError(
            f"the saved config is damaged: {error}; restore it or start in another workdir"
        ) from None
    return ConfigDict(with_new_names(with_tuples(values))).lock()


def _check_group(group: str, fields: dict) -> None:
    """Raises ValueError unless the names of the group's fields, and of further groups in it, are plain."""
    for name, value in fields.items():
        if not (group.replace(".", "").isidentifier() and name.isidentifier()):
            raise ValueError(f"{f'{group}.{name}'[:100]!r} is no name of a field")
        if group.count(".") > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        if isinstance(value, dict):
            _check_group(f"{group}.{name}", value)


def whole_config_from_json(text: str, what: str) -> ConfigDict:
    """The config in a file that a user may have edited or received, with all fields; locked.

    Args:
      what: names the file in error messages.

    Raises:
      UserError: not a JSON object, an unknown field, or a value of another type than the field's default.
    """
    try:
        config = config_from_json(text)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    fields, defaults = flatten(config), flatten(base_config())
    for field, value in fields.items():
        if field not in defaults:
            raise UserError(f"{what} has the field {field!r}, which no experiment has{did_you_mean(field, defaults)}")
        if not is_like(value, defaults[field]):
            raise UserError(f"{field} of {what} must be like {defaults[field]!r}; got {value!r}")
    return with_defaults(config)


def is_like(value: Any, default: Any) -> bool:
    """Whether a field with this default may have the value: of the same type, or a whole number for a float."""
    if isinstance(default, tuple):
        kinds = {type(item) for item in default} or set(_STORABLE)
        kinds |= {int, float} if kinds & {int, float} else set()
        return isinstance(value, tuple) and all(type(item) in kinds for item in value)
    return type(value) is type(default) or (type(default) is float and type(value) is int)
