"""The 256 levels that image files have, and the grey of a colour image."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.runtime.errors import UserError, arg

LUMA = (0.299, 0.587, 0.114)  # of R, G and B: ITU-R BT.601, by which image files become grey


def to_levels(x_0: Float[Array, "*D"]) -> Float[Array, "*D"]:
    """[-1, 1] -> the nearest of 0..255, as floats; values outside are clipped."""
    return jnp.clip(jnp.round((x_0 + 1.0) * 127.5), 0.0, 255.0)


def from_levels(levels: Float[Array, "*D"]) -> Float[Array, "*D"]:
    """0..255 -> [-1, 1]."""
    return levels / 127.5 - 1.0


def nearest_integer(x: Float[Array, "*D"]) -> Float[Array, "*D"]:
    """The nearest whole number, halves upwards, as libjpeg and Pillow round; `jnp.round` takes halves to even."""
    return jnp.floor(x + 0.5)


def grey(x_0: Float[Array, "H W C"]) -> Float[Array, "H W 1"]:
    """The luma 0.299 R + 0.587 G + 0.114 B of the levels, rounded to a level; in [-1, 1].

    ITU-R BT.601, equal to `convert("L")` of Pillow: that is how users' colour files became grey ones.

    Raises:
      UserError: another number of channels.
    """
    if x_0.shape[-1] != 3:
        raise UserError(f"{arg('x_0')} must have 3 channels (RGB); got {x_0.shape[-1]}")
    red, green, blue = jnp.split(to_levels(x_0).astype(jnp.int32), 3, axis=-1)
    # Pillow's whole numbers, 2^16 times the weights: no rounding depends on the compiler.
    return from_levels(((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(jnp.float32))
