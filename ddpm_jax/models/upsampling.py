"""Nearest-neighbour doubling of a picture, and the 3x3 convolution that follows it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ddpm_jax.models.initialisers import INIT


def double(x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
    """Every pixel as 2x2 of the same (nearest neighbour)."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def conv_of_doubled(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C D"], dtype: DTypeLike
) -> Float[Array, "B 2*H 2*W D"]:
    """The 3x3 convolution of `double(x)`, zeros around it, in 4/9 of its operations and without making `double(x)`.

    Of the three rows that a pixel sees, two are the same row of x; so are two of the columns. What remains are
    convolutions of x whose weights are sums of the kernel's. They are taken in the kernel's own precision.
    """
    x = x.astype(dtype)
    # Compilers do one of the two well: TPUs and GPUs the second, XLA for CPU, 100 times slower at that, the first.
    return jax.lax.platform_dependent(x, kernel, cpu=_a_conv_a_corner, default=_of_every_other_pixel)


def _a_conv_a_corner(x: Array, kernel: Array) -> Array:
    """Each of the four pixels that come of one sees 2x2 pixels: the upper left one those above and to the left, those
    seen twice with the sum of both weights."""

    def folded(kernel: Array, axis: int, second: int) -> Array:
        before, same, after = jnp.split(kernel, 3, axis)
        return jnp.concatenate([before + same, after] if second else [before, same + after], axis)

    def corner(lower: int, right: int) -> Array:
        weights = folded(folded(kernel, 0, lower), 1, right)
        return _conv(x, weights, padding=((1 - lower, lower), (1 - right, right)))

    batch, height, width, _ = x.shape
    rows = [jnp.stack([corner(lower, 0), corner(lower, 1)], axis=3) for lower in (0, 1)]  # [B, H, W, 2, D] each
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)


def _of_every_other_pixel(x: Array, kernel: Array) -> Array:
    """`double(x)` is x with zeros between its pixels, convolved with a 2x2 of ones: one 4x4 kernel does both."""

    def with_box(kernel: Array, axis: int) -> Array:
        none = jnp.zeros_like(jax.lax.slice_in_dim(kernel, 0, 1, axis=axis))
        return jnp.concatenate([kernel, none], axis) + jnp.concatenate([none, kernel], axis)

    return _conv(x, with_box(with_box(kernel, 0), 1), padding=((2, 2), (2, 2)), lhs_dilation=(2, 2))


def _conv(x: Array, kernel: Array, **window: object) -> Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), (1, 1), dimension_numbers=numbers, **window)


class ConvOfDoubled(nn.Module):
    """[B, H, W, C] -> [B, 2H, 2W, features]: nearest neighbour, then a 3x3 conv, with the parameters of `nn.Conv`."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Array:
        kernel = self.param("kernel", INIT, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return conv_of_doubled(x, kernel, self.dtype) + bias[None, None, None, :]
