"""Conversion between the config.json of diffusers' UNet2DModel and the fields of our U-Net, in both directions."""

from typing import Any

from ddpm_jax.models.unet_blocks import level_widths
from ddpm_jax.runtime.errors import UserError, check_one_of

# Defaults of their class, for settings that a config.json lacks.
_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "num_class_embeds": None,
}
# Settings for which our U-Net supports only one behaviour -> the values that mean it.
_ONLY: dict[str, tuple] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "class_embed_type": (None,),
}
_UNUSED = ("num_train_timesteps",)  # only for a learned time embedding
_DOWN = {"DownBlock2D": "conv", "ResnetDownsampleBlock2D": "resnet", "AttnDownBlock2D": None}
_UP = {"UpBlock2D": "conv", "ResnetUpsampleBlock2D": "resnet", "AttnUpBlock2D": None}
_TO_A_FILE = "export the network to FILE.safetensors or FILE.npz"
_MOST_LAYERS = 64  # per level: a mistyped number must not build a network for hours


def fields_of_unet(given: dict[str, Any], what: str) -> dict[str, Any]:
    """{"image_size", "num_channels", "out_channels", "model", "unet"} of a UNet2DModel's config.json.

    Args:
      given: the settings; names that begin with "_" are ignored.
      what: names the file in error messages.

    Raises:
      UserError: names a setting that our U-Net does not support, or that has the wrong type.
    """
    settings = {name: value for name, value in given.items() if not name.startswith("_") and name not in _UNUSED}
    for name, value in settings.items():
        if name in _ONLY and value not in _ONLY[name]:
            allowed = " or ".join(map(repr, _ONLY[name]))
            raise UserError(f"{what} has {name}={value!r}, which our U-Net does not support; it supports {allowed}")
        if name not in _ONLY and name not in _DEFAULTS and value is not None:
            raise UserError(f"{what} has the setting {name}={value!r}, which our U-Net does not know")
    settings = _checked(_DEFAULTS | settings, what)
    widths, levels = settings["block_out_channels"], range(len(settings["block_out_channels"]))
    if settings["time_embedding_dim"] not in (None, 4 * widths[0]):
        raise UserError(f"{what} has time_embedding_dim={settings['time_embedding_dim']}; ours is {4 * widths[0]}")
    if settings["resnet_time_scale_shift"] == "scale_shift" and settings["attn_norm_num_groups"] is None:
        raise UserError(f"{what} has attn_norm_num_groups=None, no norm in the middle attention; our U-Net has one")
    if settings["attn_norm_num_groups"] not in (None, settings["norm_num_groups"]):
        raise UserError(f"{what} has attn_norm_num_groups other than norm_num_groups; in our U-Net they are equal")
    attention, in_blocks = _blocks(settings, what)
    height = settings["sample_size"][0]
    unet = {
        "channels": widths[0],
        "channel_mults": tuple(width / widths[0] if width % widths[0] else width // widths[0] for width in widths),
        "num_res_blocks": settings["layers_per_block"],
        "attention_resolutions": tuple(height // 2**level for level in levels if attention[level]),
        "dropout": float(settings["dropout"]),
        "num_groups": settings["norm_num_groups"],
        "norm_eps": float(settings["norm_eps"]),
        "num_heads": 1,
        "head_channels": settings["attention_head_dim"] or 0,
        "scale_shift_norm": settings["resnet_time_scale_shift"] == "scale_shift",
        "resample_in_blocks": in_blocks,
        "down_padding": "end" if in_blocks or settings["downsample_padding"] == 0 else "both",
        "embedding_order": "cos_sin" if settings["flip_sin_to_cos"] else "sin_cos",
        "embedding_spacing": "half" if settings["freq_shift"] == 0 else "half_minus_1",
        "time_scale": 1.0,
    }
    return {
        "image_size": settings["sample_size"],
        "num_channels": settings["in_channels"],
        "out_channels": settings["out_channels"],
        "model": {"name": "unet", "num_classes": settings["num_class_embeds"] or 0},
        "unet": unet,
    }


def _checked(settings: dict[str, Any], what: str) -> dict[str, Any]:
    """The settings with lists as tuples and sample_size as a pair; raises UserError for values of the wrong kind."""
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    if settings["sample_size"] is None:
        raise UserError(f"{what} has no sample_size: add the height and width of its images, such as [32, 32]")
    if _is_count(settings["sample_size"]):
        settings["sample_size"] = (settings["sample_size"],) * 2
    kinds = {
        "sample_size": lambda v: isinstance(v, tuple) and len(v) == 2 and all(map(_is_count, v)),
        "block_out_channels": lambda v: isinstance(v, tuple) and 0 < len(v) < 32 and all(map(_is_count, v)),
        "layers_per_block": lambda v: _is_count(v) and v <= _MOST_LAYERS,
        "attention_head_dim": lambda v: v is None or _is_count(v),
        "num_class_embeds": lambda v: v is None or _is_count(v),
        "dropout": lambda v: isinstance(v, (int, float)) and 0 <= v < 1,
        "norm_eps": lambda v: isinstance(v, (int, float)) and 0 < v < 1,
        "downsample_padding": lambda v: v in (0, 1),
        "freq_shift": lambda v: v in (0, 1),
        "flip_sin_to_cos": lambda v: isinstance(v, bool),
        "resnet_time_scale_shift": lambda v: v in ("default", "scale_shift"),
        "downsample_type": lambda v: v in ("conv", "resnet"),
        "upsample_type": lambda v: v in ("conv", "resnet"),
    } | dict.fromkeys(("in_channels", "out_channels", "norm_num_groups"), _is_count)
    for name, fits in kinds.items():
        if not fits(settings[name]):
            raise UserError(f"{what} has {name}={settings[name]!r}, which our U-Net does not support")
    return settings


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**20


def _blocks(settings: dict[str, Any], what: str) -> tuple[list[bool], bool]:
    """(which levels have attention, whether residual blocks resample); must be the same on the way down and up."""
    num_levels = len(settings["block_out_channels"])
    sides = {}
    for name, kinds, resample in (
        ("down_block_types", _DOWN, settings["downsample_type"]), ("up_block_types", _UP, settings["upsample_type"])
    ):  # fmt: skip
        types = settings[name]
        if not isinstance(types, tuple) or len(types) != num_levels:
            raise UserError(f"{what} has {name}={types!r}; block_out_channels has {num_levels} levels")
        for kind in types:
            check_one_of(f"a block of {name} in {what}", kind, kinds)
        by_level = types if name == "down_block_types" else types[::-1]
        # The innermost level does not resample, so the kind of its resampling does not matter.
        resampled = [kinds[k] or resample for k in (by_level[:-1] if name == "down_block_types" else by_level[1:])]
        sides[name] = ([kinds[kind] is None for kind in by_level], set(resampled))
    if sides["down_block_types"][0] != sides["up_block_types"][0]:
        raise UserError(f"{what} has attention at other levels on the way up than down; in our U-Net they are the same")
    resamplings = sides["down_block_types"][1] | sides["up_block_types"][1]
    if len(resamplings) > 1:
        raise UserError(f"{what} resamples by convolutions and by residual blocks; our U-Net uses one of them")
    return sides["down_block_types"][0], resamplings == {"resnet"}


def unet_of_fields(groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The config.json of the UNet2DModel that is equivalent to the network of a config.

    Args:
      groups: {"group": {"field": value}}; "model", "unet", "condition", "data" and "diffusion" are read.

    Raises:
      UserError: names a field that UNet2DModel does not support.
    """
    if groups["model"]["name"] != "unet":
        raise UserError(f"UNet2DModel does not support model.name={groups['model']['name']!r}: it is always a U-Net")
    if groups["diffusion"]["self_conditioning"]:
        raise UserError(
            "diffusers has no sampler for diffusion.self_conditioning=True; got a network that also sees its previous "
            f"estimate: {_TO_A_FILE}"
        )
    if groups["condition"]["task"]:
        raise UserError(
            f"UNet2DModel does not support condition.task={groups['condition']['task']!r}: it sees x_t alone; "
            f"{_TO_A_FILE}"
        )
    if groups["diffusion"]["network_input"] != "t":
        raise UserError(
            f"diffusers has no sampler for diffusion.network_input={groups['diffusion']['network_input']!r}: "
            f"{_TO_A_FILE}"
        )
    unet, size = groups["unet"], list(groups["data"]["image_size"])
    if unet["time_scale"] != 1:
        raise UserError(f"UNet2DModel does not support unet.time_scale={unet['time_scale']}: it does not scale t")
    if unet["channel_mults"][0] != 1 or unet["conv_in_channels"] not in (0, unet["channels"]):
        raise UserError(
            f"UNet2DModel does not support unet.channel_mults={tuple(unet['channel_mults'])} with "
            f"unet.conv_in_channels={unet['conv_in_channels']}: its first convolution is as wide as its first level "
            "and unet.channels"
        )
    for name in ("downsample_first", "scale_skips"):
        if unet[name]:
            raise UserError(f"UNet2DModel does not support unet.{name}=True: {_TO_A_FILE}")
    numbers = set(unet["res_blocks_per_level"]) or {unet["num_res_blocks"]}
    if len(numbers) > 1:
        raise UserError(
            f"UNet2DModel has equally many blocks in every level; unet.res_blocks_per_level="
            f"{tuple(unet['res_blocks_per_level'])}: {_TO_A_FILE}"
        )
    widths = level_widths(unet["channels"], unet["channel_mults"])
    attention = [size[0] // 2**level in unet["attention_resolutions"] for level in range(len(widths))]
    plain = "Resnet{}sampleBlock2D" if unet["resample_in_blocks"] else "{}Block2D"
    resample = "resnet" if unet["resample_in_blocks"] else "conv"

    def types(side: str, levels: list[bool]) -> list[str]:
        return [f"Attn{side}Block2D" if wanted else plain.format(side) for wanted in levels]

    channels = groups["data"]["num_channels"]
    # A network that was also trained without classes has one more vector, the last, for "no class".
    num_vectors = groups["model"]["num_classes"] + (groups["condition"]["drop_rate"] > 0)
    learned = groups["diffusion"]["variance"] in ("learned", "learned_range")
    return {
        "_class_name": "UNet2DModel",
        "sample_size": size[0] if size[0] == size[1] else size,
        "in_channels": channels,
        "out_channels": 2 * channels if learned else channels,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": 0 if unet["embedding_spacing"] == "half" else 1,
        "flip_sin_to_cos": unet["embedding_order"] == "cos_sin",
        "down_block_types": types("Down", attention),
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": types("Up", attention[::-1]),
        "block_out_channels": widths,
        "layers_per_block": numbers.pop(),
        "mid_block_scale_factor": 1,
        "downsample_padding": 1 if unet["down_padding"] == "both" else 0,
        "downsample_type": resample,
        "upsample_type": resample,
        "dropout": unet["dropout"],
        "act_fn": "silu",
        "attention_head_dim": _head_width(unet, widths, attention),
        "norm_num_groups": unet["num_groups"],
        "attn_norm_num_groups": unet["num_groups"],
        "norm_eps": unet["norm_eps"],
        "resnet_time_scale_shift": "scale_shift" if unet["scale_shift_norm"] else "default",
        "add_attention": True,
        "num_class_embeds": num_vectors or None,
    }


def _head_width(unet: dict[str, Any], widths: list[int], attention: list[bool]) -> int | None:
    """Channels per head; None for one head of any width. UNet2DModel cannot set the number of heads."""
    if unet["head_channels"] or unet["num_heads"] == 1:
        return unet["head_channels"] or None
    heads = {width // unet["num_heads"] for width, wanted in zip(widths, attention, strict=True) if wanted}
    heads.add(widths[-1] // unet["num_heads"])  # the middle block
    if len(heads) > 1:
        raise UserError(
            f"UNet2DModel has heads of one width; unet.num_heads={unet['num_heads']} gives {sorted(heads)}, which "
            "cannot be exported to diffusers"
        )
    return heads.pop()
