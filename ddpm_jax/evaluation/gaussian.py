"""The Gaussian that the Frechet distance fits to a set of features, block by block, in float64."""

import numpy as np
from jaxtyping import Float, Num

from ddpm_jax.runtime.errors import UserError

_BLOCK_ROWS = 4096


def fit_gaussian(features: Num[np.ndarray, "N D"]) -> tuple[Float[np.ndarray, "D"], Float[np.ndarray, "D D"]]:
    """The sample mean and the unbiased covariance (N - 1) of the rows.

    Two passes, the second over the centred rows: sums of squares would lose the digits that a large mean takes.
    The features may be a memory-mapped file larger than memory.

    Args:
        features: [N, D], one row a picture, N at least 2.

    Raises:
        UserError: fewer than 2 rows, or a value that is not finite.
    """
    if len(features) < 2:
        raise UserError(f"the covariance of features needs at least 2 pictures; got {len(features)}")
    num_rows, num_dims = features.shape
    blocks = [slice(start, start + _BLOCK_ROWS) for start in range(0, num_rows, _BLOCK_ROWS)]
    mean, cov = np.zeros(num_dims), np.zeros((num_dims, num_dims))
    for rows in blocks:
        mean += np.asarray(features[rows], np.float64).sum(axis=0)
    mean /= num_rows
    if not np.isfinite(mean).all():
        raise UserError("the features must be finite; got NaN or infinity")
    for rows in blocks:
        centred = np.asarray(features[rows], np.float64) - mean
        cov += centred.T @ centred
    return mean, cov / (num_rows - 1)
