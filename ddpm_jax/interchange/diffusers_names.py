"""The correspondence between the tensors of diffusers' UNet2DModel and the leaves of our U-Net."""

import re
from typing import Any

from ddpm_jax.interchange.tensor_mapping import CONV, DENSE, POINT_2D, SAME, Layout, Match, Path

_TOP = {
    "time_1": "time_embedding.linear_1",
    "time_2": "time_embedding.linear_2",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
    "middle_attention": "mid_block.attentions.0",
    "middle_block_0": "mid_block.resnets.0",
    "middle_block_1": "mid_block.resnets.1",
}
_SIDE = {"block": "resnets", "attention": "attentions", "downsample": "downsamplers", "upsample": "upsamplers"}
_IN_RES_BLOCK = {
    "norm_1": "norm1", "conv_1": "conv1", "time": "time_emb_proj", "norm_2": "norm2", "conv_2": "conv2",
    "shortcut": "conv_shortcut", "conv": "conv",
}  # fmt: skip
_IN_ATTENTION = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def matches_of_unet(shapes: dict[Path, tuple[int, ...]]) -> list[Match]:
    """The tensor of UNet2DModel for each leaf of our U-Net."""
    num_levels = 1 + max(int(path[0].split("_")[1]) for path in shapes if path[0].startswith("down_"))
    return [_match(path, shape, num_levels) for path, shape in shapes.items()]


def _match(path: Path, shape: tuple[int, ...], num_levels: int) -> Match:
    if path == ("label_embedding",):
        return Match(path, "class_embedding.weight")
    top, *inner, leaf = path
    parts = re.fullmatch(r"(down|up)_(\d+)_([a-z]+)(?:_(\d+))?", top)
    if parts:
        side, level, kind, index = parts.groups()
        block = int(level) if side == "down" else num_levels - 1 - int(level)
        theirs = f"{side}_blocks.{block}.{_SIDE[kind]}.{index or 0}"
    else:
        theirs = _TOP[top]
    inside = _IN_ATTENTION if "attention" in top else _IN_RES_BLOCK
    if inner and top != "norm_out":  # our norms are modules inside a module: ("norm_1", "norm", "scale")
        theirs += f".{inside[inner[0]]}"
    layout: Layout = SAME
    if leaf == "kernel":
        layout = CONV if len(shape) == 4 else POINT_2D if inner[:1] == ["shortcut"] else DENSE
    return Match(path, f"{theirs}.{_LEAVES[leaf]}", layout)


# Names of the attention's tensors in files of diffusers before 0.15, such as google/ddpm-* on the Hub.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def with_new_names(tensors: dict[str, Any]) -> dict[str, Any]:
    """`tensors` with the old names of the attention replaced."""

    def renamed(name: str) -> str:
        old = re.fullmatch(r"(.*\.attentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))", name)
        return f"{old[1]}{_OLD[old[2]]}{old[3]}" if old else name

    return {renamed(name): tensor for name, tensor in tensors.items()}
