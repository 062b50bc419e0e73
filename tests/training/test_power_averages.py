"""Averages with the profile of a power function: the length, the decay, and the recursion against closed forms."""

from fractions import Fraction

import jax
import numpy as np
import pytest
from tracked_averages import ROUNDING, tracked

from ddpm_jax.runtime.errors import UserError
from ddpm_jax.training.optimizer import make_ema_decays
from ddpm_jax.training.power_averages import (
    MAX_STD,
    PowerDecay,
    gamma_of_std,
    make_power_averages,
    std_of_gamma,
)


@pytest.mark.parametrize("std", [0.001, 0.01, 0.05, 0.1, 0.2, 0.28, 0.2886])
def test_gamma_and_std_are_inverse(std):
    gamma = gamma_of_std(std)
    assert gamma > 0 and std_of_gamma(gamma) == pytest.approx(std, rel=1e-12)
    # The moments of the profile on [0, 1], of which the mean of tau^n is (gamma + 1)/(gamma + n + 1).
    first, second = ((gamma + 1) / (gamma + n + 1) for n in (1, 2))
    assert np.sqrt(second - first**2) == pytest.approx(std, rel=1e-8)


def test_known_lengths():
    assert std_of_gamma(0.0) == pytest.approx(MAX_STD, rel=1e-15)  # a uniform distribution
    assert std_of_gamma(1.0) == pytest.approx(np.sqrt(1 / 18), rel=1e-15)  # a triangular one
    # Karras et al. 2024, section 3.1: 10% and 5% are 6.94 and 16.97.
    assert (round(gamma_of_std(0.1), 2), round(gamma_of_std(0.05), 2)) == (6.94, 16.97)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.0009, 12**-0.5, 0.3, float("nan")])
def test_lengths_out_of_range_are_refused(std):
    with pytest.raises(UserError, match=r"^std must be in \[0.001, 0.2887\), .*; got "):
        gamma_of_std(std)


def test_a_length_twice_is_refused():
    with pytest.raises(UserError, match=r"^stds must be different lengths; got \(0.1, 0.1\)$"):
        make_power_averages((0.1, 0.1))
    with pytest.raises(UserError, match=r"^stds must differ by a factor of at least 1.05, .*; got 0.1 and 0.1000001$"):
        make_power_averages((0.1000001, 0.05, 0.1))
    assert len(make_power_averages((0.1, 0.105))) == len(make_power_averages((0.02 * 1.05, 0.02))) == 2
    assert list(make_power_averages((0.10, 0.05))) == ["std_0.1", "std_0.05"]


@pytest.mark.parametrize("t", [1, 2, 3, 10, 1000, 800_000, 5_000_000])
@pytest.mark.parametrize("gamma", [1, 17])
def test_the_share_has_all_digits(t, gamma):
    """1 - (1 - 1/t)^(gamma + 1) exactly, as a fraction. log1p, expm1, two products and 1/t each round."""
    exact = 1 - (1 - Fraction(1, t)) ** (gamma + 1)
    share = Fraction(float(jax.jit(PowerDecay(float(gamma)).share_of_new)(t - 1)))
    assert abs(share / exact - 1) <= 8 * ROUNDING
    assert float(PowerDecay(float(gamma))(t - 1)) == pytest.approx(1 - float(exact), abs=2 * ROUNDING)


def test_closed_forms_of_a_quadratic_trajectory():
    """theta(k) = (k/t)^2. gamma = 0 is the mean, gamma = 1 has the weights (2k - 1)/t^2."""
    t = 500
    k = np.arange(1, t + 1)
    found = tracked({"0": PowerDecay(0.0), "1": PowerDecay(1.0), "9": PowerDecay(9.0)}, (k / t) ** 2)
    mean = (t + 1) * (2 * t + 1) / (6 * t**2)
    triangle = ((t * (t + 1)) ** 2 / 2 - t * (t + 1) * (2 * t + 1) / 6) / t**4
    # Three roundings a step, each of a number below 1, which is forgotten like (k/t)^(gamma + 1).
    for name, want, gamma in (("0", mean, 0), ("1", triangle, 1)):
        assert abs(float(found[name]) - want) <= 3 * ROUNDING * t / (gamma + 2)
    # The integral of the profile over a rising staircase lies between those over tau^2 and (tau + 1)^2.
    lower = 10 / 12
    upper = 10 / 12 + 2 * 10 / 11 / t + 1 / t**2
    assert lower < float(found["9"]) < upper


def test_the_recursion_is_a_slow_loop():
    trajectory = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    stds = (0.02, 0.05, 0.1, 0.25)
    found, most = tracked(make_power_averages(stds), trajectory), np.abs(trajectory).max()
    for std in stds:
        gamma, want = gamma_of_std(std), np.zeros(4)
        for k, theta in enumerate(trajectory.astype(np.float64), start=1):
            want += theta * ((k / 300) ** (gamma + 1) - ((k - 1) / 300) ** (gamma + 1))
        assert np.abs(found[f"std_{std}"] - want).max() <= 3 * ROUNDING * most * (300 / (gamma + 2) + 4)


def test_beside_other_averages_these_stay_what_they_are():
    """Bit for bit, and a constant stays what it is from the first update on."""
    trajectory = np.random.default_rng(1).standard_normal((20, 3)).astype(np.float32)
    decays = make_ema_decays([0.9])
    alone, both = tracked(decays, trajectory), tracked(decays | make_power_averages([0.1]), trajectory)
    assert np.array_equal(alone["0.9"], both["0.9"])
    constant = tracked(make_power_averages([0.1]), np.full((20, 3), 0.7, np.float32))["std_0.1"]
    assert np.abs(constant - np.float32(0.7)).max() <= 100 * ROUNDING  # 100 at the start, forgotten with one rounding
