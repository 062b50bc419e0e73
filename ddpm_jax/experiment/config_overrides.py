"""`group.field=value` strings, as in `--config.group.field=value`, parsed by the type of the default.

The grammar is that of ml_collections. The parser is our own, so that a mistyped field or number gives one line that
says what was expected.
"""

import difflib
import math
import re
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.experiment.moved_fields import MOVED, new_form
from ddpm_jax.runtime.errors import UserError, decimal_point

_TRUE, _FALSE = ("true", "t", "1", "yes"), ("false", "f", "0", "no")
# The name of a type in an error message, and an example for a field whose default is None.
_WANTED = {int: "an int", float: "a finite float", bool: "true or false", tuple: "a tuple"}
_EXAMPLES = {int: 1, float: 0.1, bool: True, tuple: (1, 2)}


# Names that users type for a field, or know from other code.
_MEANT = {
    "lr": "optim.learning_rate", "bs": "train.batch_size", "steps": "train.num_steps", "iterations": "train.num_steps",
    "epochs": "train.num_steps", "resolution": "data.image_size", "size": "data.image_size", "data": "data.path",
    "dataset": "data.name", "ema": "optim.ema_decays", "ema_decay": "optim.ema_decays", "gpus": "train.num_devices",
    "devices": "train.num_devices", "fp16": "model.dtype", "bf16": "model.dtype", "mixed_precision": "model.dtype",
    "wandb": "train.wandb_project", "timesteps": "schedule.num_steps", "num_timesteps": "schedule.num_steps",
    "checkpoint_every": "train.checkpoint_every_steps", "save_every": "train.checkpoint_every_steps",
    "sample_every": "train.sample_every_steps", "grad_accum": "train.grad_accum_steps",
    "gradient_accumulation_steps": "train.grad_accum_steps", "gradient_checkpointing": "model.remat",
}  # fmt: skip
_SQUARE = ("data.image_size",)  # one number means both


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """All fields of `config` as `{"group.field": value}`, sorted by name within each group."""
    fields = {}
    for key, value in config.items():
        inner = isinstance(value, ConfigDict)
        fields |= flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return fields


def fields_by_group(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """All fields of `config` as plain dicts, `{"group": {"field": value}}`."""
    return {name: dict(group.items()) for name, group in config.items()}


def closest_field(got: str, fields: Sequence[str]) -> str | None:
    """The dotted field that a user who typed `got` most likely meant: `train.batch_size` for `train.bs`.

    If a field of the typed group has all words of the name, it is that field. If several other groups have the name,
    such as num_steps, it is that of `train`.
    """
    group, name = _group(got), _name(got)
    siblings = {_name(field): field for field in fields if _group(field) == group}
    initials = {"".join(word[:1] for word in sibling.split("_")): sibling for sibling in siblings}
    elsewhere = [field for field in fields if _name(field) == name]
    words = set(name.split("_"))
    longer = [sibling for sibling in siblings if len(words) > 1 and words <= set(sibling.split("_"))]
    if longer:  # sample.num_sampler_steps for sample.num_steps, and not train.num_steps
        return siblings[difflib.get_close_matches(name, longer, n=1, cutoff=0.0)[0]]
    if elsewhere:  # the right field in the wrong group
        return next((field for field in elsewhere if _group(field) == "train"), elsewhere[0])
    if not group and _MEANT.get(name) in fields:
        return _MEANT[name]
    if len(name) > 1 and name in initials:
        return siblings[initials[name]]
    if siblings:  # the group is right; its long name would make any field in it look similar
        return next((siblings[close] for close in difflib.get_close_matches(name, siblings, n=1)), None)
    return next(iter(difflib.get_close_matches(got, fields, n=1, cutoff=0.7)), None)


def apply_override(config: ConfigDict, override: str) -> None:
    """Sets one `group.field=value` in `config`, in place.

    Raises:
      UserError: no `=`, an unknown field, a group instead of a field, or a value of the wrong type.
    """
    field, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"config override must look like group.field=value; got {override!r}")
    fields = flatten(config)
    if field not in fields:
        raise _unknown_field(field, list(fields))
    group = config
    for key in field.split(".")[:-1]:
        group = group[key]
    group[_name(field)] = _parse(field, text, fields[field], group.get_type(_name(field)))


