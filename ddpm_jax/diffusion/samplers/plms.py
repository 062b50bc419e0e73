"""PLMS (Liu et al. 2022): Adams-Bashforth combinations of the last eps_hat."""

import numpy as np

from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.solver_coefficients import (
    LEAST_ALPHA,
    Weights,
    basis,
    eps_of,
    flow,
    grid_with_signal,
    table_of,
)
from ddpm_jax.diffusion.schedules import Schedule

ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def plms_table(schedule: Schedule, *, steps: np.ndarray | None = None) -> SamplerTable:
    """PLMS: the fourth-order Adams-Bashforth combination of the last eps_hat in DDIM's step (Liu et al. 2022).

    The first step is Heun's, for lack of a history, so S steps take S + 1 network calls. The next three have order
    2, 3 and 4. Differs: the paper starts with Runge-Kutta steps; this is the start of latent diffusion's PLMS. Steps
    from alpha < 0.001 come before it and are those of DDIM.

    Args:
      steps: the t to visit, decreasing; None for all T.

    Raises:
      UserError: the steps do not decrease, are outside 0..T-1, or start at alpha-bar = 0.
    """
    grid = grid_with_signal(schedule, steps, "plms")
    x_t, x_0, _, past = basis(4)
    t, s, rows, remembers = [], [], [], []

    def add(i: int, j: int, row: Weights) -> None:
        t.append(grid.t[i])
        s.append(grid.t[j])
        rows.append(row)
        remembers.append(eps_of(grid, i, x_t, x_0))

    seen: list[int] = []  # the rows whose eps is used later, newest first
    first = int(np.sum(grid.alphas < LEAST_ALPHA))
    for i in range(first):
        a, b = flow(grid, i, i + 1)
        add(i, i + 1, a * x_t + b * eps_of(grid, i, x_t, x_0))
    for i in range(first, grid.num_steps):
        a, b = flow(grid, i, i + 1)
        eps_then = [past[len(rows) - 1 - n] for n in seen[:3]]
        weights = ADAMS_BASHFORTH[len(eps_then) + 1]
        eps = [eps_of(grid, i, x_t, x_0), *eps_then]
        seen.insert(0, len(rows))
        add(i, i + 1, a * x_t + b * sum(w * e for w, e in zip(weights, eps, strict=True)))
        if i == first and i + 1 < grid.num_steps:  # computes x_s again, with the mean of the slopes at both ends
            add(i + 1, i + 1, x_t + b / 2 * (eps_of(grid, i + 1, x_t, x_0) - past[0]))
    return table_of(np.array(t), np.array(s), rows, remembers)
