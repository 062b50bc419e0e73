"""Linear observations of images, as functions and as matrices for `GaussianMixture.given_observation`."""

from collections.abc import Callable

import numpy as np

from ddpm_jax.runtime.errors import UserError, arg


def observation_matrix(observe: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The matrix [M, D] of a linear function from one x_0 [*shape] to M values of any shape, float64.

    Args:
      observe: such as `lambda x: x[mask]`, or a function of this module.

    Raises:
      UserError: the function is not linear.

    Example:
      >>> observation_matrix(lambda x: x[1:], (3,))
      array([[0., 1., 0.],
             [0., 0., 1.]])
    """
    size = int(np.prod(shape))
    columns = [np.asarray(observe(unit.reshape(shape)), np.float64).reshape(-1) for unit in np.eye(size)]
    matrix = np.stack(columns, axis=1)
    tried = np.cos(np.arange(1.0, size + 1))
    observed = np.asarray(observe(tried.reshape(shape)), np.float64).reshape(-1)
    if not np.allclose(matrix @ tried, observed, rtol=1e-9, atol=1e-9 * np.abs(matrix).max(initial=1.0)):
        raise UserError(f"{arg('observe')} must be linear: it is not the sum of its values at the unit vectors")
    return matrix


def downsample(image: np.ndarray, factor: int) -> np.ndarray:
    """Means of factor x factor pixels: [H, W, C] -> [H/factor, W/factor, C]."""
    height, width, channels = image.shape
    if factor < 1 or height % factor or width % factor:
        raise UserError(f"{arg('factor')} must divide {height} and {width}; got {factor}")
    blocks = image.reshape(height // factor, factor, width // factor, factor, channels)
    return blocks.mean(axis=(1, 3))


def greyscale(image: np.ndarray) -> np.ndarray:
    """The mean of the channels: [H, W, C] -> [H, W, 1]."""
    return image.mean(axis=2, keepdims=True)


def blur(image: np.ndarray, std: float) -> np.ndarray:
    """Gaussian blur of `std` pixels; the weights of each pixel are normalised over the image: [H, W, C] -> the same."""
    if not std > 0:
        raise UserError(f"{arg('std')} must be above 0; got {std}")
    for axis in (0, 1):
        at = np.arange(image.shape[axis])
        kernel = np.exp(-0.5 * ((at[:, None] - at) / std) ** 2)
        image = np.moveaxis(np.tensordot(kernel / kernel.sum(axis=1, keepdims=True), image, axes=(1, axis)), 0, axis)
    return image
