"""Distances between samples and the law that they claim to follow."""

import math
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

NUM_DIRECTIONS = 48


class Estimate(NamedTuple):
    """A mean over independent repetitions, with half the width of its 95 % interval."""

    mean: float
    half_width: float


# The 97.5 % quantile of Student's t with n - 1 degrees of freedom.
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262, 16: 2.131, 20: 2.093}


def estimate(values: list[float]) -> Estimate:
    """The mean and its interval, from independent repetitions of about normal noise."""
    quantile = _T[max(n for n in _T if n <= len(values))]
    return Estimate(float(np.mean(values)), float(quantile * np.std(values, ddof=1) / math.sqrt(len(values))))


class SlicedW2:
    """Sliced Wasserstein distance of samples to a law of which many exact samples are given.

    The root of the mean over directions of the squared W2 of the projections (Bonneel et al. 2015).

    Args:
      reference: exact samples [M, D], many times as many as the samples that are measured.
    """

    def __init__(self, reference: np.ndarray):
        num_dims = reference.shape[1]
        if num_dims == 2:
            angles = np.pi * np.arange(NUM_DIRECTIONS) / NUM_DIRECTIONS
            directions = np.stack([np.cos(angles), np.sin(angles)])
        else:
            directions = np.random.default_rng(0).standard_normal((num_dims, NUM_DIRECTIONS))
            directions /= np.linalg.norm(directions, axis=0)
        self._directions = directions
        self._sorted = np.sort(reference @ directions, axis=0)

    def __call__(self, samples: np.ndarray) -> float:
        """The distance of samples [N, D]."""
        projected = np.sort(samples @ self._directions, axis=0)
        at = (np.arange(len(projected)) + 0.5) / len(projected) * len(self._sorted) - 0.5
        below = np.clip(np.floor(at).astype(int), 0, len(self._sorted) - 2)
        part = (at - below)[:, None]
        wanted = (1 - part) * self._sorted[below] + part * self._sorted[below + 1]
        return float(np.sqrt(np.mean((projected - wanted) ** 2)))


def two_sample_accuracy(samples: np.ndarray, exact: np.ndarray, num_neighbours: int = 25) -> float:
    """How often the majority of its nearest neighbours tells whether a point is a sample or exact; 0.5: not at all.

    A classifier two-sample test (Lopez-Paz and Oquab 2017) that leaves each point itself out. Equal numbers of points.
    """
    points = np.concatenate([samples, exact])
    is_sample = np.arange(len(points)) < len(samples)
    neighbours = cKDTree(points).query(points, k=num_neighbours + 1)[1][:, 1:]
    votes = is_sample[neighbours].mean(axis=1)
    return float(np.mean((votes > 0.5) == is_sample))


def gaussian_w2(mean: np.ndarray, std: np.ndarray, true_mean: np.ndarray, true_std: np.ndarray) -> float:
    """W2 of two Gaussians with the same axes."""
    return float(np.sqrt(np.sum((mean - true_mean) ** 2) + np.sum((std - true_std) ** 2)))


def gaussian_kl(mean: np.ndarray, std: np.ndarray, true_mean: np.ndarray, true_std: np.ndarray) -> float:
    """KL(samples || law), nats, of two Gaussians with the same axes."""
    ratio = (std / true_std) ** 2
    return float(0.5 * np.sum(ratio - 1 - np.log(ratio) + ((mean - true_mean) / true_std) ** 2))
