"""Solvers of higher order as tables: DPM-Solver++, UniPC, PLMS, Heun (EDM), and the inversion of DDIM.

All are linear in x_t, x_0_hat, noise and what earlier rows remembered. So each quantity here is a vector of weights
on these (`_basis`), and a formula of a paper, written with such vectors, gives the row of the table. On the host, in
float64. lambda = log(alpha / sigma) is half the log SNR, h the step in lambda.
"""

from collections.abc import Sequence

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.respacing import TimeGrid, step_at_half_log_snr, time_grid
from ddpm_jax.samplers import SamplerTable, make_table
from ddpm_jax.schedules import Schedule

Weights = np.ndarray  # [3 + K], float64


def _basis(num_remembered: int) -> tuple[Weights, Weights, Weights, list[Weights]]:
    """x_t, x_0_hat, z, and what the last rows remembered, newest first."""
    x_t, x_0, z, *remembered = np.eye(3 + num_remembered)
    return x_t, x_0, z, remembered


def _table(
    t: np.ndarray, s: np.ndarray, rows: Sequence[Weights], remembers: Sequence[Weights]
) -> SamplerTable:
    rows, remembers = np.stack(rows), np.stack(remembers)
    return make_table(
        t, s, c_x_t=rows[:, 0], c_x_0=rows[:, 1], sigma=rows[:, 2], c_history=rows[:, 3:],
        r_x_t=remembers[:, 0], r_x_0=remembers[:, 1],
    )  # fmt: skip


def _half_log_snr(grid: TimeGrid) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(grid.alphas) - np.log(grid.sigmas)


