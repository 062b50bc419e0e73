"""Adaptive projected guidance, APG (Sadat et al. 2024, "Eliminating Oversaturation and Artifacts of High Guidance
Scales"): the difference that guidance adds to x_0_hat is limited in length, and its part along x_0_hat is weakened.

That part changes the contrast of the image; the rest changes what the image shows. Differs: the paper's momentum, a
running sum of the differences of earlier steps, is left out.
"""

import math
from typing import no_type_check

import flax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.runtime.errors import UserError, arg


# A pytree's leaves may be shardings or shapes, so its fields are not checked in tests.
@no_type_check
@flax.struct.dataclass
class Projection:
    """Settings as arrays, so that one compiled program serves all values. See `make_projection`."""

    eta: Float[Array, ""]
    norm_limit: Float[Array, ""]


def make_projection(*, eta: float = 0.0, norm_limit: float = 0.0) -> Projection:
    """Checked settings of adaptive projected guidance.

    Args:
      eta: the share of the difference's part along x_0_hat that is kept: 0 none, as in the paper; 1 all of it.
      norm_limit: r: the difference of an image is scaled down to this Euclidean norm; 0: no limit. It grows with the
        square root of the image's number of values.

    Raises:
      UserError: a number out of its range.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"{arg('apg_eta')} must be in [0, 1], 1 for classifier-free guidance; got {eta}")
    if not 0 <= norm_limit < math.inf:
        raise UserError(f"{arg('apg_norm')} must be finite and at least 0, 0 for no limit; got {norm_limit}")
    with np.errstate(over="ignore"):
        return Projection(np.float32(eta), np.float32(norm_limit))


def projected(
    difference: Float[Array, "B *D"], x_0_hat: Float[Array, "B *D"], projection: Projection
) -> Float[Array, "B *D"]:
    """What is kept of the difference of an image: its part across x_0_hat, and eta of that along it (the paper's
    algorithm 1).

    Args:
      difference: x_0_hat with the condition, minus that of the reference.
      x_0_hat: that with the condition, before it is limited.
    """
    norm = _norm(difference)
    limit = projection.norm_limit
    too_long = (limit > 0) & (norm > limit)
    difference = jnp.where(too_long, difference * (limit / jnp.where(too_long, norm, 1.0)), difference)
    length = _norm(x_0_hat)
    direction = x_0_hat / jnp.where(length > 0, length, 1.0)  # an x_0_hat of zeros has no direction
    along = _sum(difference * direction) * direction
    return difference - (1 - projection.eta) * along


def _sum(x: Float[Array, "B *D"]) -> Float[Array, "B ..."]:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)), keepdims=True)


def _norm(x: Float[Array, "B *D"]) -> Float[Array, "B ..."]:
    # Divided by its largest value first, so that no square overflows or vanishes.
    largest = jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)), keepdims=True)
    safe = jnp.where(largest > 0, largest, 1.0)
    return safe * jnp.sqrt(_sum((x / safe) ** 2))
