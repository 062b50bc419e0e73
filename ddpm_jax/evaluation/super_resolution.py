"""How near enlarged images are to the true ones, and to the small images that they were made from.

PSNR and SSIM reward the mean of all images that fit a small one, which is blurred: a sample of the right law has lower
values than that mean (Saharia et al. 2021, "Image super-resolution via iterative refinement", section 4).
"""

import numpy as np

from ddpm_jax.runtime.errors import UserError, arg

WINDOW, WINDOW_STD = 11, 1.5  # of SSIM, in pixels
K_1, K_2, LEVELS = 0.01, 0.03, 255.0


def psnr(images: np.ndarray, results: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image in dB, 10 log10(255^2 / mean squared error), float64 [N]; inf if equal.

    Args:
      images, results: uint8 [N, H, W, C].

    Raises:
      UserError: other arrays, or of different shapes.
    """
    images, results = _same_shape(images, results)
    error = np.square(images - results).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(LEVELS**2 / error)


def ssim(images: np.ndarray, results: np.ndarray) -> np.ndarray:
    """Structural similarity of each image, at most 1, float64 [N].

    Wang et al. 2004 ("Image quality assessment: from error visibility to structural similarity"), equation 13, averaged
    over all places of an 11x11 window that lies within the image, and over the channels. The window has Gaussian
    weights of standard deviation 1.5, and K_1 = 0.01, K_2 = 0.03, L = 255.

    Args:
      images, results: uint8 [N, H, W, C], at least 11 x 11.

    Raises:
      UserError: other arrays, of different shapes, or smaller ones.
    """
    images, results = _same_shape(images, results)
    if min(images.shape[1:3]) < WINDOW:
        raise UserError(
            f"{arg('images')} must be at least {WINDOW} x {WINDOW} for SSIM; got {images.shape[1]} x {images.shape[2]}"
        )
    c_1, c_2 = (K_1 * LEVELS) ** 2, (K_2 * LEVELS) ** 2
    mean_x, mean_y = _windowed(images), _windowed(results)
    var_x, var_y = _windowed(images**2) - mean_x**2, _windowed(results**2) - mean_y**2
    covariance = _windowed(images * results) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c_1) / (mean_x**2 + mean_y**2 + c_1)
    return (luminance * (2 * covariance + c_2) / (var_x + var_y + c_2)).mean(axis=(1, 2, 3))


def inconsistency(small: np.ndarray, results: np.ndarray) -> np.ndarray:
    """The root mean squared difference of each small image and the means of blocks of its result, in levels, [N].

    The given image is rounded to whole levels, so that the true image itself has about 0.29, the standard deviation of
    rounding errors.

    Args:
      small: uint8 [N, h, w, C].
      results: uint8 [N, H, W, C], H and W the same multiple of h and w.

    Raises:
      UserError: other arrays, or shapes that do not fit.
    """
    small, results = _levels("small", small), _levels("results", results)
    num, height, width, channels = small.shape
    factor = results.shape[1] // height
    if results.shape != (num, factor * height, factor * width, channels):
        raise UserError(
            f"{arg('results')} must be larger than {arg('small')}, {list(small.shape)}, by one whole factor; got "
            f"{list(results.shape)}"
        )
    means = results.reshape(num, height, factor, width, factor, channels).mean(axis=(2, 4))
    return np.sqrt(np.square(means - small).mean(axis=(1, 2, 3)))


def _windowed(values: np.ndarray) -> np.ndarray:
    """The weighted means over all windows: [N, H, W, C] -> [N, H - 10, W - 10, C]."""
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / WINDOW_STD) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        values = np.lib.stride_tricks.sliding_window_view(values, WINDOW, axis=axis) @ weights
    return values


def _same_shape(images: np.ndarray, results: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if np.shape(images) != np.shape(results):
        raise UserError(
            f"{arg('results')} must have the shape of {arg('images')}, {list(np.shape(images))}; got "
            f"{list(np.shape(results))}"
        )
    return _levels("images", images), _levels("results", results)


def _levels(name: str, images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise UserError(f"{arg(name)} must be uint8 [N, H, W, C]; got {images.dtype} {list(images.shape)}")
    return images.astype(np.float64)
