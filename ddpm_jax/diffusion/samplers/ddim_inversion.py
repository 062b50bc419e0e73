"""From an image to the noise that DDIM turns into it."""

import numpy as np

from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.solver_coefficients import basis, eps_of, flow, grid_with_signal, table_of
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.runtime.errors import UserError


def ddim_inversion_table(
    schedule: Schedule, *, steps: np.ndarray | None = None, num_fixed_point: int = 0
) -> SamplerTable:
    """From x_0 to the noise that DDIM (eta = 0) over the same steps would turn into it.

    A step t -> s of DDIM, x_s = c_x_0 x_0_hat(x_t, t) + c_x_t x_t, is solved for x_t: first with the eps_hat that is
    at hand, eps_hat(x_s, t) (Song et al. 2021, section 5.4; Dhariwal and Nichol 2021, appendix), then by
    `num_fixed_point` fixed-point iterations with eps_hat(x_t, t), each a network call more. With enough of them, and
    no clipping of x_0_hat, sampling gives the image back up to rounding, where the iteration contracts.

    Start from the image: `sample_loop(denoise_fn, table, x_0, keys)`.

    Args:
      steps: the t that DDIM visits, falling; None for all T.
      num_fixed_point: >= 0, iterations a step.

    Raises:
      UserError: steps that do not fall or leave 0..T-1; a start at alpha-bar = 0; num_fixed_point below 0.
    """
    if num_fixed_point < 0:
        raise UserError(f"num_fixed_point must be at least 0; got {num_fixed_point}")
    grid = grid_with_signal(schedule, steps, "ddim inversion")
    x_t, x_0, _, past = basis(1)
    t, s, rows, remembers = [], [], [], []
    for i in range(grid.num_steps - 1, -1, -1):
        # x_t = A x_s + B eps_hat(x_t, t); x_s is what the step starts from.
        a, b = flow(grid, i + 1, i)
        for n in range(num_fixed_point + 1):
            eps = eps_of(grid, i, x_t, x_0)
            # x_s times A is x_t less B times the eps of the iteration before, which the last row remembered.
            rows.append(a * x_t + b * eps if n == 0 else x_t + b * (eps - past[0]))
            remembers.append(eps)
            t.append(grid.t[i])
            s.append(grid.t[i])
    return table_of(np.array(t), np.array(s), rows, remembers)
