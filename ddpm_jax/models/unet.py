"""The U-Net of Ho et al. 2020 and its successors in Flax Linen: x_t, t -> the prediction, pure in its parameters."""

from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ddpm_jax.models.initialisers import INIT, ZERO_INIT
from ddpm_jax.models.layers import (
    Downsample,
    Norm,
    ResBlock,
    SelfAttention,
    Upsample,
    check_condition,
    class_embedding,
    time_embedding,
)


class UNet(nn.Module):
    """eps_theta(x_t, t) of Ho et al. 2020, appendix B; 35,746,307 parameters at the defaults with 3 channels.

    The other values of the attributes from `norm_eps` on are for the networks of Nichol and Dhariwal 2021 and of
    Dhariwal and Nichol 2021. Differs: the initialisers are always those of Ho et al.'s code.

    Attributes:
      channels: width of the first level.
      channel_mults: width of each level as a multiple of `channels`, also fractional (0.5); each level halves H and W.
      num_res_blocks: residual blocks per level going down; one more going up.
      attention_resolutions: heights in pixels where every residual block is followed by self-attention.
      dropout: dropout rate inside the residual blocks.
      num_groups: groups of every GroupNorm; must divide every width.
      out_channels: channels of the prediction; 0: as many as x_t.
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
      num_classes: > 0: the network takes labels, and a learned vector per label is added to the embedding of t.
      null_class: the label num_classes means "no class"; see `data.condition`.
      conv_in_channels: width of the first convolution; 0 for `channels`. In Dhariwal and Nichol 2021 it is that of the
        first level, which differs if the multiple of that level is not 1.
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
    out_channels: int = 0
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
    num_classes: int = 0
    null_class: bool = False
    conv_in_channels: int = 0
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x_t: Float[Array, "B H W C"],
        t: Int[Array, "B"] | Float[Array, "B"],
        condition: Mapping[str, Array] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B H W C_out"]:
        """The prediction, [B, H, W, C_out].

        Args:
          x_t: images, H and W divisible by 2^(levels-1).
          t: steps 0..T-1, whole or fractional.
          condition: {"label": int [B]} with labels 0..num_classes-1, or num_classes for none with `null_class`, if
            num_classes > 0 (labels out of range give NaN); else empty.
          train: whether to apply dropout, with the key "dropout".

        Raises:
          UserError: an entry is missing, or the network does not take an entry.
        """
        condition = condition or {}
        check_condition(condition, ["label"] if self.num_classes else [])
        time = self._embedding(t, condition.get("label"))  # [B, 4 channels]

        def res_block(h: Array, width: int, name: str, resize: str = "", skip: Array | None = None) -> Array:
            return self._res_block(h, skip, time, width=width, resize=resize, train=train, name=name)

        first = self.conv_in_channels or self.channels
        h = nn.Conv(first, (3, 3), kernel_init=INIT, dtype=self.dtype, name="conv_in")(x_t)
        skips = [h]
        widths = level_widths(self.channels, self.channel_mults)
        for level, width in enumerate(widths):
            for i in range(self.num_res_blocks):
                h = res_block(h, width, f"down_{level}_block_{i}")
                if h.shape[1] in self.attention_resolutions:
                    h = self._attention(h, f"down_{level}_attention_{i}")
                skips.append(h)
            if level < len(self.channel_mults) - 1:
                name = f"down_{level}_downsample"
                if self.resample_in_blocks:
                    h = res_block(h, h.shape[-1], name, "down")
                else:
                    h = Downsample(self.dtype, self.down_padding, name=name)(h)  # [B, H/2, W/2, C]
                skips.append(h)

        h = res_block(h, h.shape[-1], "middle_block_0")
        h = self._attention(h, "middle_attention")
        h = res_block(h, h.shape[-1], "middle_block_1")

        for level, width in reversed(list(enumerate(widths))):
            for i in range(self.num_res_blocks + 1):
                h = res_block(h, width, f"up_{level}_block_{i}", skip=skips.pop())
                if h.shape[1] in self.attention_resolutions:
                    h = self._attention(h, f"up_{level}_attention_{i}")
            if level > 0:
                name = f"up_{level}_upsample"
                if self.resample_in_blocks:
                    h = res_block(h, h.shape[-1], name, "up")
                else:
                    h = Upsample(self.dtype, name=name)(h)  # [B, 2H, 2W, C]

        h = nn.swish(Norm(self.num_groups, self.norm_eps, self.dtype, name="norm_out")(h))
        out = self.out_channels or x_t.shape[-1]
        # The output layer stays in float32, because its rounding would be noise on the prediction.
        return nn.Conv(out, (3, 3), kernel_init=ZERO_INIT, dtype=jnp.float32, name="conv_out")(h)

    def _embedding(self, t: Array, labels: Array | None) -> Float[Array, "B E"]:
        """The embedding of the step and, if there are classes, of the label; E = 4 channels."""

        def dense(name: str) -> nn.Dense:
            return nn.Dense(4 * self.channels, kernel_init=INIT, dtype=self.dtype, name=name)

        time = time_embedding(
            self.time_scale * t, self.channels, order=self.embedding_order, spacing=self.embedding_spacing
        )
        time = dense("time_2")(nn.swish(dense("time_1")(time)))
        if labels is None:
            return time
        num_vectors = self.num_classes + self.null_class
        return time + class_embedding(self, labels, num_vectors, 4 * self.channels).astype(self.dtype)

    def _res_block(
        self, h: Array, skip: Array | None, time: Array, *, width: int, resize: str, train: bool, name: str
    ) -> Array:
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
            return block(h if skip is None else jnp.concatenate([h, skip], axis=-1), time, train=train)

        return self._rematerialised(run)(block, h, skip, time)

    def _attention(self, h: Array, name: str) -> Array:
        num_heads = h.shape[-1] // self.head_channels if self.head_channels else self.num_heads
        block = SelfAttention(self.num_groups, self.dtype, num_heads, self.norm_eps, name=name)
        return self._rematerialised(SelfAttention.__call__)(block, h)

    def _rematerialised(self, run: Callable[..., Array]) -> Callable[..., Array]:
        """`run` with gradient checkpointing, if the network uses it."""
        # Applied to a function of a module; applied to a class it would rename the parameters.
        return nn.remat(run, policy=_is_convolution) if self.remat else run


def _is_convolution(primitive: object, *_: object, **__: object) -> bool:
    """Selects what remat keeps: the costliest outputs, which are few. Other values are cheap, or large like logits."""
    return primitive is jax.lax.conv_general_dilated_p


def level_widths(channels: int, channel_mults: Sequence[int | float]) -> list[int]:
    """The channels of every level; `unet_checks` makes sure that they are whole numbers."""
    return [round(channels * mult) for mult in channel_mults]
