"""DDIM (Song et al. 2021)."""

import numpy as np

from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable, make_table
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.timestep_spacing import time_grid
from ddpm_jax.runtime.errors import UserError, arg


def ddim_table(schedule: Schedule, *, steps: np.ndarray | None = None, eta: float = 0.0) -> SamplerTable:
    """x_s = sqrt(abar_s) x_0_hat + sqrt(1 - abar_s - sigma^2) eps_hat + sigma z (Song et al. 2021, eq. 12).

    sigma is eta times the posterior's deviation (eq. 16); eps_hat is the one that corresponds to x_0_hat, so a
    clipped x_0_hat changes both. eta = 0 is deterministic: Euler's method for the probability flow in
    sqrt(1 - abar)/sqrt(abar), and DPM-Solver++ of order 1. eta = 1 equals `ancestral_table`, "fixed_small".

    Args:
      steps: the t to visit, decreasing; None for all T.
      eta: >= 0; above 1, more noise than x_s can contain may be needed, which is an error.

    Raises:
      UserError: the steps do not decrease or are outside 0..T-1; eta is negative or too large.
    """
    grid = time_grid(schedule, steps)
    abar_t, abar_s, alpha, beta = grid.transitions()
    asked, eta = eta, min(eta, 1e6)  # the square of an absurdly large eta would overflow
    sigma = eta * np.sqrt((1 - abar_s) / (1 - abar_t) * beta)
    # 1 - abar_s - sigma^2, in a form without cancellation at eta = 1. In the last row it and sigma are exactly 0.
    kept = alpha * (1 - abar_s) / (1 - abar_t)
    direction_var = (1 - abar_s) * ((1 - eta**2) + eta**2 * kept)
    if not eta >= 0 or np.any(direction_var < -1e-12):
        raise UserError(
            f"{arg('eta')} must be at least 0 and leave sigma^2 <= 1 - alpha_bar; got {asked}: try 0 to 1"
        )
    c_eps = np.sqrt(np.maximum(direction_var, 0.0)) / np.sqrt(1 - abar_t)
    of_eps = -c_eps * np.sqrt(abar_t)
    return make_table(
        grid.t[:-1], grid.t[1:], c_x_0=np.sqrt(abar_s) + of_eps, c_x_t=c_eps, sigma=sigma, c_x_0_reference=of_eps
    )
