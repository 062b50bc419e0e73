"""The Frechet distance between the Gaussians of two sets of features, in float64.

FID is this number on Inception features.
"""

import numpy as np
from jaxtyping import Float, Num

from ddpm_jax.runtime.errors import UserError

_BLOCK_ROWS = 4096


def fit_gaussian(features: Num[np.ndarray, "N D"]) -> tuple[Float[np.ndarray, "D"], Float[np.ndarray, "D D"]]:
    """The sample mean and the unbiased covariance (N - 1) of the rows.

    Two passes, the second over the centred rows: sums of squares would lose digits if the mean is large.
    The features may be a memory-mapped file larger than memory.

    Args:
        features: [N, D], one row per image, N at least 2.

    Raises:
        UserError: fewer than 2 rows, or a value that is not finite.
    """
    if len(features) < 2:
        raise UserError(f"the covariance of features needs at least 2 images; got {len(features)}")
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


def frechet_distance(
    *,
    mean_1: Num[np.ndarray, "D_1"],
    cov_1: Num[np.ndarray, "D_2 D_3"],
    mean_2: Num[np.ndarray, "D_4"],
    cov_2: Num[np.ndarray, "D_5 D_6"],
) -> float:
    """|m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1^(1/2) S_2 S_1^(1/2))^(1/2)), the squared 2-Wasserstein distance.

    Dowson and Landau (1982), eq. 4; Heusel et al. (2017), eq. 6 (FID). Its unit is the unit of the features
    squared. The covariances may be rank-deficient.

    Args:
        mean_1, mean_2: [D], any range.
        cov_1, cov_2: [D, D], symmetric and positive semi-definite.

    Raises:
        UserError: the shapes disagree, or a value is not finite.
    """
    num_dims = mean_1.size
    for name, array, shape in (
        ("mean_1", mean_1, (num_dims,)),
        ("cov_1", cov_1, (num_dims, num_dims)),
        ("mean_2", mean_2, (num_dims,)),
        ("cov_2", cov_2, (num_dims, num_dims)),
    ):
        if array.shape != shape:
            raise UserError(
                f"{name} must have shape {shape}, as mean_1 has {num_dims} dims; got {array.shape}"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{name} must be finite; got NaN or infinity")
    mean_1, cov_1, mean_2, cov_2 = (np.asarray(a, np.float64) for a in (mean_1, cov_1, mean_2, cov_2))

    # With R = S^(1/2), the eigenvalues of R_1 S_2 R_1 = (R_1 R_2)(R_1 R_2)^T are the squared singular values
    # of R_1 R_2. The singular values are computed directly: the square root of an eigenvalue that should be 0
    # would turn a rounding error of 1e-16 into 1e-8, once for every missing rank.
    trace_sqrt = np.linalg.svd(_sqrt_psd(cov_1) @ _sqrt_psd(cov_2), compute_uv=False).sum()
    distance = ((mean_1 - mean_2) ** 2).sum() + np.trace(cov_1) + np.trace(cov_2) - 2 * trace_sqrt
    return max(0.0, float(distance))  # below 0 only by rounding


def frechet_from_features(a: Num[np.ndarray, "N D_a"], b: Num[np.ndarray, "M D_b"]) -> float:
    """The Frechet distance between Gaussians fitted to two sets: sample means, unbiased covariances (N - 1).

    Heusel et al. (2017), eq. 6. The estimate is biased upwards by a term that falls like 1/N + 1/M, so compare two
    numbers only at equal set sizes.

    Args:
        a, b: [N, D] and [M, D], one row per sample, N and M at least 2.

    Raises:
        UserError: fewer than 2 rows, different D, or a value that is not finite.
    """
    if min(len(a), len(b)) < 2:
        raise UserError(f"a and b must have at least 2 rows each; got {len(a)} and {len(b)}")
    if a.shape[1] != b.shape[1]:
        raise UserError(f"a and b must have the same number of columns; got {a.shape[1]} and {b.shape[1]}")
    (mean_1, cov_1), (mean_2, cov_2) = fit_gaussian(a), fit_gaussian(b)
    return frechet_distance(mean_1=mean_1, cov_1=cov_1, mean_2=mean_2, cov_2=cov_2)


def _sqrt_psd(cov: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "D D"]:
    """S^(1/2), symmetric; eigenvalues that are negative or close to 0 because of rounding count as 0."""
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    noise = len(values) * np.finfo(np.float64).eps * np.abs(values).max(initial=0.0)
    roots = np.sqrt(np.where(values > noise, values, 0.0))
    return (vectors * roots) @ vectors.T
