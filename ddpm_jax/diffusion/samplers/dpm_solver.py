"""DPM-Solver++ (Lu et al. 2022), multistep: for the probability flow ODE and in its stochastic form."""

import numpy as np

from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.solver_coefficients import basis, half_log_snr_of, table_of
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.timestep_spacing import time_grid
from ddpm_jax.runtime.errors import UserError


def dpmpp_table(
    schedule: Schedule,
    *,
    steps: np.ndarray | None = None,
    order: int = 2,
    sde: bool = False,
    full_order: bool = False,
) -> SamplerTable:
    """DPM-Solver++, multistep, order 1, 2 or 3; with `sde` its stochastic form, order 1 or 2.

    With r_0 = h_(i-1)/h_i, D_0 = x_0_hat, D_1 = (x_0_hat - the one before)/r_0 and e = exp(-h):
    x_s = sigma_s/sigma_t x_t + alpha_s (1 - e) (D_0 + D_1/2) (Lu et al. 2022b, algorithm 2), and as SDE:
    x_s = sigma_s/sigma_t e x_t + alpha_s (1 - e^2) (D_0 + D_1/2) + sigma_s sqrt(1 - e^2) z. Order 3 adds the
    second difference, as in the authors' code. The first rows have a lower order, for lack of a history, and so has
    the last, which goes to sigma = 0; with fewer than 15 steps order 3 also lowers the last but one.

    Args:
      steps: the t to visit, decreasing; None for all T.
      order: 1 (equal to DDIM with eta = 0, unless `sde`), 2 or 3.
      full_order: for order 3. The authors' code gives the second difference half the weight of Taylor's series,
        so that the error of a step is h^3, as for order 2; True gives it the full weight, with an error of h^4.

    Raises:
      UserError: the steps do not decrease or are outside 0..T-1, or another order.
    """
    if order not in ((1, 2) if sde else (1, 2, 3)):
        raise UserError(f"the order of DPM-Solver++ must be 1, 2 or, without sde, 3; got {order}")
    grid = time_grid(schedule, steps)
    half_log_snr = half_log_snr_of(grid)
    x_t, x_0, z, past = basis(max(order - 1, 1))
    rows, num_rows = [], grid.num_steps
    for i in range(num_rows):
        alpha_s, sigma_s = grid.alphas[i + 1], grid.sigmas[i + 1]
        e = sigma_s * grid.alphas[i] / (alpha_s * grid.sigmas[i])  # exp(-h)
        here = min(order, i + 1, 1 if i == num_rows - 1 else 3, 2 if i == num_rows - 2 and num_rows < 15 else 3)
        h, h_0, h_1 = (half_log_snr[j + 1] - half_log_snr[j] if j >= 0 else np.inf for j in (i, i - 1, i - 2))
        if sde:
            row = sigma_s / grid.sigmas[i] * e * x_t + sigma_s * np.sqrt(1 - e**2) * z
            change = 1 - e**2
        else:
            row, change = sigma_s / grid.sigmas[i] * x_t, 1 - e
        row = row + alpha_s * change * x_0
        if here == 2:
            row = row + alpha_s * change * 0.5 * (h / h_0) * (x_0 - past[0])
        elif here == 3:
            slope_0, slope_1 = (h / h_0) * (x_0 - past[0]), (h / h_1) * (past[0] - past[1])
            d_1 = slope_0 + h_0 / (h_0 + h_1) * (slope_0 - slope_1)
            d_2 = h / (h_0 + h_1) * (slope_0 - slope_1) * (2 if full_order else 1)
            row = row + alpha_s * ((1 - change / h) * d_1 + (0.5 - (h - change) / h**2) * d_2)
        rows.append(row)
    return table_of(grid.t[:-1], grid.t[1:], rows, [x_0] * num_rows)
