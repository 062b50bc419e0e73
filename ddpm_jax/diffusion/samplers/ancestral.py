"""Ancestral sampling: the sampler of DDPM (Ho et al. 2020), also with fewer steps."""

import numpy as np

from ddpm_jax.diffusion.process import Process, learned_range
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable, make_table
from ddpm_jax.diffusion.timestep_spacing import time_grid
from ddpm_jax.runtime.errors import UserError, arg


def ancestral_table(process: Process, *, steps: np.ndarray | None = None) -> SamplerTable:
    """x_s ~ p(x_s | x_t) = N(mu-tilde(x_t, x_0_hat), sigma^2 I) (Ho et al. 2020, algorithm 2).

    With `steps`, the process of only the kept steps is used: its betas follow from the kept alpha-bar, and a learned
    range is between its own beta-tilde and beta (Nichol and Dhariwal 2021, section 4). The last row adds no noise.

    Args:
      steps: the t to visit, decreasing; None for all T.

    Raises:
      UserError: the steps do not decrease or are outside 0..T-1; or fewer than T steps with variance "learned", which
        is the variance of one of all T steps.
    """
    schedule, variance = process.schedule, process.variance
    grid = time_grid(schedule, steps)
    if variance == "learned" and not np.array_equal(grid.t, np.arange(schedule.num_steps - 1, -2, -1)):
        raise UserError(
            f"{arg('variance')}='learned' is the variance of one of all {schedule.num_steps} steps: take "
            f"{arg('steps=None')} for all, {arg('ddim_table')}, or train with 'learned_range'"
        )
    abar_t, abar_s, alpha, beta = grid.transitions()
    small, clean = beta * (1 - abar_s) / (1 - abar_t), grid.t[1:] < 0
    # A gradient shifts the mean by this variance; in the last row it is that of the row before, as in the bound.
    before_last = small[-2] if len(small) > 1 else beta[-1]
    repaired = np.where(clean, before_last, small)
    columns = {
        "c_x_0": beta * np.sqrt(abar_s) / (1 - abar_t),
        "c_x_t": (1 - abar_s) * np.sqrt(alpha) / (1 - abar_t),
        "sigma": np.where(clean, 0.0, np.sqrt(beta if variance == "fixed_large" else small)),
        "c_shift": np.where(clean, repaired, beta) if variance == "fixed_large" else repaired,
        "c_x_0_reference": -np.sqrt(abar_s) * (1 - abar_s) * alpha / (1 - abar_t),
    }
    if process.learns_variance:
        columns["sigma"], columns["c_shift"] = np.where(clean, 0.0, 1.0), np.ones_like(beta)
        shift, scale = np.zeros_like(beta), np.ones_like(beta)
        if variance == "learned_range":
            shift, scale = learned_range(np.log(repaired), np.log(beta))
        columns |= {"log_var_shift": shift, "log_var_scale": scale}
    return make_table(grid.t[:-1], grid.t[1:], **columns)
