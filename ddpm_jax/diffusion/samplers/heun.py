"""Heun's method and the stochastic sampler of EDM (Karras et al. 2022)."""

import numpy as np

from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.solver_coefficients import LEAST_ALPHA, basis, eps_of, grid_with_signal, table_of
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.timestep_spacing import TimeGrid, step_at_half_log_snr
from ddpm_jax.runtime.errors import UserError, arg


def heun_table(
    schedule: Schedule,
    *,
    steps: np.ndarray | None = None,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = np.inf,
    churn_noise: float = 1.0,
) -> SamplerTable:
    """Heun's second-order method in sigma/alpha; with churn, the stochastic sampler of EDM.

    An Euler step to the next point, then the step again with the mean of both slopes; the last step, to sigma = 0, is
    Euler's. S steps take 2S - 1 network calls (Karras et al. 2022, algorithms 1 and 2, whose x and sigma are x_t/alpha
    and sigma/alpha here). churn is S_churn: before the step from a noise level sigma, noise is added up to
    sigma (1 + gamma), gamma = min(churn/S, sqrt(2) - 1), if sigma is in churn_min..churn_max; churn_noise
    is S_noise. Differs: no noise is added before the first step, which starts at the highest noise level; a step from
    alpha < 0.001 is an Euler step only.

    Args:
      steps: the t to visit, decreasing, such as `spaced_steps(..., "karras")`; None for all T.
      churn: >= 0.

    Raises:
      UserError: the steps do not decrease, are outside 0..T-1, or start at alpha-bar = 0; churn is negative.
    """
    if not (churn >= 0 and churn_noise >= 0):
        names = f"{arg('churn')} and {arg('churn_noise')}"
        raise UserError(f"{names} must be at least 0; got {churn} and {churn_noise}")
    grid = grid_with_signal(schedule, steps, "heun")
    num_rows = grid.num_steps
    level = grid.sigmas / grid.alphas
    raised, start = level.copy(), grid.t.astype(np.float64)
    if churn > 0:
        inside = (level >= churn_min) & (level <= churn_max) & (np.arange(num_rows + 1) > 0) & (level > 0)
        raised[inside] *= 1 + min(churn / num_rows, np.sqrt(2) - 1)
        raised = np.minimum(raised, level[0])
        start[inside] = step_at_half_log_snr(schedule, -np.log(raised[inside]))
    alphas = (1 + raised**2) ** -0.5  # at the start of a step, after noise was added
    starts = TimeGrid(start, alphas, raised * alphas)
    x_t, x_0, z, past = basis(1)
    t, s, rows, remembers = [], [], [], []
    for i in range(num_rows):
        ratio = grid.alphas[i + 1] / starts.alphas[i]
        b = grid.sigmas[i + 1] - ratio * starts.sigmas[i]
        eps = eps_of(starts, i, x_t, x_0)
        steps_of_row = [(start[i], ratio * x_t + b * eps, eps)]
        if i < num_rows - 1 and starts.alphas[i] >= LEAST_ALPHA:
            eps_there = eps_of(grid, i + 1, x_t, x_0)
            steps_of_row.append((grid.t[i + 1], x_t + b / 2 * (eps_there - past[0]), eps_there))
        # The noise for the next step is added at the end of this one.
        t_of_last, last, eps_of_last = steps_of_row[-1]
        up = np.sqrt(max(raised[i + 1] ** 2 - level[i + 1] ** 2, 0.0)) * churn_noise
        scale = starts.alphas[i + 1] / grid.alphas[i + 1]
        steps_of_row[-1] = (t_of_last, scale * last + starts.alphas[i + 1] * up * z, eps_of_last)
        for n, (t_of_call, row, eps_of_call) in enumerate(steps_of_row):
            t.append(t_of_call)
            s.append(grid.t[i + 1] if n < len(steps_of_row) - 1 else start[i + 1])
            rows.append(row)
            remembers.append(eps_of_call)
    return table_of(np.array(t), np.array(s), rows, remembers)
