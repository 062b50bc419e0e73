"""Between pictures, uint8 0..255, and what networks see, float32 [-1, 1]."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def to_model_scale(images: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """x/127.5 - 1: uint8 0..255 -> float32 [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(x_0: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """[-1, 1] -> the nearest of 0..255; values outside are clipped."""
    return jnp.clip(jnp.round((x_0 + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
