"""How a cost grows: the exponent of a power law through measured points."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax.runtime.errors import UserError


class PowerLaw(NamedTuple):
    """y = factor * x^exponent."""

    exponent: float
    standard_error: float  # of the exponent, from the scatter about the line; 0 if the line goes through every point
    factor: float

    def __call__(self, x: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
        return self.factor * x**self.exponent


def fit_power_law(x: Float[np.ndarray, "N"], y: Float[np.ndarray, "N"]) -> PowerLaw:
    """Least squares of log y against log x, with equal weights.

    Args:
      x, y: above 0, with at least three points and two different x.

    Raises:
      UserError: fewer points, all x the same, or a number that is not above 0.
    """
    if len(x) != len(y) or len(x) < 3 or len(np.unique(x)) < 2 or min(*x, *y) <= 0:
        raise UserError(f"a power law needs three points above 0 and two different x; got x={x}, y={y}")
    log_x, log_y = np.log(x), np.log(y)
    centred = log_x - log_x.mean()
    exponent = centred @ log_y / (centred @ centred)
    residuals = log_y - log_y.mean() - exponent * centred
    error = np.sqrt(residuals @ residuals / (len(x) - 2) / (centred @ centred))
    return PowerLaw(float(exponent), float(error), float(np.exp(log_y.mean() - exponent * log_x.mean())))
