"""Grain and stray pixels, which early training and coarse samplers leave, and which distances of features miss."""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

COLUMNS = ("total_variation", "speckle", "salt")  # of `texture_of`
STRAY_LEVELS = 32  # grey levels by which a stray pixel ("salt") is outside the range of its neighbours
PERCENTILE = 99  # of the real images; an image beyond it is called speckled, or salted


def texture_of(images: UInt8[np.ndarray, "B H W C"]) -> Float32[np.ndarray, "B 3"]:
    """Three numbers per image, from each pixel and its up to eight neighbours; averaged over channels.

    total_variation: the mean difference of horizontally or vertically adjacent pixels, in grey levels.
    speckle: by how many grey levels a pixel is outside the range of its neighbours, the mean over all pixels.
    salt: the share of pixels that are outside it by `STRAY_LEVELS` or more, white or black.
    """
    x = images.astype(np.int16)
    size, (height, width) = len(x), x.shape[1:3]
    differences = [np.abs(np.diff(x, axis=axis)).reshape(size, -1) for axis in (1, 2)]
    num_pairs = sum(d.shape[1] for d in differences)
    variation = sum(d.sum(axis=1, dtype=np.int64) for d in differences) / max(num_pairs, 1)
    outside = _outside_neighbours(x).reshape(size, -1) if height * width > 1 else np.zeros((size, 1))
    return np.stack([variation, outside.mean(axis=1), (outside >= STRAY_LEVELS).mean(axis=1)], axis=1, dtype=np.float32)


def _outside_neighbours(x: np.ndarray) -> np.ndarray:
    """int16 [B, H, W, C]: by how much each pixel is above the maximum or below the minimum of its neighbours."""
    height, width = x.shape[1:3]
    edge = ((0, 0), (1, 1), (1, 1), (0, 0))
    # The padding beyond the border never counts as the largest, or the smallest, neighbour.
    low, high = np.pad(x, edge, constant_values=-1), np.pad(x, edge, constant_values=256)
    shifts = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    largest = functools.reduce(np.maximum, (low[:, i : i + height, j : j + width] for i, j in shifts))
    least = functools.reduce(np.minimum, (high[:, i : i + height, j : j + width] for i, j in shifts))
    return np.maximum(np.maximum(x - largest, least - x), 0)


def texture_numbers(samples: Float32[np.ndarray, "N 3"], reference: Float32[np.ndarray, "M 3"]) -> dict[str, Any]:
    """The texture of samples compared with real images.

    Returns:
      total_variation: {"ratio": of the means, "of_reference": grey levels}; the ratio is NaN where the latter is 0.
      speckled, salted: {"share": of samples beyond the `PERCENTILE` of the real images, "threshold": that percentile}.
    """
    mean, real = float(samples[:, 0].mean()), float(reference[:, 0].mean())
    numbers = {"total_variation": {"ratio": mean / real if real else float("nan"), "of_reference": real}}
    for name, column in (("speckled", 1), ("salted", 2)):
        threshold = float(np.percentile(reference[:, column], PERCENTILE, method="higher"))
        numbers[name] = {"share": float((samples[:, column] > threshold).mean()), "threshold": threshold}
    return numbers
