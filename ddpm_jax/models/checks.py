"""What is refused before a network is built from a config."""

from ddpm_jax.errors import UserError
from ddpm_jax.models.unet import UNet


def check_unet(unet: UNet, image_size: tuple[int, int]) -> None:
    """Refuses settings that the network cannot be built with, or that would silently do nothing.

    Raises:
      UserError: names the config field, what it is, and what it may be.
    """
    if not unet.channel_mults or min(unet.channel_mults) < 1:
        raise UserError(f"model.channel_mults must be one or more numbers above 0; got {unet.channel_mults}")
    for field in ("num_res_blocks", "num_groups"):
        if getattr(unet, field) < 1:
            raise UserError(f"model.{field} must be at least 1; got {getattr(unet, field)}")
    factor = 2 ** (len(unet.channel_mults) - 1)
    for side in image_size:
        if side % factor or side < 1:
            raise UserError(
                f"data.image_size must be divisible by {factor} = 2^(levels-1) for the "
                f"{len(unet.channel_mults)} levels of model.channel_mults; got {image_size}: "
                f"take {_nearest_sizes(side, factor)}, or fewer levels"
            )
    if unet.channels % 2 or unet.channels < 4:
        raise UserError(f"model.channels must be even and at least 4; got {unet.channels}")
    for mult in (1, *unet.channel_mults):  # 1: of conv_in
        if (unet.channels * mult) % unet.num_groups:
            raise UserError(
                f"model.num_groups must divide every level's width; got {unet.num_groups} groups for the "
                f"width {unet.channels * mult} = {unet.channels} * {mult}"
            )
    heights = [image_size[0] // 2**level for level in range(len(unet.channel_mults))]
    for resolution in unet.attention_resolutions:
        if resolution not in heights:
            raise UserError(
                f"model.attention_resolutions must be among the heights of the levels, {heights}; "
                f"got {resolution}"
            )
    if not 0 <= unet.dropout < 1:
        raise UserError(f"model.dropout must be in [0, 1); got {unet.dropout}")


def _nearest_sizes(side: int, factor: int) -> str:
    below, above = side // factor * factor, -(-side // factor) * factor
    return f"{below} or {above}" if below > 0 else f"{max(above, factor)}"
