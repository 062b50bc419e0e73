"""KID, Inception Score, precision and recall: slow loops, closed forms, known answers, their own symmetries."""

import itertools

import numpy as np
import pytest
import scipy.spatial
import scipy.special

from ddpm_jax.evaluation import kid, precision_recall
from ddpm_jax.evaluation.frechet_distance import fit_gaussian
from ddpm_jax.evaluation.inception_score import inception_score, softmax
from ddpm_jax.evaluation.kid import kernel_distance, kernel_distance_of_subsets, num_blocks
from ddpm_jax.evaluation.precision_recall import precision_recall as p_and_r
from ddpm_jax.runtime.errors import UserError


def features(seed, num_rows, num_dims, scale=1.0, mean=0.0):
    return (scale * np.random.default_rng(seed).standard_normal((num_rows, num_dims)) + mean).astype(np.float32)


def test_the_gaussian_is_numpys_whatever_the_blocks(monkeypatch):
    a = features(0, 50, 7, mean=1000.0)
    for block in (1, 7, 4096):
        monkeypatch.setattr("ddpm_jax.evaluation.frechet_distance._BLOCK_ROWS", block)
        mean, cov = fit_gaussian(a)
        np.testing.assert_allclose(mean, a.astype(np.float64).mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(cov, np.cov(a.astype(np.float64), rowvar=False), rtol=1e-11, atol=1e-12)
    with pytest.raises(UserError, match="at least 2 images; got 1"):
        fit_gaussian(a[:1])
    with pytest.raises(UserError, match="must be finite"):
        fit_gaussian(np.where(np.arange(7) == 3, np.nan, a))


def slow_mmd(a, b):
    def k(x, y):
        return (float(np.dot(x.astype(np.float64), y.astype(np.float64))) / len(x) + 1) ** 3

    within = [np.mean([k(x, y) for x, y in itertools.permutations(s, 2)]) for s in (a, b)]
    return sum(within) - 2 * np.mean([k(x, y) for x in a for y in b])


@pytest.mark.parametrize("block", [3, 2048])
def test_kid_is_the_sum_over_pairs_whatever_the_blocks(monkeypatch, block):
    a, b = features(1, 11, 5), features(2, 8, 5, scale=1.5, mean=0.3)
    monkeypatch.setattr(kid, "_BLOCK_ROWS", block)
    calls = []
    found = kernel_distance(a, b, on_block=lambda: calls.append(1))
    assert found == pytest.approx(slow_mmd(a, b), rel=1e-12)
    assert found == pytest.approx(kernel_distance(b, a), rel=1e-12)
    assert len(calls) == num_blocks(len(a), len(b))


def test_kid_of_one_dimension_has_a_closed_form():
    """E k(x, y) = 1 + 3 m m' + 3 s s' + t t' with the raw moments m = E x, s = E x^2, t = E x^3 of both."""
    a, b = np.array([[-1.0], [1.0]] * 2000), np.array([[0.0], [2.0]] * 2000)  # moments 0, 1, 0 and 1, 2, 4
    exact = (1 + 3) + (1 + 3 + 3 * 4 + 16) - 2 * (1 + 3 * 2)
    # The sample's pairs of different rows: n^2 E k minus the diagonal, over n (n - 1).
    n = len(a)
    a_within, b_within = (n * 4 - 8) / (n - 1), (n * 32 - (1 + 125) / 2) / (n - 1)
    assert a_within + b_within - 2 * 7 == pytest.approx(exact, abs=0.1)
    assert kernel_distance(a, b) == pytest.approx(a_within + b_within - 14, rel=1e-12)


def test_kid_is_unbiased_and_its_mean_over_fresh_sets_of_one_distribution_is_0():
    rng = np.random.default_rng(3)
    found = [kernel_distance(*rng.standard_normal((2, 12, 4))) for _ in range(400)]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 4 * error  # one false alarm in 16,000
    # The biased estimate, with each row paired with itself, would be at E[k(x, x) - k(x, y)] / 6 > 10 errors.
    rows = rng.standard_normal((2000, 4))
    bias = 2 * (((rows**2).mean(axis=1) + 1) ** 3 - 1).mean() / 12
    assert bias > 10 * error and min(found) < 0


def test_kid_of_subsets_estimates_the_whole():
    a, b = features(4, 300, 6), features(5, 260, 6, mean=0.4)
    whole = kernel_distance(a, b)
    mean, deviation = kernel_distance_of_subsets(a, b, num_subsets=200, subset_size=60)
    # Subsets of one pair of sets overlap, but their mean over all subsets is the whole.
    assert mean == pytest.approx(whole, abs=4 * deviation / np.sqrt(200))
    assert deviation > 0 and kernel_distance_of_subsets(a, b, num_subsets=200, subset_size=60) == (mean, deviation)
    assert kernel_distance_of_subsets(a, b, num_subsets=3, subset_size=60, seed=1)[0] != mean
    # Where the sets are smaller than a subset, all rows are in each.
    same = kernel_distance_of_subsets(a[:9], b[:9], num_subsets=2, subset_size=1000)
    assert same == (pytest.approx(kernel_distance(a[:9], b[:9]), rel=1e-12), pytest.approx(0, abs=1e-14))


def test_inception_score_of_known_probabilities():
    one_hot = np.eye(5)[np.arange(100) % 5]
    assert inception_score(one_hot) == (pytest.approx(5, rel=1e-12), pytest.approx(0, abs=1e-12))
    assert inception_score(np.full((20, 5), 0.2), num_splits=2)[0] == pytest.approx(1, rel=1e-12)
    # Two kinds of rows, half each: exp of the Jensen-Shannon divergence.
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    m = (p + q) / 2
    want = np.exp(0.5 * (p * np.log(p / m)).sum() + 0.5 * (q * np.log(q / m)).sum())
    assert inception_score(np.stack([p, q] * 30), num_splits=3)[0] == pytest.approx(want, rel=1e-12)


def test_the_splits_of_the_score_are_consecutive():
    """13 rows in 3 splits: 0..3, 4..7, 8..12; one class a split scores 1, all classes in one split more."""
    labels = np.array([0] * 4 + [1] * 4 + [0, 1, 2, 2, 2])
    last = np.exp(scipy.special.entr([0.2, 0.2, 0.6]).sum())
    mean, deviation = inception_score(np.eye(3)[labels], num_splits=3)
    assert mean == pytest.approx((1 + 1 + last) / 3) and deviation == pytest.approx(np.std([1, 1, last]))
    with pytest.raises(UserError, match="at least as many images; got 13"):
        inception_score(np.eye(3)[labels], num_splits=14)


def test_softmax_is_that_of_float64_and_does_not_overflow():
    found = softmax(np.array([[1000.0, 999.0, -1000.0]], np.float32))
    np.testing.assert_allclose(found, [[1 / (1 + np.exp(-1)), 1 / (1 + np.e), 0]], rtol=1e-15)


def slow_precision_recall(samples, reference, k):
    def radii(x):
        return np.sort(scipy.spatial.distance.cdist(x, x), axis=1)[:, k]  # column 0 is the point itself

    across = scipy.spatial.distance.cdist(samples.astype(np.float64), reference.astype(np.float64))
    return (
        (across <= radii(reference.astype(np.float64))).any(axis=1).mean(),
        (across.T <= radii(samples.astype(np.float64))).any(axis=1).mean(),
    )


@pytest.mark.parametrize("values", [7, 40, 2**23])
def test_precision_and_recall_are_the_definition_whatever_the_blocks(monkeypatch, values):
    monkeypatch.setattr(precision_recall, "_BLOCK_VALUES", values)
    samples, reference = features(6, 60, 3, scale=0.6, mean=100.2), features(7, 45, 3, mean=100.0)
    rows = []
    for k in (1, 3):
        found = p_and_r(samples, reference, num_neighbours=k, on_rows=rows.append)
        assert found == slow_precision_recall(samples, reference, k) and 0 < min(found) and max(found) < 1
    assert found == p_and_r(reference, samples)[::-1]
    assert sum(rows) == 2 * 2 * (60 + 45)


def test_precision_and_recall_by_hand():
    """On a line, k = 1. Reference 0, 1, 10, 13 with radii 1, 1, 3, 3; samples 2, 4, 12.5 with radii 2, 2, 8.5."""
    reference, samples = np.array([[0.0], [1], [10], [13]]), np.array([[2.0], [4], [12.5]])
    # 2 lies on the border around 1, 12.5 within 3 of 10, 4 within nothing; around 2: 0 and 1; around 12.5: 10, 13.
    assert p_and_r(samples, reference, num_neighbours=1) == (2 / 3, 1)
    assert p_and_r(samples + 100, reference, num_neighbours=1) == (0, 0)
    assert p_and_r(reference, reference.copy()) == (1, 1)


@pytest.mark.parametrize("num_points", [1, 5])
def test_a_collapsed_set_covers_its_points(num_points):
    """Each picture many times: balls of radius 0, whatever rounding says."""
    reference = features(8, 30, 500, mean=37.3)
    samples = np.repeat(reference[:num_points], 20, axis=0)
    assert p_and_r(samples, reference) == (1, num_points / 30)
    ((_, distances),) = precision_recall._square_distances(samples, reference)
    own = np.arange(30) == np.repeat(np.arange(num_points), 20)[:, None]
    assert (distances[own] == 0).all() and distances[~own].min() > 100


@pytest.mark.parametrize("rows", [(3, 9), (9, 3)])
def test_too_few_pictures_are_refused(rows):
    a, b = np.zeros((rows[0], 2)), np.zeros((rows[1], 2))
    with pytest.raises(UserError, match=f"at least 4 images on each side; got {rows[0]} and {rows[1]}"):
        p_and_r(a, b)
    with pytest.raises(UserError, match="the same number of columns; got 2 and 3"):
        p_and_r(np.zeros((9, 2)), np.zeros((9, 3)))
    with pytest.raises(UserError, match="the same number of columns; got 2 and 3"):
        kernel_distance(np.zeros((9, 2)), np.zeros((9, 3)))
    with pytest.raises(UserError, match="at least 2 rows each; got 9 and 1"):
        kernel_distance(np.zeros((9, 2)), np.zeros((1, 2)))