def _unknown_field(field: str, fields: Sequence[str]) -> UserError:
    """The error for a `field` that is not in `fields`."""
    if field in MOVED:
        return UserError(f"config field {field!r} is now {MOVED[field]!r}{new_form(field)}")
    inside = [known for known in fields if known.startswith(f"{field}.")]
    if inside:
        return UserError(f"config field {field!r} is a group; set one of its fields, such as {inside[0]!r}")
    close = closest_field(field, fields)
    siblings = [_name(known) for known in fields if _group(known) == _group(field)]
    if close:
        hint = f"did you mean {close!r}?"
    elif siblings:
        hint = f"the group has {siblings}"
    else:
        hint = f"the groups are {sorted({_group(known) for known in fields})}"
    return UserError(f"unknown config field {field!r}; {hint}")


def _parse(field: str, text: str, default: Any, kind: type) -> Any:
    """`text` as a value of the type of `default`; `kind` is that type where the default is None."""
    if default is None and text.lower() == "none":
        return None
    try:
        if kind is type(None):  # a default of None without a type: guess from the text
            return _guess(text)
        if kind is tuple:
            values = _tuple_from_text(text, default or ())
            # "64" is a square, "64," one size.
            return values * 2 if field in _SQUARE and len(values) == 1 and "," not in text else values
        return _scalar_from_text(text, kind)
    except ValueError:
        example = _EXAMPLES[kind] if default is None else default
        wanted = _WANTED[kind] + (f" of {_element_type(default).__name__}s" if kind is tuple else "")
        raise UserError(
            f"config field {field!r} must be {wanted}; got {text!r}{decimal_point(text) if kind is float else ''}; "
            f"an example: --config.{field}={_text_of(example)}"
        ) from None


def _scalar_from_text(text: str, kind: type) -> bool | int | float | str:
    """`text` as a `kind`; raises ValueError if information would be lost."""
    if kind is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise ValueError(text)
        return text.lower() in _TRUE
    if kind is int:
        if re.fullmatch(r"[+-]?\d[\d_]*", text):
            return int(text)
        number = float(text)  # 1e6 is a common way to write a million steps
        if not math.isfinite(number) or number != int(number):
            raise ValueError(text)
        return int(number)
    if kind is float and math.isnan(float(text)):
        raise ValueError(text)
    return kind(text)


def _tuple_from_text(text: str, default: tuple) -> tuple:
    """`(1, 2)`, `[1, 2]` or `1,2` as a tuple with the element type of `default`."""
    text = text.strip()
    if text[:1] + text[-1:] in ("()", "[]"):
        text = text[1:-1]
    items = [item.strip().strip("'\"") for item in text.rstrip().removesuffix(",").split(",")]
    if items == [""]:
        return ()
    if not default:
        return tuple(_guess(item) for item in items)
    return tuple(_scalar_from_text(item, _element_type(default)) for item in items)


def _element_type(values: tuple) -> type:
    """The type of the elements of a tuple field; a mixture of ints and floats counts as floats."""
    kinds = {type(value) for value in values}
    return float if kinds == {int, float} else type(values[0])


def _guess(text: str) -> bool | int | float | str:
    """`text` converted to the type that it looks like, for a field without a type."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text.lower() == "true" if text.lower() in ("true", "false") else text


def _text_of(value: Any) -> str:
    """`value` as it is written in an override."""
    if isinstance(value, tuple):
        return ",".join(_text_of(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _group(field: str) -> str:
    return field.rpartition(".")[0]


def _name(field: str) -> str:
    return field.rpartition(".")[2]
