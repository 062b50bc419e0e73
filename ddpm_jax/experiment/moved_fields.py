"""Config fields that have been renamed. Configs of old runs are read with the new names; a user who gives an old name
is told the new one.
"""

import re
from collections.abc import Callable
from typing import Any

from ddpm_jax.runtime.errors import UserError

_OF_THE_UNET = (
    "channels", "channel_mults", "num_res_blocks", "attention_resolutions", "dropout", "num_groups", "norm_eps",
    "num_heads", "head_channels", "scale_shift_norm", "resample_in_blocks", "down_padding", "embedding_order",
    "embedding_spacing", "time_scale", "conv_in_channels",
)  # fmt: skip
MOVED = {f"model.{name}": f"unet.{name}" for name in _OF_THE_UNET} | {"optim.ema_decay": "optim.ema_decays"}

# Old name -> (function that converts the value, description of the new form), if old and new values differ.
_CONVERTED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "optim.ema_decay": (lambda decay: (decay,), "a tuple such as (0.9999,)"),
}


def with_new_names(groups: dict[str, Any]) -> dict[str, Any]:
    """The config `{"group": {"field": value}}` of a run of any age, with the current names and kinds of values."""
    renamed = {group: dict(fields) if isinstance(fields, dict) else fields for group, fields in groups.items()}
    for old, new in MOVED.items():
        (old_group, old_name), (new_group, new_name) = old.split("."), new.split(".")
        if isinstance(renamed.get(old_group), dict) and old_name in renamed[old_group]:
            value = renamed[old_group].pop(old_name)
            if new_name in renamed.get(new_group, {}):
                raise UserError(f"the config has both {old!r} and its new name {new!r}: leave out the first")
            renamed.setdefault(new_group, {})[new_name] = _CONVERTED[old][0](value) if old in _CONVERTED else value
    return renamed


def new_form(old: str) -> str:
    """Text about the value of a renamed field, after its new name: ", a tuple such as (0.9999,)", or empty."""
    return f", {_CONVERTED[old][1]}" if old in _CONVERTED else ""


def moved_fields_in(text: str) -> list[str]:
    """A hint for each renamed field in `text`: "model.channels is now unet.channels"."""
    found = [old for old in MOVED if re.search(rf"\b{re.escape(old)}\b", text)]
    return [f"{old} is now {MOVED[old]}{new_form(old)}" for old in found]
