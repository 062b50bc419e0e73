"""Gaussian blur of an image."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.diffusion.image_conditions.levels import from_levels, to_levels
from ddpm_jax.runtime.errors import UserError, arg

TRUNCATED_AT = 4.0  # standard deviations
MIN_STD = 0.01  # pixels: already at 0.1 a neighbour weighs exp(-50); far below, float32 has only zeros, and 0/0


def gaussian_blur(
    x_0: Float[Array, "H W C"], std: Float[Array, ""] | float, *, highest_std: float
) -> Float[Array, "H W C"]:
    """The mean of each pixel's neighbourhood with weights exp(-distance^2 / (2 std^2)), rounded to the 256 levels.

    Beyond its border the image is mirrored, border pixels included (d c b a | a b c d), so that its mean stays. The
    result is rounded since the files that users have are: without rounding a network would learn to use digits that
    no file has.

    Args:
      std: standard deviation in pixels, at least 0.01 and at most `highest_std`; may be traced.
      highest_std: fixes the size of the kernel, 2 ceil(4 highest_std) + 1 pixels.

    Raises:
      UserError: a standard deviation outside its range (not seen where it is traced).
    """
    if not isinstance(std, jax.core.Tracer) and not MIN_STD <= std <= highest_std:
        raise UserError(
            f"{arg('std')} must be at least {MIN_STD:g} and at most {arg('highest_std')}, {highest_std}; got {std}"
        )
    return from_levels(to_levels(smoothed(x_0, std, radius=math.ceil(TRUNCATED_AT * highest_std))))


def smoothed(x_0: Float[Array, "H W C"], std: Float[Array, ""] | float, *, radius: int) -> Float[Array, "H W C"]:
    """`gaussian_blur` without the rounding; the kernel ends `radius` pixels from its centre."""
    exact = jax.lax.Precision.HIGHEST
    height, width, _ = x_0.shape
    padded = jnp.pad(x_0, ((radius, radius), (radius, radius), (0, 0)), mode="symmetric")
    rows = jnp.einsum("ij,jwc->iwc", _weights(height, std, radius), padded, precision=exact)
    return jnp.einsum("ij,hjc->hic", _weights(width, std, radius), rows, precision=exact)


def _weights(size: int, std: Float[Array, ""] | float, radius: int) -> Float[Array, "out padded"]:
    """Row i: the normalised weights of the padded pixels for pixel i."""
    offset = np.arange(size + 2 * radius)[None, :] - radius - np.arange(size)[:, None]
    weights = jnp.exp(-0.5 * jnp.square(jnp.asarray(offset, jnp.float32) / jnp.asarray(std, jnp.float32)))
    weights = jnp.where(np.abs(offset) <= radius, weights, 0.0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)
