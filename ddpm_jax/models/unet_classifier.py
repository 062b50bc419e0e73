"""A classifier of noised images: a U-Net's way down and attention pooling (Dhariwal and Nichol 2021, section 4)."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ddpm_jax.models.initialisers import INIT
from ddpm_jax.models.layers import Norm, check_condition
from ddpm_jax.models.unet_blocks import UNetBlocks


class UNetClassifier(UNetBlocks):
    """(x_t, t) -> logits of the classes.

    The networks of Dhariwal and Nichol 2021, appendix H: `head_channels` is also that of the pool. Its table of
    positions has one entry per pixel of the lowest level, so that the weights are for one size of image. Differs: the
    initialisers of the blocks are those of Ho et al.'s code.

    Attributes: those of `UNetBlocks`, and
      num_outputs: the number of classes.
    """

    num_outputs: int = 1000

    @nn.compact
    def __call__(
        self,
        x_t: Float[Array, "B H W C"],
        t: Int[Array, "B"] | Float[Array, "B"],
        condition: Mapping[str, Array] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B C_out"]:
        """The logits, float32 [B, num_outputs].

        Args: as for `UNet`; the condition must be empty.
        """
        check_condition(condition or {}, [])
        h, _ = self.way_down(x_t, self.embed_time(t), train=train)
        h = nn.swish(Norm(self.num_groups, self.norm_eps, self.dtype, name="norm_out")(h))
        return AttentionPool(self.heads_of(h.shape[-1]), self.num_outputs, self.dtype, name="pool")(h)


class AttentionPool(nn.Module):
    """softmax(q_0 k^T / sqrt(c)) v, q_0 of the mean pixel, over the mean and all pixels, each with a learned position.

    As in CLIP (Radford et al. 2021, section 2.4).
    """

    num_heads: int
    num_outputs: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B C_out"]:
        batch, height, width, channels = x.shape
        pixels = x.reshape(batch, height * width, channels)
        tokens = jnp.concatenate([pixels.mean(axis=1, keepdims=True), pixels], axis=1)  # [B, HW + 1, C]
        position = self.param(
            "position", nn.initializers.normal(channels**-0.5), (height * width + 1, channels), jnp.float32
        )
        tokens = (tokens + position[None]).astype(self.dtype)

        def project(name: str, tokens: Array) -> Array:
            out = nn.Dense(channels, kernel_init=INIT, dtype=self.dtype, name=name)(tokens)
            out = out.reshape(batch, -1, self.num_heads, channels // self.num_heads)
            return out.swapaxes(1, 2)  # [B, heads, tokens, c]

        query = project("query", tokens[:, :1])
        key, value = project("key", tokens), project("value", tokens)
        logits = jnp.einsum("bhqc,bhkc->bhqk", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * (channels // self.num_heads) ** -0.5)
        pooled = jnp.einsum("bhqk,bhkc->bhqc", weights.astype(self.dtype), value).reshape(batch, channels)
        # In float32, like the output layer of the U-Net.
        return nn.Dense(self.num_outputs, kernel_init=INIT, dtype=jnp.float32, name="out")(pooled)
