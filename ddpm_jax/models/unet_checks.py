"""Checks of the U-Net's settings, before it is built."""

import math
from collections.abc import Sequence

from ddpm_jax.models.layers import DOWN_PADDINGS, EMBEDDING_ORDERS, EMBEDDING_SPACINGS
from ddpm_jax.models.unet import UNet
from ddpm_jax.models.unet_blocks import UNetBlocks, level_widths
from ddpm_jax.runtime.errors import UserError, arg, check_one_of

MOST_BLOCKS, MOST_CHANNELS = 500, 2**16  # beyond any published one; tracing more takes hours


def check_unet(unet: UNet, image_size: tuple[int, ...]) -> None:
    """Raises UserError for settings that the network cannot be built with; see `check_blocks`."""
    check_blocks(unet, image_size)
    if unet.num_classes < 0:
        raise UserError(f"{arg('num_classes')} must be at least 0; got {unet.num_classes}")


def check_blocks(unet: UNetBlocks, image_size: tuple[int, ...]) -> None:
    """Checks for settings that the network cannot be built with, or that would silently have no effect.

    Raises:
      UserError: names the attribute of the network, its value, and the allowed values.
    """
    if len(image_size) != 2:
        raise UserError(
            f"{arg('image_size')} must be (height, width) for the U-Net; got {image_size}: take conv_net, or a network "
            "of your own (docs/networks.md)"
        )
    if not unet.channel_mults or min(unet.channel_mults) <= 0:
        raise UserError(f"{arg('channel_mults')} must be one or more numbers above 0; got {unet.channel_mults}")
    for mult in unet.channel_mults:
        if not math.isclose(unet.channels * mult, round(unet.channels * mult)):  # 160 * 1.1 is not 176 in float64
            raise UserError(
                f"{arg('channel_mults')} times {arg('channels')} must be whole numbers; got {unet.channels} * {mult}"
            )
    for field in ("num_res_blocks", "num_groups", "num_heads"):
        if getattr(unet, field) < 1:
            raise UserError(f"{arg(field)} must be at least 1; got {getattr(unet, field)}")
    _check_levels(unet, image_size)
    if unet.channels % 2 or unet.channels < 4:
        raise UserError(f"{arg('channels')} must be even and at least 4; got {unet.channels}")
    _check_groups(unet)
    if unet.head_channels < 0:
        raise UserError(f"{arg('head_channels')} must be at least 0; got {unet.head_channels}")
    heights = [image_size[0] // 2 ** (level + unet.downsample_first) for level in range(len(unet.channel_mults))]
    for resolution in unet.attention_resolutions:
        if resolution not in heights:
            raise UserError(
                f"{arg('attention_resolutions')} must be among the heights of the levels, {heights}; got {resolution}"
            )
    _check_heads(unet, heights)
    if not 0 <= unet.dropout < 1:
        raise UserError(f"{arg('dropout')} must be in [0, 1); got {unet.dropout}")
    if not 0 < unet.norm_eps < 1:
        raise UserError(f"{arg('norm_eps')} must be above 0 and below 1, such as 1e-6 or 1e-5; got {unet.norm_eps}")
    if not 0 < unet.time_scale <= 1000:
        raise UserError(
            f"{arg('time_scale')} must be above 0 and at most 1000, such as 1 or 1000/T; got {unet.time_scale}"
        )
    check_one_of("embedding_order", unet.embedding_order, EMBEDDING_ORDERS)
    check_one_of("embedding_spacing", unet.embedding_spacing, EMBEDDING_SPACINGS)
    check_one_of("down_padding", unet.down_padding, DOWN_PADDINGS)
    if unet.resample_in_blocks and unet.down_padding != "end":
        raise UserError(
            f"{arg('down_padding')} is for a convolution that {arg('resample_in_blocks')}=True replaces; with it "
            f"it must be 'end'; got {unet.down_padding!r}"
        )


def _check_levels(unet: UNetBlocks, image_size: tuple[int, ...]) -> None:
    """Raises UserError for a number of blocks, or an image size, that does not fit the levels."""
    num_levels, per_level = len(unet.channel_mults), unet.res_blocks_per_level
    whole = all(type(number) is int and number >= 1 for number in per_level)
    if per_level and not (whole and len(per_level) == num_levels):
        raise UserError(
            f"{arg('res_blocks_per_level')} must be a whole number above 0 for each level of {arg('channel_mults')} "
            f"({num_levels}), or () for {arg('num_res_blocks')} in all; got {per_level}"
        )
    num_blocks = sum(unet.blocks_of_levels())
    if num_blocks > MOST_BLOCKS or unet.channels > MOST_CHANNELS:
        given = f"the sum of {arg('res_blocks_per_level')}" if per_level else f"{arg('num_res_blocks')} times levels"
        raise UserError(
            f"the network must have at most {MOST_BLOCKS} blocks ({given}) and "
            f"{MOST_CHANNELS} {arg('channels')}; got {num_blocks} and {unet.channels}"
        )
    power = "levels" if unet.downsample_first else "(levels-1)"
    factor = 2 ** (num_levels - 1 + unet.downsample_first)
    for side in image_size:
        if side % factor or side < 1:
            halved = f" and {arg('downsample_first')}=True" if unet.downsample_first else ""
            raise UserError(
                f"{arg('image_size')} must be divisible by {factor} = 2^{power} for the "
                f"{num_levels} levels of {arg('channel_mults')}{halved}; got {image_size}: "
                f"take {_nearest_sizes(side, factor)}, or fewer levels"
            )


def _check_groups(unet: UNetBlocks) -> None:
    """Raises UserError if the groups do not divide the channels of a norm."""
    if unet.conv_in_channels < 0:
        raise UserError(f"{arg('conv_in_channels')} must be at least 0; got {unet.conv_in_channels}")
    if unet.conv_in_channels % unet.num_groups:
        raise UserError(
            f"{arg('conv_in_channels')} must be divisible by the {unet.num_groups} groups of {arg('num_groups')}; "
            f"got {unet.conv_in_channels}"
        )
    mults = unet.channel_mults if unet.conv_in_channels else (1, *unet.channel_mults)  # 1: for conv_in
    for mult, width in zip(mults, level_widths(unet.channels, mults), strict=True):
        if width % unet.num_groups:
            raise UserError(
                f"{arg('num_groups')} must divide every level's width; got {unet.num_groups} groups for the "
                f"width {width} = {unet.channels} * {mult}"
            )


def _check_heads(unet: UNetBlocks, heights: Sequence[int]) -> None:
    """Raises UserError if the heads do not divide the channels of a self-attention."""
    with_attention = [h in unet.attention_resolutions for h in heights]
    with_attention[-1] = True  # the middle of the network
    all_widths = level_widths(unet.channels, unet.channel_mults)
    widths = [width for width, wanted in zip(all_widths, with_attention, strict=True) if wanted]
    field = "head_channels" if unet.head_channels else "num_heads"
    got = getattr(unet, field)
    if any(width % got for width in widths):
        common = math.gcd(*widths)
        fitting = [n for n in range(1, min(common, 4096) + 1) if common % n == 0]
        nearest = [n for n in fitting if n < got][-1:] + [n for n in fitting if n > got][:1]
        raise UserError(
            f"{arg(field)} must divide the width of every level with attention and of the middle, "
            f"{sorted(set(widths))}; got {got}: take {' or '.join(map(str, nearest))}"
        )


def _nearest_sizes(side: int, factor: int) -> str:
    below, above = side // factor * factor, -(-side // factor) * factor
    return f"{below} or {above}" if below > 0 else f"{max(above, factor)}"
