"""Averages of any length as sums of stored ones: against quadrature, and against averages that were tracked."""

import numpy as np
import pytest
from tracked_averages import ROUNDING, history

from ddpm_jax.training.post_hoc_ema import MAX_PROFILE_ERROR, post_hoc_weights, profile_products
from ddpm_jax.training.power_averages import gamma_of_std, make_power_averages


def profile(tau, step, std):
    gamma = gamma_of_std(std)
    return np.where(tau <= step, (gamma + 1) / step * (tau / step) ** gamma, 0.0)


def quadrature(steps, num_nodes=20):
    """(tau, weights) of Gauss-Legendre on each interval between the steps: the profiles jump at them."""
    x, w = np.polynomial.legendre.leggauss(num_nodes)
    edges = np.unique([0, *steps]).astype(float)
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (x + 1)).ravel(), (half * w).ravel()


def of_steps(steps, stds=(0.05, 0.1)):
    pairs = [(step, std) for step in steps for std in stds]
    return [step for step, _ in pairs], [std for _, std in pairs]


EVEN, UNEVEN = range(10, 101, 10), (3, 17, 20, 48, 49, 80, 100)


def test_products_of_profiles():
    cases = [(40, 0.05, 100, 0.1), (100, 0.1, 40, 0.05), (70, 0.2, 70, 0.02), (1, 0.28, 100, 0.05)]
    for t_a, std_a, t_b, std_b in cases:
        tau, w = quadrature((t_a, t_b), 60)
        want = np.sum(w * profile(tau, t_a, std_a) * profile(tau, t_b, std_b))
        found = profile_products(float(t_a), gamma_of_std(std_a), float(t_b), gamma_of_std(std_b))
        assert found == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("steps", [EVEN, UNEVEN])
@pytest.mark.parametrize("std", [0.03, 0.07, 0.15, 0.25])
def test_weights_are_least_squares(steps, std):
    """Against a solver that never forms the products: the profiles at the nodes of a quadrature."""
    all_steps, stds = of_steps(steps)
    X, error = post_hoc_weights(all_steps, stds, step=100, std=std)
    tau, w = quadrature(steps, 40)
    profiles = np.stack([profile(tau, *pair) for pair in zip(all_steps, stds, strict=True)], axis=1)
    wanted, root = profile(tau, 100, std), np.sqrt(w)
    want = np.linalg.lstsq(root[:, None] * profiles, root * wanted, rcond=None)[0]
    np.testing.assert_allclose(X, want / want.sum(), rtol=0, atol=1e-8 * np.abs(want).max())
    assert X.sum() == pytest.approx(1, abs=1e-13)
    norm = np.sqrt(np.sum(w * wanted**2))
    assert error == pytest.approx(np.sqrt(np.sum(w * (profiles @ X - wanted) ** 2)) / norm, rel=1e-5)


@pytest.mark.parametrize("steps", [EVEN, UNEVEN, range(1, 301)])
def test_a_stored_average_is_found(steps):
    all_steps, stds = of_steps(steps)
    X, error = post_hoc_weights(all_steps, stds, step=max(steps), std=0.1)
    assert error < 1e-6  # 1e-8 is the rounding of a difference of squares
    assert X[-1] == pytest.approx(1, abs=1e-6) and np.abs(X[:-1]).max() < 1e-6


def test_more_snapshots_leave_a_smaller_error():
    """As 1/n^2 for a length between those of the snapshots: a sum of two profiles on n intervals."""
    errors = [post_hoc_weights(*of_steps(range(1, n + 1)), step=n, std=0.07)[1] for n in (25, 50, 100, 200)]
    assert all(3.5 < a / b < 4.5 for a, b in zip(errors, errors[1:], strict=False))


@pytest.fixture(scope="module")
def walk():
    """A random walk, and its averages of several lengths after each step."""
    rng = np.random.default_rng(0)
    trajectory = (np.cumsum(0.02 * rng.standard_normal((600, 5)), axis=0) + 1).astype(np.float32)
    return trajectory, history(make_power_averages([0.03, 0.05, 0.07, 0.1, 0.15, 0.2]), trajectory)


@pytest.mark.parametrize("std", [0.03, 0.07, 0.15, 0.2])
def test_a_third_average_is_reconstructed(walk, std):
    """Exactly up to the difference of the two sets of weights of the updates, which is known."""
    trajectory, tracked = walk
    num_steps, stds = len(trajectory), (0.05, 0.1)
    steps = list(range(30, num_steps + 1, 30))
    direct = tracked[f"std_{std}"][-1]
    X, error = post_hoc_weights(*of_steps(steps, stds), step=num_steps, std=std)
    averages = [tracked[f"std_{one}"][step - 1].astype(np.float64) for step in steps for one in stds]
    made = sum(weight * average for weight, average in zip(X, averages, strict=True))

    def of_updates(step, one):  # the weight of each update in an average
        edges = np.minimum(np.arange(num_steps + 1) / step, 1) ** (gamma_of_std(one) + 1)
        return np.diff(edges)

    pairs = zip(*of_steps(steps, stds), strict=True)
    difference = sum(weight * of_updates(*pair) for weight, pair in zip(X, pairs, strict=True))
    difference = difference - of_updates(num_steps, std)
    # Rounding: three a step, forgotten like (k/t)^(gamma + 1); the averages are multiplied by X.
    gamma = min(gamma_of_std(one) for one in (*stds, std))
    rounding = (np.abs(X).sum() + 1) * 3 * ROUNDING * np.abs(trajectory).max() * (num_steps / (gamma + 2) + 4)
    assert np.abs(made - direct - difference @ trajectory).max() <= rounding
    # So the error is at most sum |difference| times the range of a parameter, and small beside what the length changes.
    assert error < MAX_PROFILE_ERROR
    changed = np.abs(tracked["std_0.05"][-1] - tracked["std_0.1"][-1]).max()
    assert np.abs(made - direct).max() < 0.1 * changed


def test_what_does_not_fit_together():
    for steps, step in (([], 10), ([10, 10], 10), ([0, 10], 10), ([5, 11], 10)):
        with pytest.raises(ValueError, match="^steps must be in 1..10, and no pair of step and std twice"):
            post_hoc_weights(steps, [0.05] * len(steps), step=step, std=0.1)
