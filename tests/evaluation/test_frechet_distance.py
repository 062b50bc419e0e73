"""The Frechet distance against closed forms, SciPy's matrix square root, and its own symmetries."""

import numpy as np
import pytest
import scipy.linalg

from ddpm_jax.evaluation.frechet_distance import frechet_distance, frechet_from_features
from ddpm_jax.runtime.errors import UserError


def random_gaussian(rng, num_dims, rank=None):
    factor = rng.standard_normal((num_dims, rank or num_dims))
    return rng.standard_normal(num_dims), factor @ factor.T


def distance(gaussian_1, gaussian_2):
    return frechet_distance(
        mean_1=gaussian_1[0], cov_1=gaussian_1[1], mean_2=gaussian_2[0], cov_2=gaussian_2[1]
    )


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_equal_gaussians_are_at_distance_zero(rank):
    gaussian = random_gaussian(np.random.default_rng(0), 20, rank)
    assert distance(gaussian, gaussian) == pytest.approx(0, abs=1e-9)


def test_one_dimension_is_the_difference_of_means_and_deviations():
    one = np.array([1.0]), np.array([[4.0]])
    two = np.array([-2.0]), np.array([[25.0]])
    assert distance(one, two) == pytest.approx((1 + 2) ** 2 + (2 - 5) ** 2, rel=1e-14)


def test_commuting_diagonal_covariances_sum_over_dimensions():
    rng = np.random.default_rng(1)
    m_1, m_2 = rng.standard_normal((2, 6))
    s_1, s_2 = rng.uniform(0, 3, (2, 6))
    got = distance((m_1, np.diag(s_1**2)), (m_2, np.diag(s_2**2)))
    assert got == pytest.approx(((m_1 - m_2) ** 2 + (s_1 - s_2) ** 2).sum(), rel=1e-12)


def test_covariances_that_do_not_commute_match_scipy():
    cov_1, cov_2 = np.array([[2.0, 0.9], [0.9, 0.5]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    assert not np.allclose(cov_1 @ cov_2, cov_2 @ cov_1)
    mean = np.zeros(2)
    want = np.trace(cov_1 + cov_2 - 2 * scipy.linalg.sqrtm(cov_1 @ cov_2).real)
    assert distance((mean, cov_1), (mean, cov_2)) == pytest.approx(want, rel=1e-12)


def test_disjoint_subspaces_add_their_traces():
    """S_1 S_2 = 0, so the cross term is 0: rank-deficient, where sqrtm(S_1 S_2) breaks down."""
    mean = np.zeros(4)
    basis = np.linalg.qr(np.random.default_rng(2).standard_normal((4, 4)))[0]
    cov_1 = basis @ np.diag([3.0, 2.0, 0, 0]) @ basis.T
    cov_2 = basis @ np.diag([0, 0, 5.0, 1.0]) @ basis.T
    assert distance((mean, cov_1), (mean, cov_2)) == pytest.approx(11, rel=1e-12)


def test_fewer_samples_than_dimensions():
    """Eight points in 64 dims against their dilation by 3: S_2 = 9 S_1, so the trace term is 4 tr S_1."""
    a = np.random.default_rng(3).standard_normal((8, 64))
    want = 4 * a.var(axis=0, ddof=1).sum() + 4 * (a.mean(axis=0) ** 2).sum()
    assert frechet_from_features(a, 3 * a) == pytest.approx(want, rel=1e-10)


def test_a_constant_feature_and_a_constant_set_are_allowed():
    a = np.zeros((5, 3))
    assert frechet_from_features(a, a + 2.0) == pytest.approx(12, rel=1e-14)


@pytest.mark.parametrize("ranks", [(12, 12), (3, 12), (3, 5)])
def test_symmetric_in_its_arguments(ranks):
    rng = np.random.default_rng(4)
    one, two = random_gaussian(rng, 12, ranks[0]), random_gaussian(rng, 12, ranks[1])
    assert distance(one, two) == pytest.approx(distance(two, one), rel=1e-10)


def test_translation_adds_its_squared_length():
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((30, 5)), rng.standard_normal((40, 5)) * 2
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    shift = np.arange(5.0)
    assert frechet_from_features(a, b + shift) - frechet_from_features(a, b) == pytest.approx(30, rel=1e-10)


def test_invariant_to_a_rotation_of_both():
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal((6, 10)), rng.standard_normal((50, 10)) * np.arange(10)
    rotation = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    assert frechet_from_features(a @ rotation, b @ rotation) == pytest.approx(
        frechet_from_features(a, b), rel=1e-9
    )


def test_features_use_the_unbiased_covariance():
    """Var {0, 2} = 2 and Var {0, 6} = 18 with N - 1, so (3 - 1)^2 + (sqrt 18 - sqrt 2)^2 = 12."""
    a, b = np.array([[0.0], [2.0]]), np.array([[0.0], [6.0]])
    assert frechet_from_features(a, b) == pytest.approx(12, rel=1e-14)


def test_integer_and_float32_features_are_computed_in_float64():
    images = np.random.default_rng(7).integers(0, 256, (50, 6), dtype=np.uint8)
    want = frechet_from_features(images.astype(np.float64), images[:20].astype(np.float64))
    assert frechet_from_features(images, images[:20]) == want
    assert frechet_from_features(images.astype(np.float32), images[:20].astype(np.float32)) == want


def test_never_negative():
    rng = np.random.default_rng(8)
    for _ in range(50):
        a = rng.standard_normal((10, 30)) * 1e3
        assert 0 <= frechet_from_features(a, a[::-1]) < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean_2": np.zeros(1)}, r"mean_2 must have shape \(3,\), as mean_1 has 3 dims; got \(1,\)"),
        ({"cov_1": np.zeros((2, 3))}, r"cov_1 must have shape \(3, 3\)"),
        ({"cov_2": np.full((3, 3), np.nan)}, "cov_2 must be finite"),
    ],
)
def test_bad_gaussians_are_refused(change, message):
    good = {"mean_1": np.zeros(3), "cov_1": np.eye(3), "mean_2": np.zeros(3), "cov_2": np.eye(3)}
    with pytest.raises(UserError, match=message):
        frechet_distance(**(good | change))


def test_bad_features_are_refused():
    with pytest.raises(UserError, match="at least 2 rows each; got 1 and 5"):
        frechet_from_features(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(UserError, match="same number of columns; got 3 and 4"):
        frechet_from_features(np.zeros((5, 3)), np.zeros((5, 4)))