def _grid_with_signal(schedule: Schedule, steps: np.ndarray | None, sampler: str) -> TimeGrid:
    """The grid; refused where it starts at alpha-bar = 0, at which these formulas have no value."""
    grid = time_grid(schedule, steps)
    if grid.alphas[0] == 0:
        raise UserError(
            f"sample.sampler={sampler!r} cannot start where alpha-bar is 0: take 'ancestral', 'ddim' or 'dpmpp_2m'"
        )
    return grid


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
    second difference, as the authors' code has it. The first rows are of lower order, for want of a past, and so is
    the last, which goes to sigma = 0; with fewer than 15 steps order 3 lowers the last but one as well.

    Args:
      steps: the t to visit, falling; None for all T.
      order: 1 (DDIM, eta = 0, where not `sde`), 2 or 3.
      full_order: for order 3. The authors' code gives the second difference half the weight of Taylor's series,
        which leaves a step of it with an error of h^3, as order 2; True gives it the whole weight, h^4.

    Raises:
      UserError: steps that do not fall or leave 0..T-1, or another order.
    """
    if order not in ((1, 2) if sde else (1, 2, 3)):
        raise UserError(f"the order of DPM-Solver++ must be 1, 2 or, without sde, 3; got {order}")
    grid = time_grid(schedule, steps)
    half_log_snr = _half_log_snr(grid)
    x_t, x_0, z, past = _basis(max(order - 1, 1))
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
    return _table(grid.t[:-1], grid.t[1:], rows, [x_0] * num_rows)


def unipc_table(schedule: Schedule, *, steps: np.ndarray | None = None, order: int = 2) -> SamplerTable:
    """UniPC, the variant B_2 with a predictor and a corrector of the same order (Zhao et al. 2023, algorithms 5, 6).

    The corrector costs no network call: what a row sees at its x_t, which the row before predicted, first mends that
    x_t. The last rows are of lower order, the last one, which goes to sigma = 0, of order 1.

    Args:
      steps: the t to visit, falling; None for all T.
      order: 1, 2 or 3.

    Raises:
      UserError: steps that do not fall or leave 0..T-1, a start at alpha-bar = 0, or another order.
    """
    if order not in (1, 2, 3):
        raise UserError(f"the order of UniPC must be 1, 2 or 3; got {order}")
    grid = _grid_with_signal(schedule, steps, "unipc")
    half_log_snr = _half_log_snr(grid)
    x_t, x_0, _, past = _basis(order)
    rows, num_rows = [], grid.num_steps
    orders = [min(order, num_rows - i, i + 1) for i in range(num_rows)]
    for i in range(num_rows):
        corrected, data = x_t, [x_0, *past]
        if i > 0:  # replaces the predictor's part of the row before by the corrector's
            change = -grid.alphas[i] * np.expm1(-(half_log_snr[i] - half_log_snr[i - 1]))
            corrected = x_t + change * (
                _unipc_slope(half_log_snr, i - 1, orders[i - 1], past, x_0)
                - _unipc_slope(half_log_snr, i - 1, orders[i - 1], past, None)
            )
        change = grid.alphas[i + 1] - grid.sigmas[i + 1] * grid.alphas[i] / grid.sigmas[i]  # -alpha_s expm1(-h)
        row = grid.sigmas[i + 1] / grid.sigmas[i] * corrected + change * x_0
        rows.append(row + change * _unipc_slope(half_log_snr, i, orders[i], data, None))
    return _table(grid.t[:-1], grid.t[1:], rows, [x_0] * num_rows)


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
    # For one unknown the papers' code takes 1/2, the limit h -> 0, in place of the solution.
    a = np.array([0.5])
    if len(r) > 1:
        right, phi, factorial = [], np.expm1(-h) / -h - 1, 1
        for k in range(1, len(r) + 1):
            right.append(phi * factorial / np.expm1(-h))
            factorial *= k + 1
            phi = phi / -h - 1 / factorial
        a = np.linalg.solve(np.vander(r, increasing=True).T, right)
    return sum(weight * slope for weight, slope in zip(a, slopes, strict=True))


def _flow(grid: TimeGrid, i: int, j: int) -> tuple[float, float]:
    """(A, B): with a constant eps, the probability flow takes x at point i to A x + B eps at point j."""
    ratio = grid.alphas[j] / grid.alphas[i]
    return ratio, grid.sigmas[j] - ratio * grid.sigmas[i]


def _eps(grid: TimeGrid, i: int, x_t: Weights, x_0: Weights) -> Weights:
    """eps_hat = (x_t - alpha x_0_hat) / sigma at point i."""
    return (x_t - grid.alphas[i] * x_0) / grid.sigmas[i]


ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def plms_table(schedule: Schedule, *, steps: np.ndarray | None = None) -> SamplerTable:
    """PLMS: the fourth-order Adams-Bashforth combination of the last eps_hat in DDIM's step (Liu et al. 2022).

    The first step is Heun's, for want of a past: S steps take S + 1 network calls. The three after it are of order
    2, 3 and 4. Differs: the paper starts with Runge-Kutta steps; this is the start of latent diffusion's PLMS.

    Args:
      steps: the t to visit, falling; None for all T.

    Raises:
      UserError: steps that do not fall or leave 0..T-1; a start at alpha-bar = 0.
    """
    grid = _grid_with_signal(schedule, steps, "plms")
    x_t, x_0, _, past = _basis(4)
    t, s, rows, remembers = [], [], [], []

    def add(i: int, j: int, row: Weights) -> None:
        t.append(grid.t[i])
        s.append(grid.t[j])
        rows.append(row)
        remembers.append(_eps(grid, i, x_t, x_0))

    seen: list[int] = []  # the rows whose eps is used later, newest first
    for i in range(grid.num_steps):
        a, b = _flow(grid, i, i + 1)
        eps_then = [past[len(rows) - 1 - n] for n in seen[:3]]
        weights = ADAMS_BASHFORTH[len(eps_then) + 1]
        eps = [_eps(grid, i, x_t, x_0), *eps_then]
        seen.insert(0, len(rows))
        add(i, i + 1, a * x_t + b * sum(w * e for w, e in zip(weights, eps, strict=True)))
        if i == 0 and grid.num_steps > 1:  # x_s again, with the mean of the slopes at both ends
            add(1, 1, x_t + b / 2 * (_eps(grid, 1, x_t, x_0) - past[0]))
    return _table(np.array(t), np.array(s), rows, remembers)


def heun_table(
    schedule: Schedule,
    *,
    steps: np.ndarray | None = None,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = np.inf,
    churn_noise: float = 1.0,
) -> SamplerTable:
    """Heun's second-order method in sigma/alpha, with churn the stochastic sampler of EDM.

    Euler to the next point, then again with the mean of both slopes; the last step, to sigma = 0, is Euler's. S
    steps take 2S - 1 network calls (Karras et al. 2022, algorithms 1 and 2, whose x and sigma are x_t/alpha and
    sigma/alpha here). churn is S_churn: before the step from a noise level sigma, noise is added up to
    sigma (1 + gamma), gamma = min(churn/S, sqrt(2) - 1), where sigma is in churn_min..churn_max; churn_noise
    is S_noise. Differs: no noise is added before the first step, which starts with the most noise there is.

    Args:
      steps: the t to visit, falling, as of `spaced_steps(..., "karras")`; None for all T.
      churn: >= 0.

    Raises:
      UserError: steps that do not fall or leave 0..T-1; a start at alpha-bar = 0; a negative churn.
    """
    if not (churn >= 0 and churn_noise >= 0):
        raise UserError(f"sample.churn and sample.churn_noise must be at least 0; got {churn} and {churn_noise}")
    grid = _grid_with_signal(schedule, steps, "heun")
    num_rows = grid.num_steps
    level = grid.sigmas / grid.alphas
    raised, start = level.copy(), grid.t.astype(np.float64)
    if churn > 0:
        inside = (level >= churn_min) & (level <= churn_max) & (np.arange(num_rows + 1) > 0) & (level > 0)
        raised[inside] *= 1 + min(churn / num_rows, np.sqrt(2) - 1)
        raised = np.minimum(raised, level[0])
        start[inside] = step_at_half_log_snr(schedule, -np.log(raised[inside]))
    alphas = (1 + raised**2) ** -0.5  # where a step starts, noise added
    starts = TimeGrid(start, alphas, raised * alphas)
    x_t, x_0, z, past = _basis(1)
    t, s, rows, remembers = [], [], [], []
    for i in range(num_rows):
        ratio = grid.alphas[i + 1] / starts.alphas[i]
        b = grid.sigmas[i + 1] - ratio * starts.sigmas[i]
        eps = _eps(starts, i, x_t, x_0)
        steps_of_row = [(start[i], ratio * x_t + b * eps, eps)]
        if i < num_rows - 1:
            eps_there = _eps(grid, i + 1, x_t, x_0)
            steps_of_row.append((grid.t[i + 1], x_t + b / 2 * (eps_there - past[0]), eps_there))
        # The noise before the next step is added at the end of this one.
        t_of_last, last, eps_of_last = steps_of_row[-1]
        up = np.sqrt(max(raised[i + 1] ** 2 - level[i + 1] ** 2, 0.0)) * churn_noise
        scale = starts.alphas[i + 1] / grid.alphas[i + 1]
        steps_of_row[-1] = (t_of_last, scale * last + starts.alphas[i + 1] * up * z, eps_of_last)
        for n, (t_of_call, row, eps_of_call) in enumerate(steps_of_row):
            t.append(t_of_call)
            s.append(grid.t[i + 1] if n < len(steps_of_row) - 1 else start[i + 1])
            rows.append(row)
            remembers.append(eps_of_call)
    return _table(np.array(t), np.array(s), rows, remembers)


def ddim_inversion_table(
    schedule: Schedule, *, steps: np.ndarray | None = None, num_fixed_point: int = 0
) -> SamplerTable:
    """From x_0 to the noise that DDIM (eta = 0) over the same steps would turn into it.

    A step t -> s of DDIM, x_s = c_x_0 x_0_hat(x_t, t) + c_x_t x_t, is solved for x_t: first with the eps_hat that is
    at hand, eps_hat(x_s, t) (Song et al. 2021, section 5.4; Dhariwal and Nichol 2021, appendix), then by
    `num_fixed_point` fixed-point iterations with eps_hat(x_t, t), each a network call more. With enough of them, and
    no clipping of x_0_hat, sampling gives the image back up to rounding, where the iteration contracts.

    Walk it from the image: `walk(denoise_fn, table, x_0, keys)`.

    Args:
      steps: the t that DDIM visits, falling; None for all T.
      num_fixed_point: >= 0, iterations a step.

    Raises:
      UserError: steps that do not fall or leave 0..T-1; a start at alpha-bar = 0; num_fixed_point below 0.
    """
    if num_fixed_point < 0:
        raise UserError(f"num_fixed_point must be at least 0; got {num_fixed_point}")
    grid = _grid_with_signal(schedule, steps, "ddim inversion")
    x_t, x_0, _, past = _basis(1)
    t, s, rows, remembers = [], [], [], []
    for i in range(grid.num_steps - 1, -1, -1):
        # x_t = A x_s + B eps_hat(x_t, t); x_s is what the step starts from.
        a, b = _flow(grid, i + 1, i)
        for n in range(num_fixed_point + 1):
            eps = _eps(grid, i, x_t, x_0)
            # x_s times A is x_t less B times the eps of the iteration before, which the last row remembered.
            rows.append(a * x_t + b * eps if n == 0 else x_t + b * (eps - past[0]))
            remembers.append(eps)
            t.append(grid.t[i])
            s.append(grid.t[i])
    return _table(np.array(t), np.array(s), rows, remembers)
