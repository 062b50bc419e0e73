"""The way down of a U-Net and its middle, which the noise predictor and the classifier share."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ddpm_jax.models.convolution import Conv, convolution_p
from ddpm_jax.models.initialisers import INIT
from ddpm_jax.models.layers import Downsample, ResBlock, SelfAttention, time_embedding


class UNetBlocks(nn.Module):
    """The settings, blocks and way down that `UNet` and `UNetClassifier` share.

    Attributes:
      channels: width of the first level.
      channel_mults: width of each level as a multiple of `channels`, also fractional (0.5); each level halves H and W.
      num_res_blocks: residual blocks per level going down; one more going up.
      attention_resolutions: heights in pixels where every residual block is followed by self-attention.
      dropout: dropout rate inside the residual blocks.
      num_groups: groups of every GroupNorm; must divide every width.
      dtype: of the convolutions and dense layers. Parameters, norms and the output are float32.
      norm_eps: epsilon of every GroupNorm; 1e-5 in OpenAI's code and most PyTorch code.
      num_heads: heads of every self-attention.
      head_channels: > 0: every self-attention has width/head_channels heads, and `num_heads` is ignored.
      scale_shift_norm: the embedding of t scales and shifts the second norm of a residual block, instead of being
        added before it.
      resample_in_blocks: residual blocks resize the image, instead of convolutions ("resblock_updown").
      down_padding: padding of the downsampling convolution: "end" (bottom and right; Ho et al.) or "both" sides.
      embedding_order: of the embedding of t: "sin_cos" (Ho et al.) or "cos_sin".
      embedding_spacing: of its frequencies: "half_minus_1" (Ho et al.) or "half".
      time_scale: t is embedded as time_scale * t. 1000/T is improved-diffusion's `rescale_timesteps`.
      conv_in_channels: width of the first convolution; 0 for `channels`. In Dhariwal and Nichol 2021 it is that of the
        first level, which differs if the multiple of that level is not 1.
      res_blocks_per_level: residual blocks of each level going down, such as (2, 4, 8, 8), one more going up;
        `num_res_blocks` is then ignored. (): `num_res_blocks` in every level.
      downsample_first: every level, the first too, begins with its downsampling and ends with its upsampling, so that
        its residual blocks work at half the height and width. One more residual block follows the last upsampling.
      scale_skips: what the way down hands to the way up is multiplied by 2^-1/2.
      remat: gradient checkpointing: inside every residual block and self-attention, only the outputs of convolutions
        are kept for the backward pass, which recomputes the rest (Chen et al. 2016): less memory, more time.
        Parameters, dropout and the prediction are the same.
    """

    channels: int = 128
    channel_mults: tuple[int | float, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    num_groups: int = 32
    dtype: DTypeLike = jnp.float32
    norm_eps: float = 1e-6
    num_heads: int = 1
    head_channels: int = 0
    scale_shift_norm: bool = False
    resample_in_blocks: bool = False
    down_padding: str = "end"
    embedding_order: str = "sin_cos"
    embedding_spacing: str = "half_minus_1"
    time_scale: float = 1.0
    conv_in_channels: int = 0
    res_blocks_per_level: tuple[int, ...] = ()
    downsample_first: bool = False
    scale_skips: bool = False
    remat: bool = False

    def way_down(
        self, x_t: Float[Array, "B H W C"], time: Float[Array, "B E"], *, train: bool
    ) -> tuple[Float[Array, "B h w c"], list[Array]]:
        """The output of the middle, and what the way up gets from each block of the way down."""

        def res_block(h: Array, width: int, name: str, resize: str = "") -> Array:
            return self.res_block(h, None, time, width=width, resize=resize, train=train, name=name)

        def downsample(h: Array, width: int, level: int) -> Array:
            name = f"down_{level}_downsample"
            if self.resample_in_blocks:
                return res_block(h, width, name, "down")
            return Downsample(self.dtype, self.down_padding, width, name=name)(h)  # [B, H/2, W/2, width]

        first = self.conv_in_channels or self.channels
        h = Conv(first, (3, 3), kernel_init=INIT, dtype=self.dtype, name="conv_in")(x_t)
        skips = [h]
        widths = level_widths(self.channels, self.channel_mults)
        for level, (width, num_blocks) in enumerate(zip(widths, self.blocks_of_levels(), strict=True)):
            if self.downsample_first:
                h = downsample(h, width, level)
                skips.append(h)
            for i in range(num_blocks):
                h = res_block(h, width, f"down_{level}_block_{i}")
                if h.shape[1] in self.attention_resolutions:
                    h = self.attention(h, f"down_{level}_attention_{i}")
                skips.append(h)
            if not self.downsample_first and level < len(widths) - 1:
                h = downsample(h, h.shape[-1], level)
                skips.append(h)

        h = res_block(h, h.shape[-1], "middle_block_0")
        h = self.attention(h, "middle_attention")
        h = res_block(h, h.shape[-1], "middle_block_1")
        return h, skips

    def blocks_of_levels(self) -> tuple[int, ...]:
        """The number of residual blocks of every level on the way down."""
        return self.res_blocks_per_level or (self.num_res_blocks,) * len(self.channel_mults)

    def embed_time(self, t: Array) -> Float[Array, "B E"]:
        """The embedding of the step; E = 4 channels."""
        return self._embed(self.time_scale * t, "time")

    def embed_level(self, level: Array) -> Float[Array, "B E"]:
        """The embedding of an augmentation level, as that of a step, with dense layers of its own."""
        return self._embed(level, "level")

    def _embed(self, number: Array, name: str) -> Float[Array, "B E"]:
        def dense(layer: int) -> nn.Dense:
            return nn.Dense(4 * self.channels, kernel_init=INIT, dtype=self.dtype, name=f"{name}_{layer}")

        waves = time_embedding(number, self.channels, order=self.embedding_order, spacing=self.embedding_spacing)
        return dense(2)(nn.swish(dense(1)(waves)))

    def res_block(
        self, h: Array, skip: Array | None, time: Array, *, width: int, resize: str, train: bool, name: str
    ) -> Array:
        """A residual block; `skip` is concatenated to its input, times 2^-1/2 with `scale_skips`."""
        block = ResBlock(
            width,
            self.dropout,
            self.num_groups,
            self.dtype,
            norm_eps=self.norm_eps,
            scale_shift_norm=self.scale_shift_norm,
            resize=resize,
            name=name,
        )

        def run(block: ResBlock, h: Array, skip: Array | None, time: Array) -> Array:
            # Concatenated here: the two parts are kept for the backward pass anyway, the whole need not be kept.
            if skip is not None:
                h = jnp.concatenate([h, skip * 2**-0.5 if self.scale_skips else skip], axis=-1)
            return block(h, time, train=train)

        return self._rematerialised(run)(block, h, skip, time)

    def heads_of(self, width: int) -> int:
        """The number of heads of a self-attention."""
        return width // self.head_channels if self.head_channels else self.num_heads

    def attention(self, h: Array, name: str) -> Array:
        """A self-attention with its shortcut."""
        block = SelfAttention(self.num_groups, self.dtype, self.heads_of(h.shape[-1]), self.norm_eps, name=name)
        return self._rematerialised(SelfAttention.__call__)(block, h)

    def _rematerialised(self, run: Callable[..., Array]) -> Callable[..., Array]:
        """`run` with gradient checkpointing, if the network uses it."""
        # Applied to a function of a module; applied to a class it would rename the parameters.
        return nn.remat(run, policy=_is_convolution) if self.remat else run


def _is_convolution(primitive: object, *_: object, **__: object) -> bool:
    """Selects what remat keeps: the costliest outputs, which are few. Other values are cheap, or large like logits."""
    return primitive in (convolution_p, jax.lax.conv_general_dilated_p)


def level_widths(channels: int, channel_mults: Sequence[int | float]) -> list[int]:
    """The channels of every level; `unet_checks` makes sure that they are whole numbers."""
    return [round(channels * mult) for mult in channel_mults]
