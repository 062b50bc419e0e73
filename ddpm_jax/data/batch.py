"""A batch as it travels to the device: uint8 images and their condition; and images as float32 in [-1, 1]."""

from typing import NamedTuple, no_type_check

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ddpm_jax.data.condition import Condition


# A pytree's leaves may be shardings or shapes, so its fields are not checked in tests.
@no_type_check
class Batch(NamedTuple):
    """Images, and what the network is told of each; `{}` where it is told nothing."""

    image: UInt8[Array | np.ndarray, "B H W C"]
    condition: Condition = {}


def to_model_scale(images: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """x/127.5 - 1: uint8 0..255 -> float32 [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(x_0: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """[-1, 1] -> the nearest of 0..255; values outside are clipped."""
    return jnp.clip(jnp.round((x_0 + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
