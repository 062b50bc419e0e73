"""How colourful images are, in which hues, and how much of the true colours a colourisation explains.

Colours are the chroma (Cb, Cr) of ITU-R BT.601 in full range, as in JPEG files, in [-1/2, 1/2] each. The saturation of
a pixel is its length, 0 for grey and at most 0.53; the hue is its angle.
"""

from typing import NamedTuple

import numpy as np

from ddpm_jax.runtime.errors import UserError, arg

NUM_HUES = 12
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114  # of luma
_CB = np.array([-_RED, -_GREEN, 1 - _BLUE]) / (2 * (1 - _BLUE))
_CR = np.array([1 - _RED, -_GREEN, -_BLUE]) / (2 * (1 - _RED))


class ColourStatistics(NamedTuple):
    """Of a set of images.

    Attributes:
      saturation: the mean over all pixels.
      saturation_of_images: the quantiles 0.1, 0.5 and 0.9 of the mean saturation of an image.
      hues: the share of the saturation in each of NUM_HUES equal parts of the circle of hues, from angle 0; zeros if
        all is grey.
    """

    saturation: float
    saturation_of_images: tuple[float, float, float]
    hues: np.ndarray


def chroma(images: np.ndarray) -> np.ndarray:
    """(Cb, Cr) of uint8 [..., 3], float64 [..., 2].

    Raises:
      UserError: other arrays.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim < 3 or images.shape[-1] != 3:
        raise UserError(f"{arg('images')} must be uint8 [..., H, W, 3]; got {images.dtype} {list(images.shape)}")
    # The differences between channels are exact, so that grey has no chroma at all.
    red, blue = (images[..., i].astype(np.float64) - images[..., 1] for i in (0, 2))
    return np.stack([(c[0] * red + c[2] * blue) / 255 for c in (_CB, _CR)], axis=-1)


def colour_statistics(images: np.ndarray) -> ColourStatistics:
    """Those of uint8 images [N, H, W, 3]; raises what `chroma` does."""
    colours = chroma(images)
    saturation = np.hypot(colours[..., 0], colours[..., 1])
    angle = np.arctan2(colours[..., 1], colours[..., 0]) % (2 * np.pi)
    which = np.minimum((angle * NUM_HUES / (2 * np.pi)).astype(int), NUM_HUES - 1)
    hues = np.bincount(which.reshape(-1), weights=saturation.reshape(-1), minlength=NUM_HUES)
    quantiles = np.quantile(saturation.reshape(len(images), -1).mean(axis=1), (0.1, 0.5, 0.9))
    total = hues.sum()
    return ColourStatistics(
        float(saturation.mean()), tuple(float(q) for q in quantiles), hues / total if total else hues
    )


def hue_distance(first: ColourStatistics, second: ColourStatistics) -> float:
    """The total variation distance of the hues: the share of the saturation that has another hue, in [0, 1]."""
    return float(np.abs(first.hues - second.hues).sum() / 2)


def explained_colour(images: np.ndarray, results: np.ndarray) -> float:
    """The share of the variance of the true colours that the results explain: 1 - sum |c - c_hat|^2 / sum |c - m|^2.

    c are the colours of all pixels of all images, m their mean, and c_hat the mean colour of the results of an image.
    1: the colours are right; 0: no better than one colour for everything; below 0: worse. One sample of the right
    conditional law explains 2 s - 1 where the mean of many explains s.

    Args:
      images: the true ones, uint8 [N, H, W, 3].
      results: of each image, uint8 [N, K, H, W, 3].

    Raises:
      UserError: arrays that do not fit, or images of one colour.
    """
    if np.ndim(results) != 5 or np.shape(results)[0] != len(images) or np.shape(results)[2:] != np.shape(images)[1:]:
        raise UserError(
            f"{arg('results')} must be [N, K, H, W, 3] for images {list(np.shape(images))}; got "
            f"{list(np.shape(results))}"
        )
    colours, found = chroma(images), chroma(results).mean(axis=1)
    spread = np.square(colours - colours.reshape(-1, 2).mean(axis=0)).sum()
    if not spread:
        raise UserError(f"{arg('images')} must have more than one colour")
    return float(1 - np.square(colours - found).sum() / spread)
