"""The kernel distance between two sets of features; KID is this number on Inception features."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Num

from ddpm_jax.runtime.errors import UserError

NUM_SUBSETS, SUBSET_SIZE = 100, 1000  # of Binkowski et al.'s and later codes
_BLOCK_ROWS = 2048


def kernel_distance(
    a: Num[np.ndarray, "N D_a"], b: Num[np.ndarray, "M D_b"], *, on_block: Callable[[], None] = lambda: None
) -> float:
    """MMD^2 with k(x, y) = (x.y/D + 1)^3: mean of k over pairs of a, plus of b, minus twice across; unbiased.

    Binkowski et al. (2018), section 4 (KID), with the U-statistic of Gretton et al. (2012), eq. 3: pairs within a
    set are of different rows, so that the expectation is 0 for two sets from one distribution, and the result may be
    negative. Computed in blocks, in float64.

    Args:
        a, b: [N, D] and [M, D], one row per image, N and M at least 2.
        on_block: called after each of `num_blocks` blocks.

    Raises:
        UserError: fewer than 2 rows, or different D.
    """
    _check(a, b)
    across = sum(_kernel(x, y).sum() for x in _blocks(a) for y in _noted(_blocks(b), on_block))
    within = _within(a, on_block) / (len(a) * (len(a) - 1)) + _within(b, on_block) / (len(b) * (len(b) - 1))
    return float(within - 2 * across / (len(a) * len(b)))


def num_blocks(num_a: int, num_b: int) -> int:
    """The number of times that `kernel_distance` calls `on_block`."""
    of_a, of_b = -(-num_a // _BLOCK_ROWS), -(-num_b // _BLOCK_ROWS)
    return of_a * of_b + (of_a * (of_a + 1) + of_b * (of_b + 1)) // 2


def kernel_distance_of_subsets(
    a: Num[np.ndarray, "N D_a"],
    b: Num[np.ndarray, "M D_b"],
    *,
    num_subsets: int = NUM_SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> tuple[float, float]:
    """(mean, standard deviation) of the unbiased estimate over random subsets, which papers report as KID.

    Rows are drawn without replacement within a subset. The mean estimates the same as `kernel_distance`, with more
    noise. The deviation is that of one subset (dividing by N, not N - 1, as in other code), not of the mean.

    Args:
        a, b: [N, D] and [M, D].
        subset_size: rows per subset; all rows if a set has fewer.
        seed: for drawing the subsets.

    Raises:
        UserError: fewer than 2 rows, or different D.
    """
    _check(a, b)
    rng = np.random.default_rng(seed)
    size = min(subset_size, len(a), len(b))
    found = np.empty(num_subsets)
    for index in range(num_subsets):
        rows_a, rows_b = (np.sort(rng.choice(len(x), size, replace=False)) for x in (a, b))
        found[index] = kernel_distance(np.asarray(a[rows_a]), np.asarray(b[rows_b]))
    return float(found.mean()), float(found.std())


def _kernel(x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "N M"]:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(x: np.ndarray, on_block: Callable[[], None]) -> float:
    """The sum of k over ordered pairs of different rows; k is symmetric, so half of the blocks suffice."""
    total, blocks = 0.0, range(-(-len(x) // _BLOCK_ROWS))
    for i, rows in enumerate(_blocks(x)):
        for j in blocks[i:]:
            if i == j:
                kernel = _kernel(rows, rows)
                total += kernel.sum() - np.trace(kernel)
            else:
                total += 2 * _kernel(rows, _block(x, j)).sum()
            on_block()
    return total


def _block(x: np.ndarray, index: int) -> np.ndarray:
    return np.asarray(x[index * _BLOCK_ROWS : (index + 1) * _BLOCK_ROWS], np.float64)


def _blocks(x: np.ndarray):
    return (_block(x, index) for index in range(-(-len(x) // _BLOCK_ROWS)))


def _noted(blocks, on_block: Callable[[], None]):
    for block in blocks:
        yield block
        on_block()


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if min(len(a), len(b)) < 2:
        raise UserError(f"a and b must have at least 2 rows each; got {len(a)} and {len(b)}")
    if a.shape[1] != b.shape[1]:
        raise UserError(f"a and b must have the same number of columns; got {a.shape[1]} and {b.shape[1]}")
