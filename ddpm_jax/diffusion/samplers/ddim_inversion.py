"""From an image to the noise that DDIM turns into it."""

import numpy as np

from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable, make_table
from ddpm_jax.diffusion.samplers.solver_coefficients import basis, eps_of, flow, grid_with_signal, table_of
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.timestep_spacing import TimeGrid
from ddpm_jax.runtime.errors import UserError, arg, check_between, check_one_of, whole_number

MAX_ROWS = 1_000_000  # the table is on the device, a network call for each row


def ddim_inversion_table(
    schedule: Schedule, *, steps: np.ndarray | None = None, num_fixed_point: int = 0, eps_at: str = "target"
) -> SamplerTable:
    """From x_0 to the noise that DDIM (eta = 0) over the same steps would turn into it.

    A step t -> s of DDIM, x_s = c_x_0 x_0_hat(x_t, t) + c_x_t x_t, is solved for x_t.

    eps_at="target": first with eps_hat(x_s, t), at the t to be reached, as diffusers' `DDIMInverseScheduler`, then by
    `num_fixed_point` fixed-point iterations with eps_hat(x_t, t), each with one more network call. With enough of them,
    and no clipping of x_0_hat, sampling gives the image back up to rounding, where the iteration contracts.

    eps_at="source": with eps_hat(x_s, s), an explicit Euler step of the probability flow (Song et al. 2021, section
    4.3), as `ddim_reverse_sample` of improved-diffusion and guided-diffusion has it. The image counts as x at the last
    of the steps, so there is one call fewer. Differs: theirs takes one more step, from T-1 to alpha-bar = 0.

    Start from the image: `sample_loop(denoise_fn, table, x_0, keys)`.

    Args:
      steps: the t that DDIM visits, falling; None for all T.
      num_fixed_point: >= 0, iterations per step; 0 with eps_at="source".
      eps_at: "target" or "source".

    Raises:
      UserError: steps that do not fall or leave 0..T-1; a start at alpha-bar = 0; num_fixed_point below 0, or above 0
        with "source"; fewer than two steps with "source".
    """
    check_one_of("eps_at", eps_at, ("target", "source"))
    num_fixed_point = whole_number("num_fixed_point", num_fixed_point)
    check_between("num_fixed_point", num_fixed_point, 0)
    grid = grid_with_signal(schedule, steps, "ddim inversion")
    if grid.num_steps * (num_fixed_point + 1) > MAX_ROWS:
        raise UserError(
            f"{arg('num_fixed_point')} must leave at most {MAX_ROWS:,} network calls; got {num_fixed_point} for each "
            f"of {grid.num_steps} steps: take fewer"
        )
    if eps_at == "source":
        return _with_eps_at_the_source(grid, num_fixed_point)
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


def _with_eps_at_the_source(grid: TimeGrid, num_fixed_point: int) -> SamplerTable:
    if num_fixed_point:
        raise UserError(f"{arg('num_fixed_point')} iterates towards {arg('eps_at')}='target'; got {num_fixed_point}")
    if grid.num_steps < 2:
        raise UserError(f"{arg('eps_at')}='source' needs at least two steps; got {grid.num_steps}")
    x_t, x_0, z, _ = basis(0)
    rows = []
    for i in range(grid.num_steps - 2, -1, -1):
        a, b = flow(grid, i + 1, i)
        rows.append(a * x_t + b * eps_of(grid, i + 1, x_t, x_0) + 0 * z)
    c_x_t, c_x_0, sigma = np.stack(rows, axis=1)
    points = grid.t[-2::-1]
    return make_table(points[:-1], points[1:], c_x_t=c_x_t, c_x_0=c_x_0, sigma=sigma)
