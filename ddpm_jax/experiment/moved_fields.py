"""Config fields that have another name now. Configs of old runs are read with the new names; whoever types an old one
is told the new one.
"""

import re
from typing import Any

_OF_THE_UNET = (
    "channels", "channel_mults", "num_res_blocks", "attention_resolutions", "dropout", "num_groups", "norm_eps",
    "num_heads", "head_channels", "scale_shift_norm", "resample_in_blocks", "down_padding", "embedding_order",
    "embedding_spacing", "time_scale", "conv_in_channels",
)  # fmt: skip
MOVED = {f"model.{name}": f"unet.{name}" for name in _OF_THE_UNET}


def with_new_names(groups: dict[str, Any]) -> dict[str, Any]:
    """The config `{"group": {"field": value}}` of a run of any age, by today's names."""
    renamed = {group: dict(fields) if isinstance(fields, dict) else fields for group, fields in groups.items()}
    for old, new in MOVED.items():
        (old_group, old_name), (new_group, new_name) = old.split("."), new.split(".")
        if isinstance(renamed.get(old_group), dict) and old_name in renamed[old_group]:
            renamed.setdefault(new_group, {})[new_name] = renamed[old_group].pop(old_name)
    return renamed


def moved_fields_in(text: str) -> list[str]:
    """What to say of each moved field in `text`: "model.channels is now unet.channels"."""
    return [f"{old} is now {new}" for old, new in MOVED.items() if re.search(rf"\b{re.escape(old)}\b", text)]
