"""The layers of the U-Net of Ho et al. 2020 and its successors, with the constants of its code.

Parameters, norms, softmax and time embedding are float32; convolutions and dense layers compute in `dtype`.
"""

import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ddpm_jax.models.convolution import Conv
from ddpm_jax.models.initialisers import INIT, ZERO_INIT
from ddpm_jax.models.upsample_conv import UpsampleConv, upsample_nearest
from ddpm_jax.runtime.errors import UserError, check_one_of

EMBEDDING_ORDERS = ("sin_cos", "cos_sin")
EMBEDDING_SPACINGS = ("half_minus_1", "half")
DOWN_PADDINGS = ("end", "both")


def time_embedding(
    t: Int[Array, "B"] | Float[Array, "B"], dim: int, *, order: str = "sin_cos", spacing: str = "half_minus_1"
) -> Float[Array, "B dim"]:
    """[sin(t w_i), cos(t w_i)] with w_i = 10000^(-i/(dim/2 - 1)), i = 0..dim/2-1.

    Vaswani et al. 2017, section 3.5, in the order and the spacing of Ho et al.'s code.

    Args:
      t: steps 0..T-1 (not scaled by T), whole or fractional.
      dim: even, at least 4.
      order: "sin_cos" (Ho et al.) or "cos_sin" (Nichol and Dhariwal 2021).
      spacing: the divisor of i: "half_minus_1", dim/2 - 1 (Ho et al.: the last frequency is 1/10000), or "half",
        dim/2 (Nichol and Dhariwal 2021).

    Raises:
      UserError: another order or spacing.

    Example:
      >>> time_embedding(jnp.array([0]), 4, order="cos_sin")
      Array([[1., 1., 0., 0.]], dtype=float32)
    """
    check_one_of("order", order, EMBEDDING_ORDERS)
    check_one_of("spacing", spacing, EMBEDDING_SPACINGS)
    half = dim // 2
    steps = half - 1 if spacing == "half_minus_1" else half
    frequencies = jnp.exp(-math.log(10000) / steps * jnp.arange(half, dtype=jnp.float32))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    parts = (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(parts if order == "sin_cos" else parts[::-1], axis=1)


def entries_taken(network: nn.Module) -> list[str]:
    """The names of the entries of its condition that a network takes, by its attributes."""
    names = ["label"] * bool(network.num_classes) + ["level"] * network.takes_level
    return [*names, *network.spatial]


def check_condition(condition: Mapping[str, Array], names: Sequence[str]) -> None:
    """Raises UserError unless the condition has exactly the entries that the network takes."""
    if set(condition) != set(names):
        raise UserError(f"the network takes the condition {sorted(names)}; got {sorted(condition)}")


def with_spatial(x_t: Float[Array, "B *D"], condition: Mapping[str, Array], names: Sequence[str]) -> Array:
    """concat(x_t, the entries of these names) on the last axis: what a network sees of an image besides x_t."""
    return jnp.concatenate([x_t, *(condition[name] for name in names)], axis=-1) if names else x_t


def class_embedding(module: nn.Module, labels: Int[Array, "B"], num_classes: int, dim: int) -> Float[Array, "B dim"]:
    """A learned vector per class, the parameter "label_embedding" of `module`; NaN for a label out of range."""
    vectors = module.param("label_embedding", nn.initializers.normal(1.0, jnp.float32), (num_classes, dim))
    # Unsigned, because a negative index would count from the last label.
    return jnp.take(vectors, labels.astype(jnp.uint32), axis=0, mode="fill")


def downsample_mean(x: Float[Array, "B H W C"]) -> Float[Array, "B H//2 W//2 C"]:
    """The mean over 2x2 pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


RESIZES = {"": lambda x: x, "down": downsample_mean, "up": upsample_nearest}


class GroupNorm(nn.Module):
    """(x - mean)/sqrt(var + epsilon) * scale + bias, with mean and variance over the pixels of a group of channels (Wu
    and He 2018, equations 1 and 2), in float32.

    Sums run over the pixels of a channel first and then over the channels of a group, which is faster with every
    compiler than both at once.

    Attributes:
      one_pass: the variance is E[x^2] - mean^2, so that x is read once for both, or not at all if a compiler computes
        the sums together with x; otherwise it is the mean of (x - mean)^2. Use it for an x that was rounded to
        bfloat16: that rounding has changed the result by about 2^-9 sqrt(R), R = E[x^2]/var, and one pass adds only
        2^-25 R. For a float32 x with mean 1000 and deviation 1 it is wrong in the first digits.
    """

    num_groups: int
    epsilon: float
    one_pass: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))[None, None, None, :]
        bias = self.param("bias", nn.initializers.zeros, (channels,))[None, None, None, :]

        def mean_of_group(x: Array) -> Array:
            means = x.mean(axis=(1, 2)).reshape(-1, self.num_groups, channels // self.num_groups).mean(axis=-1)
            return jnp.repeat(means, channels // self.num_groups, axis=-1)[:, None, None, :]  # [B, 1, 1, C]

        mean = mean_of_group(x)
        if self.one_pass:
            var = jnp.maximum(mean_of_group(x * x) - mean * mean, 0)
            gain = jax.lax.rsqrt(var + self.epsilon) * scale
            return x * gain + (bias - mean * gain)
        x = x - mean
        gain = jax.lax.rsqrt(mean_of_group(x * x) + self.epsilon) * scale
        return x * gain + bias


class Norm(nn.Module):
    """GroupNorm in float32, whatever the dtype of x.

    Attributes:
      dtype: the dtype in which x was computed; for bfloat16 one pass is accurate enough.
    """

    num_groups: int
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        one_pass = self.dtype == jnp.bfloat16
        return GroupNorm(self.num_groups, self.epsilon, one_pass, name="norm")(x.astype(jnp.float32))


class ResBlock(nn.Module):
    """x + f(x, t): norm, swish, conv, add time, norm, swish, dropout, conv; 1x1 shortcut if widths differ.

    Attributes:
      channels: width of the output.
      scale_shift_norm: time enters after the second norm, as norm(h) * (1 + scale) + shift, instead of before it
        (Nichol and Dhariwal 2021, appendix A; adaptive group normalisation in Dhariwal and Nichol 2021, section 3.1).
      resize: "down" or "up" halves or doubles x and, between the first swish and its conv, f(x, t)
        (Dhariwal and Nichol 2021, section 3, after BigGAN).
    """

    channels: int
    dropout: float
    num_groups: int
    dtype: DTypeLike
    norm_eps: float = 1e-6
    scale_shift_norm: bool = False
    resize: str = ""

    @nn.compact
    def __call__(self, x: Array, time: Array, *, train: bool) -> Array:
        resize = RESIZES[self.resize]
        h = nn.swish(Norm(self.num_groups, self.norm_eps, self.dtype, name="norm_1")(x))
        if self.resize == "up":
            h = UpsampleConv(self.channels, self.dtype, name="conv_1")(h)
        else:
            h = resize(h).astype(self.dtype)
            h = Conv(self.channels, (3, 3), kernel_init=INIT, dtype=self.dtype, name="conv_1")(h)
        x = resize(x)
        width = 2 * self.channels if self.scale_shift_norm else self.channels
        by_time = nn.Dense(width, kernel_init=INIT, dtype=self.dtype, name="time")(nn.swish(time))[:, None, None, :]
        norm_2 = Norm(self.num_groups, self.norm_eps, self.dtype, name="norm_2")
        if self.scale_shift_norm:
            scale, shift = jnp.split(by_time.astype(jnp.float32), 2, axis=-1)
            h = norm_2(h) * (1 + scale) + shift
        else:
            # In float32: for a sum in half precision XLA fuses it into the convolution, and writes the time out as an
            # array as large as the image.
            h = norm_2(h.astype(jnp.float32) + by_time.astype(jnp.float32))
        h = nn.swish(h).astype(self.dtype)
        h = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(h)
        h = Conv(self.channels, (3, 3), kernel_init=ZERO_INIT, dtype=self.dtype, name="conv_2")(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, kernel_init=INIT, dtype=self.dtype, name="shortcut")(x)
        return x + h


class SelfAttention(nn.Module):
    """x + out(softmax(q k^T / sqrt(c)) v) over all H*W positions, in heads of c = C/num_heads channels.

    q, k, v, out are 1x1. Head n has the channels n c .. (n+1) c - 1 of q, k and v (Vaswani et al. 2017,
    section 3.2.2); logits and softmax are float32.
    """

    num_groups: int
    dtype: DTypeLike
    num_heads: int = 1
    norm_eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        num_pixels, head_channels = height * width, channels // self.num_heads
        h = Norm(self.num_groups, self.norm_eps, self.dtype, name="norm")(x).astype(self.dtype)
        h = h.reshape(batch, num_pixels, channels)  # [B, HW, C]

        def project(name: str) -> Array:
            out = nn.Dense(channels, kernel_init=INIT, dtype=self.dtype, name=name)(h)
            # Heads are part of the batch: products over [B, HW, heads, c] differ in the last bits, even with one head.
            out = out.reshape(batch, num_pixels, self.num_heads, head_channels).swapaxes(1, 2)
            return out.reshape(-1, num_pixels, head_channels)  # [B heads, HW, c]

        q, k, v = (project(name) for name in ("query", "key", "value"))
        logits = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32) * head_channels**-0.5
        h = jnp.einsum("bqk,bkc->bqc", jax.nn.softmax(logits).astype(self.dtype), v)
        h = h.reshape(batch, self.num_heads, num_pixels, head_channels).swapaxes(1, 2)
        h = h.reshape(batch, num_pixels, channels)
        h = nn.Dense(channels, kernel_init=ZERO_INIT, dtype=self.dtype, name="out")(h)
        return x + h.reshape(x.shape)


class Downsample(nn.Module):
    """[B, H, W, C] -> [B, H/2, W/2, features]: 3x3 conv, stride 2.

    Attributes:
      padding: "end", a row at the bottom and a column on the right (Ho et al.; "SAME" in TensorFlow), or "both", one on
        every side, of which the last row and column are not used (Nichol and Dhariwal 2021, and most of PyTorch).
      features: width of the output; 0: that of x.
    """

    dtype: DTypeLike
    padding: str = "end"
    features: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        check_one_of("padding", self.padding, DOWN_PADDINGS)
        padding = ((0, 1), (0, 1)) if self.padding == "end" else ((1, 1), (1, 1))
        width = self.features or x.shape[-1]
        return Conv(width, (3, 3), strides=2, padding=padding, kernel_init=INIT, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """[B, H, W, C] -> [B, 2H, 2W, C]: nearest neighbour, then a 3x3 conv."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return UpsampleConv(x.shape[-1], self.dtype, name="conv")(x)
