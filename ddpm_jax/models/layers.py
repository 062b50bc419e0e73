"""The layers of the U-Net of Ho et al. 2020, with the initialisers and constants of its code.

Parameters, norms, softmax and time embedding are float32; convolutions and dense layers compute in `dtype`.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


def fan_avg_uniform(scale: float) -> nn.initializers.Initializer:
    """U(-l, l) with l = sqrt(3 scale / mean(fan_in, fan_out)): the initialiser of the original network."""
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform")


INIT = fan_avg_uniform(1.0)
# The original writes scale 0 as 1e-10: "zero" layers start as near-identity branches.
ZERO_INIT = fan_avg_uniform(1e-10)


def time_embedding(t: Int[Array, "B"] | Float[Array, "B"], dim: int) -> Float[Array, "B dim"]:
    """[sin(t w_i), cos(t w_i)] with w_i = 10000^(-i/(dim/2 - 1)), i = 0..dim/2-1.

    Vaswani et al. 2017, section 3.5, in the spacing of Ho et al.'s code (which divides by dim/2 - 1).

    Args:
      t: steps 0..T-1, as numbers (not scaled by T).
      dim: even, at least 4.
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(10000) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


class Norm(nn.Module):
    """GroupNorm over float32, epsilon 1e-6."""

    num_groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # The two-pass variance: at mean 1000 and deviation 1 the fast one is wrong in the first digit.
        norm = nn.GroupNorm(
            self.num_groups, epsilon=1e-6, use_fast_variance=False, dtype=jnp.float32, name="norm"
        )
        return norm(x.astype(jnp.float32))


class ResBlock(nn.Module):
    """x + f(x, t): norm, swish, conv, add time, norm, swish, dropout, conv; 1x1 shortcut if widths differ."""

    channels: int
    dropout: float
    num_groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, time: Array, *, train: bool) -> Array:
        h = nn.swish(Norm(self.num_groups, name="norm_1")(x)).astype(self.dtype)
        h = nn.Conv(self.channels, (3, 3), kernel_init=INIT, dtype=self.dtype, name="conv_1")(h)
        shift = nn.Dense(self.channels, kernel_init=INIT, dtype=self.dtype, name="time")(nn.swish(time))
        h = h + shift[:, None, None, :]
        h = nn.swish(Norm(self.num_groups, name="norm_2")(h)).astype(self.dtype)
        h = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(h)
        h = nn.Conv(self.channels, (3, 3), kernel_init=ZERO_INIT, dtype=self.dtype, name="conv_2")(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, kernel_init=INIT, dtype=self.dtype, name="shortcut")(x)
        return x + h


class SelfAttention(nn.Module):
    """x + out(softmax(q k^T / sqrt(C)) v) over all H*W positions, one head; q, k, v, out are 1x1."""

    num_groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        h = Norm(self.num_groups, name="norm")(x).astype(self.dtype)
        h = h.reshape(batch, height * width, channels)  # [B, HW, C]
        dense = {"kernel_init": INIT, "dtype": self.dtype}
        q, k, v = (nn.Dense(channels, name=name, **dense)(h) for name in ("query", "key", "value"))
        logits = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32) * channels**-0.5
        h = jnp.einsum("bqk,bkc->bqc", jax.nn.softmax(logits).astype(self.dtype), v)
        h = nn.Dense(channels, kernel_init=ZERO_INIT, dtype=self.dtype, name="out")(h)
        return x + h.reshape(x.shape)


class Downsample(nn.Module):
    """[B, H, W, C] -> [B, H/2, W/2, C]: 3x3 conv, stride 2, padded at bottom and right only (TF's SAME)."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        padding = ((0, 1), (0, 1))
        return nn.Conv(
            x.shape[-1], (3, 3), strides=2, padding=padding, kernel_init=INIT, dtype=self.dtype, name="conv"
        )(x)


class Upsample(nn.Module):
    """[B, H, W, C] -> [B, 2H, 2W, C]: nearest neighbour, then a 3x3 conv."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
        x = x.reshape(batch, 2 * height, 2 * width, channels)
        return nn.Conv(channels, (3, 3), kernel_init=INIT, dtype=self.dtype, name="conv")(x)
