"""The U-Net of Ho et al. 2020 in Flax Linen: x_t, t -> the prediction, pure in its parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.models.layers import (
    INIT,
    ZERO_INIT,
    Downsample,
    Norm,
    ResBlock,
    SelfAttention,
    Upsample,
    time_embedding,
)


class UNet(nn.Module):
    """eps_theta(x_t, t) of Ho et al. 2020, appendix B; 35,746,307 parameters at the defaults with 3 channels.

    Attributes:
      channels: width of the first level.
      channel_mults: width of each level as a multiple of `channels`; each level halves H and W.
      num_res_blocks: residual blocks a level going down; one more going up.
      attention_resolutions: heights in pixels at which every residual block is followed by self-attention.
      dropout: rate inside the residual blocks.
      num_groups: of every GroupNorm; divides every width.
      out_channels: channels of the prediction; 0 for as many as x_t has.
      dtype: of the convolutions and dense layers. Parameters, norms and the output are float32.
    """

    channels: int = 128
    channel_mults: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    num_groups: int = 32
    out_channels: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x_t: Float[Array, "B H W C"], t: Int[Array, "B"], *, train: bool = False
    ) -> Float[Array, "B H W C_out"]:
        def res_block(h: Array, width: int, name: str) -> Array:
            block = ResBlock(width, self.dropout, self.num_groups, self.dtype, name=name)
            return block(h, time, train=train)

        def attention(h: Array, name: str) -> Array:
            return SelfAttention(self.num_groups, self.dtype, name=name)(h)

        def dense(width: int, name: str) -> nn.Dense:
            return nn.Dense(width, kernel_init=INIT, dtype=self.dtype, name=name)

        time = dense(4 * self.channels, "time_1")(time_embedding(t, self.channels))
        time = dense(4 * self.channels, "time_2")(nn.swish(time))  # [B, 4 channels]

        h = nn.Conv(self.channels, (3, 3), kernel_init=INIT, dtype=self.dtype, name="conv_in")(x_t)
        skips = [h]
        for level, mult in enumerate(self.channel_mults):
            for i in range(self.num_res_blocks):
                h = res_block(h, self.channels * mult, f"down_{level}_block_{i}")
                if h.shape[1] in self.attention_resolutions:
                    h = attention(h, f"down_{level}_attention_{i}")
                skips.append(h)
            if level < len(self.channel_mults) - 1:
                h = Downsample(self.dtype, name=f"down_{level}_downsample")(h)  # [B, H/2, W/2, C]
                skips.append(h)

        h = res_block(h, h.shape[-1], "middle_block_0")
        h = attention(h, "middle_attention")
        h = res_block(h, h.shape[-1], "middle_block_1")

        for level, mult in reversed(list(enumerate(self.channel_mults))):
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = res_block(h, self.channels * mult, f"up_{level}_block_{i}")
                if h.shape[1] in self.attention_resolutions:
                    h = attention(h, f"up_{level}_attention_{i}")
            if level > 0:
                h = Upsample(self.dtype, name=f"up_{level}_upsample")(h)  # [B, 2H, 2W, C]

        h = nn.swish(Norm(self.num_groups, name="norm_out")(h))
        out = self.out_channels or x_t.shape[-1]
        # The head stays in float32: its rounding would be noise on the prediction.
        return nn.Conv(out, (3, 3), kernel_init=ZERO_INIT, dtype=jnp.float32, name="conv_out")(h)


def init_params(unet: nn.Module, key: Key[Array, ""], image_shape: tuple[int, int, int]) -> dict:
    """Fresh float32 parameters for images (H, W, C); jit- and eval_shape-compatible."""
    return unet.init(key, jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32))["params"]


def num_params(params: dict) -> int:
    """The number of weights in a tree of arrays or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
