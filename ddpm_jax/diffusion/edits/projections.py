"""Linear measurements y = A x_0, and projections of x_0_hat to what was measured."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ddpm_jax.diffusion.denoiser import ProjectFn
from ddpm_jax.diffusion.edits.inputs import aligned, as_floats, as_mask
from ddpm_jax.diffusion.parameterisations import Steps
from ddpm_jax.runtime.errors import UserError, arg, check_between


@dataclass(frozen=True)
class Measurement:
    """A linear function of each sample, y = A x_0, and its pseudo-inverse.

    Attributes:
      measure: A, from samples to their y, with a first axis of B.
      pseudo_inverse: A^+, from y to samples; A A^+ A = A.
    """

    measure: Callable[[Array], Array]
    pseudo_inverse: Callable[[Array], Array]


def pixel_measurement(mask: Shaped[Array | np.ndarray, "..."]) -> Measurement:
    """The values where the mask is 1; the others are measured as 0.

    Args:
      mask: 1 or True where the image is known; of a shape that broadcasts to that of the samples.

    Raises:
      UserError: a mask with other values than 0 and 1.
    """
    known = as_mask(mask)
    keep = lambda x: jnp.where(aligned("mask", known, x.shape), x, 0.0)  # noqa: E731
    return Measurement(keep, keep)


def channel_measurement(matrix: np.ndarray) -> Measurement:
    """Mixtures of the channels, y[..., m] = sum_c matrix[m, c] x[..., c]: [[1/3, 1/3, 1/3]] is grey.

    Args:
      matrix: [M, C], M <= C, with rows that do not depend on each other.

    Raises:
      UserError: a matrix of another kind.
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or not np.all(np.isfinite(matrix)) or np.linalg.matrix_rank(matrix) < len(matrix):
        raise UserError(
            f"{arg('matrix')} must be [M, C] with M independent rows, one for each mixture of the C channels; got "
            f"{matrix.tolist()}"
        )
    to, back = (jnp.asarray(array.T, jnp.float32) for array in (matrix, np.linalg.pinv(matrix)))
    exact = jax.lax.Precision.HIGHEST
    return Measurement(lambda x: jnp.matmul(x, to, precision=exact), lambda y: jnp.matmul(y, back, precision=exact))


def average_measurement(factor: int) -> Measurement:
    """Means of blocks of `factor` values along each axis but the first and the last: a lower resolution.

    [B, H, W, C] -> [B, H/factor, W/factor, C]; the pseudo-inverse repeats each value.

    Raises:
      UserError: a factor below 1; in use, one that does not divide the sizes.
    """
    check_between("factor", factor, 1)

    def measure(x: Float[Array, "B *D"]) -> Float[Array, "B ..."]:
        if any(size % factor for size in x.shape[1:-1]):
            raise UserError(f"{arg('factor')} must divide the sizes {list(x.shape[1:-1])}; got {factor}")
        for axis in range(1, x.ndim - 1):
            blocks = (*x.shape[:axis], x.shape[axis] // factor, factor, *x.shape[axis + 1 :])
            x = jnp.mean(x.reshape(blocks), axis=axis + 1)
        return x

    def pseudo_inverse(y: Float[Array, "B ..."]) -> Float[Array, "B *D"]:
        for axis in range(1, y.ndim - 1):
            y = jnp.repeat(y, factor, axis=axis)
        return y

    return Measurement(measure, pseudo_inverse)


def range_null_projection(measurement: Measurement, y: Shaped[Array | np.ndarray, "..."]) -> ProjectFn:
    """project_fn for `make_denoiser`: x_0_hat := A^+ y + (I - A^+ A) x_0_hat, so that A x_0_hat = y.

    DDNM (Wang et al. 2023, "Zero-shot image restoration using denoising diffusion null-space model", equation 13), for
    measurements without noise.

    Args:
      y: what was measured, of one sample for all or [B, ...].

    Raises:
      UserError: y is not finite floats; when called, it has not the shape of a measurement.
    """
    y = as_floats("y", y)

    def project_fn(x_0_hat: Float[Array, "B *D"], t: Steps) -> Float[Array, "B *D"]:
        del t
        measured = measurement.measure(x_0_hat)
        return x_0_hat + measurement.pseudo_inverse(aligned("y", y, measured.shape) - measured)

    return project_fn
