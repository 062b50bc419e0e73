"""Improved precision and recall: the share of one set on the manifold of the other, by nearest neighbours."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Num

from ddpm_jax.runtime.errors import UserError

NUM_NEIGHBOURS = 3
_BLOCK_VALUES = 2**23  # of a block of distances, 64 MB in float64
# Relative to |a|^2 + |b|^2: float32 features that are closer than this are equal, and the rest is rounding.
_ROUNDING = 1e-12


def precision_recall(
    samples: Num[np.ndarray, "N D_a"],
    reference: Num[np.ndarray, "M D_b"],
    *,
    num_neighbours: int = NUM_NEIGHBOURS,
    on_rows: Callable[[int], None] = lambda num_rows: None,
) -> tuple[float, float]:
    """(precision, recall): the share of samples in the reference's manifold, and of the reference in the samples'.

    Kynkaanniemi et al. (2019), eqs. 1 and 2. The manifold of a set is the union of balls around its points, each
    reaching to the point's k-th nearest neighbour in the set, not counting itself, including the border. In float64.

    Args:
        samples, reference: [N, D] and [M, D], one row per image.
        num_neighbours: k.
        on_rows: called with the number of rows of each finished block, 2 (N + M) in total.

    Raises:
        UserError: not more rows than neighbours, or different D.
    """
    if min(len(samples), len(reference)) <= num_neighbours:
        raise UserError(
            f"precision and recall with {num_neighbours} neighbours need at least {num_neighbours + 1} images on "
            f"each side; got {len(samples)} and {len(reference)}"
        )
    if samples.shape[1] != reference.shape[1]:
        raise UserError(
            f"samples and reference must have the same number of columns; got {samples.shape[1]} and "
            f"{reference.shape[1]}"
        )
    of_samples = _square_radii(samples, num_neighbours, on_rows)
    of_reference = _square_radii(reference, num_neighbours, on_rows)
    return (
        _share_within(samples, reference, of_reference, on_rows),
        _share_within(reference, samples, of_samples, on_rows),
    )


def _square_radii(points: np.ndarray, num_neighbours: int, on_rows: Callable[[int], None]) -> np.ndarray:
    """The square distance of each point to its k-th neighbour."""
    radii = []
    for start, distances in _square_distances(points, points):
        # A point must not be its own neighbour, whatever rounding gives for its distance to itself.
        own = np.arange(len(distances))
        distances[own, start + own] = np.inf
        radii.append(np.partition(distances, num_neighbours - 1, axis=1)[:, num_neighbours - 1])
        on_rows(len(distances))
    return np.concatenate(radii)


def _share_within(
    probes: np.ndarray, points: np.ndarray, square_radii: np.ndarray, on_rows: Callable[[int], None]
) -> float:
    num_within = 0
    for _, distances in _square_distances(probes, points):
        num_within += int((distances <= square_radii).any(axis=1).sum())
        on_rows(len(distances))
    return num_within / len(probes)


def _square_distances(a: np.ndarray, b: np.ndarray):
    """Yields (first row, |a_i - b_j|^2 for a block of rows of a and all of b), block after block."""
    num_rows = max(1, _BLOCK_VALUES // len(b))
    columns = max(1, _BLOCK_VALUES // b.shape[1])
    # |a|^2 + |b|^2 - 2 a.b, relative to the mean of b: the three terms cancel, and a large mean would cost digits.
    centre = np.mean(b, axis=0, dtype=np.float64)
    for start in range(0, len(a), num_rows):
        x = np.asarray(a[start : start + num_rows], np.float64) - centre
        distances: Float[np.ndarray, "R M"] = np.empty((len(x), len(b)))
        for first in range(0, len(b), columns):
            y = np.asarray(b[first : first + columns], np.float64) - centre
            block = distances[:, first : first + columns]
            np.matmul(x, y.T, out=block)
            block *= -2
            squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)
            block += squares
            block[block < _ROUNDING * squares] = 0
        yield start, distances
