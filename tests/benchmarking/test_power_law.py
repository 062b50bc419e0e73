"""Exponents of growth against exact power laws and SciPy's line."""

import numpy as np
import pytest
from scipy.stats import linregress

from ddpm_jax.benchmarking.power_law import fit_power_law
from ddpm_jax.runtime.errors import UserError


def test_a_power_law_is_found_exactly():
    x = np.array([1.0, 2.0, 4.0, 32.0])
    law = fit_power_law(x, 7 * x**1.5)
    assert law == pytest.approx((1.5, 0, 7), abs=1e-12)
    np.testing.assert_allclose(law(x), 7 * x**1.5)


def test_the_standard_error_is_that_of_the_line():
    x = np.array([1.0, 2.0, 4.0, 8.0, 8.0])
    y = np.array([1.1, 3.9, 17.0, 60.0, 66.0])
    law, line = fit_power_law(x, y), linregress(np.log(x), np.log(y))
    assert law == pytest.approx((line.slope, line.stderr, np.exp(line.intercept)))


@pytest.mark.parametrize(
    "x,y", [([1.0, 2.0], [1.0, 2.0]), ([1.0] * 3, [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [0.0, 1.0, 1.0])]
)
def test_points_that_make_no_law_are_refused(x, y):
    with pytest.raises(UserError, match="a power law needs three points above 0 and two different x"):
        fit_power_law(np.array(x), np.array(y))
