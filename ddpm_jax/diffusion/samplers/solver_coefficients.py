"""From the formulas of a solver's paper to the coefficients of a sampler's table.

All solvers are linear in x_t, x_0_hat, noise and the values that earlier rows remembered. So each quantity is a vector
of weights on these (`basis`), and a formula of a paper, written with such vectors, gives the row of the table. Computed
on the host in float64. lambda = log(alpha / sigma) is half the log SNR, h is the step in lambda.
"""

from collections.abc import Sequence

import numpy as np

from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable, make_table
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.timestep_spacing import TimeGrid, time_grid
from ddpm_jax.runtime.errors import UserError, arg

Weights = np.ndarray  # [3 + K], float64

# PLMS and Heun combine slopes of the flow of x/alpha with respect to sigma/alpha, which falls by thousands in the first
# step of a cosine schedule; a difference of two slopes would be multiplied by as much. Steps that start at a lower
# alpha than this, where x_t contains almost no image, are DDIM steps.
LEAST_ALPHA = 1e-3


def basis(num_remembered: int) -> tuple[Weights, Weights, Weights, list[Weights]]:
    """x_t, x_0_hat, z, and the values that the last rows remembered, newest first."""
    x_t, x_0, z, *remembered = np.eye(3 + num_remembered)
    return x_t, x_0, z, remembered


def table_of(
    t: np.ndarray, s: np.ndarray, rows: Sequence[Weights], remembers: Sequence[Weights]
) -> SamplerTable:
    rows, remembers = np.stack(rows), np.stack(remembers)
    return make_table(
        t, s, c_x_t=rows[:, 0], c_x_0=rows[:, 1], sigma=rows[:, 2], c_history=rows[:, 3:],
        r_x_t=remembers[:, 0], r_x_0=remembers[:, 1],
    )  # fmt: skip


def half_log_snr_of(grid: TimeGrid) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(grid.alphas) - np.log(grid.sigmas)


def grid_with_signal(schedule: Schedule, steps: np.ndarray | None, sampler: str) -> TimeGrid:
    """The grid; raises UserError if it starts at alpha-bar = 0, where these formulas are undefined."""
    grid = time_grid(schedule, steps)
    if grid.alphas[0] == 0:
        raise UserError(
            f"{arg('sampler')}={sampler!r} cannot start where alpha-bar is 0: take 'ancestral', 'ddim' or 'dpmpp_2m'"
        )
    return grid


def flow(grid: TimeGrid, i: int, j: int) -> tuple[float, float]:
    """(A, B): with a constant eps, the probability flow takes x at point i to A x + B eps at point j."""
    ratio = grid.alphas[j] / grid.alphas[i]
    return ratio, grid.sigmas[j] - ratio * grid.sigmas[i]


def eps_of(grid: TimeGrid, i: int, x_t: Weights, x_0: Weights) -> Weights:
    """eps_hat = (x_t - alpha x_0_hat) / sigma at point i."""
    return (x_t - grid.alphas[i] * x_0) / grid.sigmas[i]
