"""UniPC (Zhao et al. 2023): a predictor, and a corrector that costs no network call."""

from collections.abc import Sequence

import numpy as np

from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.solver_coefficients import Weights, basis, grid_with_signal, half_log_snr_of, table_of
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.runtime.errors import UserError


def unipc_table(schedule: Schedule, *, steps: np.ndarray | None = None, order: int = 2) -> SamplerTable:
    """UniPC, the variant B_2 with a predictor and a corrector of the same order (Zhao et al. 2023, algorithms 5, 6).

    The corrector costs no network call: the prediction at a row's x_t, which the previous row estimated, first corrects
    that x_t. The last rows have lower order; the last one, which goes to sigma = 0, has order 1.

    Args:
      steps: the t to visit, decreasing; None for all T.
      order: 1, 2 or 3.

    Raises:
      UserError: the steps do not decrease, are outside 0..T-1, or start at alpha-bar = 0; or another order.
    """
    if order not in (1, 2, 3):
        raise UserError(f"the order of UniPC must be 1, 2 or 3; got {order}")
    grid = grid_with_signal(schedule, steps, "unipc")
    half_log_snr = half_log_snr_of(grid)
    x_t, x_0, _, past = basis(order)
    rows, num_rows = [], grid.num_steps
    orders = [min(order, num_rows - i, i + 1) for i in range(num_rows)]
    for i in range(num_rows):
        corrected, data = x_t, [x_0, *past]
        if i > 0:  # replaces the predictor part of the previous row by the corrector
            change = -grid.alphas[i] * np.expm1(-(half_log_snr[i] - half_log_snr[i - 1]))
            corrected = x_t + change * (
                _unipc_slope(half_log_snr, i - 1, orders[i - 1], past, x_0)
                - _unipc_slope(half_log_snr, i - 1, orders[i - 1], past, None)
            )
        change = grid.alphas[i + 1] - grid.sigmas[i + 1] * grid.alphas[i] / grid.sigmas[i]  # -alpha_s expm1(-h)
        row = grid.sigmas[i + 1] / grid.sigmas[i] * corrected + change * x_0
        rows.append(row + change * _unipc_slope(half_log_snr, i, orders[i], data, None))
    return table_of(grid.t[:-1], grid.t[1:], rows, [x_0] * num_rows)


def _unipc_slope(
    half_log_snr: np.ndarray, i: int, order: int, data: Sequence[Weights], arrived: Weights | None
) -> Weights:
    """What UniP (or, with the x_0_hat at the end of the step, UniC) adds to x_0_hat in the step from point i.

    The sum over m of a_m D_m / r_m, D_m = x_0_hat(at r_m) - x_0_hat(at i), with the a_m that solve sum_m a_m
    r_m^(k-1) = k! phi_(k+1)(-h) / B, k = 1, 2, ...; r is the distance in lambda over h; 1 at the end of the step.

    Args:
      data: x_0_hat at the points i, i-1, ...
      arrived: the x_0_hat at point i+1, for UniC.
    """
    h = half_log_snr[i + 1] - half_log_snr[i]
    r = [(half_log_snr[i - m] - half_log_snr[i]) / h for m in range(1, order)]
    slopes = [(data[m] - data[0]) / r[m - 1] for m in range(1, order)]
    if arrived is not None:
        r, slopes = [*r, 1.0], [*slopes, arrived - data[0]]
    if not slopes:
        return np.zeros_like(data[0])
    # For one unknown the authors' code uses 1/2, the limit h -> 0, instead of the solution.
    a = np.array([0.5])
    if len(r) > 1:
        right, phi, factorial = [], np.expm1(-h) / -h - 1, 1
        for k in range(1, len(r) + 1):
            right.append(phi * factorial / np.expm1(-h))
            factorial *= k + 1
            phi = phi / -h - 1 / factorial
        a = np.linalg.solve(np.vander(r, increasing=True).T, right)
    return sum(weight * slope for weight, slope in zip(a, slopes, strict=True))
