"""Reverse samplers as tables: a row of coefficients a network call, and one scan that walks any table.

Every sampler here is linear: x_s = c_x_0 * x_0_hat + c_x_t * x_t + sigma * z, and, for solvers of higher order,
a combination of what earlier rows remembered. A row holds both ends (t, s) of its step, so that no "previous t"
is ever computed; s = -1 is the clean image. This file has the ancestral and the DDIM tables, `solvers` the others.
"""

from typing import no_type_check

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.diffusion.denoiser import LEARNED_VARIANCES, VARIANCES, DenoiseFn, learned_range
from ddpm_jax.diffusion.rng import sample_keys, sample_noise
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.timestep_spacing import TimeGrid, time_grid
from ddpm_jax.runtime.errors import UserError, check_one_of


# A pytree's leaves may be shardings, shapes or scalars of a scan, so its fields are not checked in tests.
@no_type_check
@flax.struct.dataclass
class SamplerTable:
    """The rows of a sampler in the order in which they are walked, one a network call."""

    row: Int[Array, "R"]  # 0..R-1: the noise of a row is drawn from fold_in(sample's key, row + 1)
    t: Int[Array, "R"] | Float[Array, "R"]  # the step the network is called with; float where any is fractional
    s: Int[Array, "R"] | Float[Array, "R"]  # the step that the row ends at; -1 is x_0
    c_x_0: Float[Array, "R"]
    c_x_t: Float[Array, "R"]
    sigma: Float[Array, "R"]
    # Where the variance is learned: sigma is times exp((log_var_shift + log_var_scale * var_values) / 2).
    log_var_shift: Float[Array, "R"] | None = None
    log_var_scale: Float[Array, "R"] | None = None
    # Solvers of higher order: the weights of what the last K rows remembered, newest first, and what this row
    # remembers, r_x_0 * x_0_hat + r_x_t * x_t.
    c_history: Float[Array, "R K"] | None = None
    r_x_0: Float[Array, "R"] | None = None
    r_x_t: Float[Array, "R"] | None = None

    @property
    def num_calls(self) -> int:
        """R, the number of network calls."""
        return self.t.shape[0]

    @property
    def num_remembered(self) -> int:
        """K, how many earlier rows a row may look back to."""
        return 0 if self.c_history is None else self.c_history.shape[1]

    def rows(self, start: int, stop: int) -> "SamplerTable":
        """The rows start..stop-1 as a table: walking the parts one after another is walking the whole."""
        return jax.tree.map(lambda column: column[start:stop], self)


def make_table(t: np.ndarray, s: np.ndarray, **columns: np.ndarray) -> SamplerTable:
    """A table from float64 columns; cast once, here."""
    whole = np.all(t == np.rint(t)) and np.all(s == np.rint(s))
    dtype = jnp.int32 if whole else jnp.float32
    return SamplerTable(
        row=jnp.arange(t.size, dtype=jnp.int32),
        t=jnp.asarray(t, dtype),
        s=jnp.asarray(s, dtype),
        **{name: jnp.asarray(column, jnp.float32) for name, column in columns.items()},
    )


def ancestral_table(
    schedule: Schedule, *, steps: np.ndarray | None = None, variance: str = "fixed_large"
) -> SamplerTable:
    """x_s ~ p(x_s | x_t) = N(mu-tilde(x_t, x_0_hat), sigma^2 I) (Ho et al. 2020, algorithm 2).

    With `steps`, the process of the kept steps alone: its betas follow from the kept alpha-bar, and a learned range
    lies between its own beta-tilde and beta (Nichol and Dhariwal 2021, section 4). The last row adds no noise.

    Args:
      steps: the t to visit, falling; None for all T.
      variance: one of `diffusion.denoiser.VARIANCES`.

    Raises:
      UserError: steps that do not fall or leave 0..T-1, an unknown variance, or "learned", which is the variance of
        one step of all T, with fewer steps.
    """
    check_one_of("diffusion.variance", variance, VARIANCES)
    grid = time_grid(schedule, steps)
    if variance == "learned" and not np.array_equal(grid.t, np.arange(schedule.num_steps - 1, -2, -1)):
        raise UserError(
            f"diffusion.variance='learned' is that of one step of all {schedule.num_steps}: take "
            "sample.num_sampler_steps=0 for all, sample.sampler='ddim', or train with 'learned_range'"
        )
    abar_t, abar_s, alpha, beta = _transitions(grid)
    small, clean = beta * (1 - abar_s) / (1 - abar_t), grid.t[1:] < 0
    columns = {
        "c_x_0": beta * np.sqrt(abar_s) / (1 - abar_t),
        "c_x_t": (1 - abar_s) * np.sqrt(alpha) / (1 - abar_t),
        "sigma": np.where(clean, 0.0, np.sqrt(beta if variance == "fixed_large" else small)),
    }
    if variance in LEARNED_VARIANCES:
        columns["sigma"] = np.where(clean, 0.0, 1.0)
        shift, scale = np.zeros_like(beta), np.ones_like(beta)
        if variance == "learned_range":
            # The last row, which adds no noise, has beta-tilde = 0: any finite number will do there.
            shift, scale = learned_range(np.log(np.where(clean, beta, small)), np.log(beta))
        columns |= {"log_var_shift": shift, "log_var_scale": scale}
    return make_table(grid.t[:-1], grid.t[1:], **columns)


def _transitions(grid: TimeGrid) -> tuple[np.ndarray, ...]:
    """alpha-bar_t, alpha-bar_s, and alpha and beta of the step between, [S]."""
    abar = grid.alphas**2
    alpha = abar[:-1] / abar[1:]
    return abar[:-1], abar[1:], alpha, 1 - alpha


def ddim_table(schedule: Schedule, *, steps: np.ndarray | None = None, eta: float = 0.0) -> SamplerTable:
    """x_s = sqrt(abar_s) x_0_hat + sqrt(1 - abar_s - sigma^2) eps_hat + sigma z (Song et al. 2021, eq. 12).

    sigma is eta times the posterior's deviation (eq. 16); eps_hat is the one that belongs to x_0_hat, so a
    clipped x_0_hat changes both. eta = 0 is deterministic: Euler's method for the probability flow in
    sqrt(1 - abar)/sqrt(abar), and DPM-Solver++ of order 1. eta = 1 equals `ancestral_table`, "fixed_small".

    Args:
      steps: the t to visit, falling; None for all T.
      eta: >= 0; above 1 it may ask for more noise than x_s holds, which is refused.

    Raises:
      UserError: steps that do not fall or leave 0..T-1; eta negative or too large.
    """
    grid = time_grid(schedule, steps)
    abar_t, abar_s, alpha, beta = _transitions(grid)
    sigma = eta * np.sqrt((1 - abar_s) / (1 - abar_t) * beta)
    # 1 - abar_s - sigma^2, in a form that does not cancel at eta = 1. At the last row it and sigma are exactly 0.
    kept = alpha * (1 - abar_s) / (1 - abar_t)
    direction_var = (1 - abar_s) * ((1 - eta**2) + eta**2 * kept)
    if eta < 0 or np.any(direction_var < -1e-12):
        raise UserError(
            f"sample.eta must be at least 0 and leave sigma^2 <= 1 - alpha_bar; got {eta}: try 0 to 1"
        )
    c_eps = np.sqrt(np.maximum(direction_var, 0.0)) / np.sqrt(1 - abar_t)
    return make_table(
        grid.t[:-1], grid.t[1:], c_x_0=np.sqrt(abar_s) - c_eps * np.sqrt(abar_t), c_x_t=c_eps, sigma=sigma
    )


def initial_noise(keys: Key[Array, "B"], shape: tuple[int, ...]) -> Float[Array, "B *D"]:
    """x_T ~ N(0, I), [B, *shape], from fold_in(key, 0) of every sample."""
    return sample_noise(keys, 0, shape)


@no_type_check
@flax.struct.dataclass
class WalkState:
    """Where a walk stands between two rows."""

    x_t: Float[Array, "B *D"]
    history: tuple[Float[Array, "B *D"], ...]  # what the last K rows remembered, newest first


def begin_walk(table: SamplerTable, x_t: Float[Array, "B *D"]) -> WalkState:
    """The state before the first row of the whole table."""
    return WalkState(x_t, tuple(jnp.zeros_like(x_t) for _ in range(table.num_remembered)))


def walk_on(
    denoise_fn: DenoiseFn,
    table: SamplerTable,
    state: WalkState,
    keys: Key[Array, "B"],
    *,
    frame_ends: np.ndarray | None = None,
) -> WalkState | tuple[WalkState, Float[Array, "K B *D"]]:
    """Takes a walk through the next rows; see `walk`. For tables that are walked in parts."""
    slots, frames = None, None
    if frame_ends is not None:
        # A row that is no frame writes to slot K, past the end: dropped.
        slots = np.full(table.num_calls, len(frame_ends), np.int32)
        slots[frame_ends] = np.arange(len(frame_ends))
        frames = jnp.zeros((len(frame_ends), *state.x_t.shape), state.x_t.dtype)

    def one_row(carry, row_and_slot):
        state, frames = carry
        row, slot = row_and_slot
        x_t = state.x_t
        denoised = denoise_fn(x_t, jnp.full(x_t.shape[:1], row.t))
        sigma = row.sigma
        if row.log_var_shift is not None:
            sigma = sigma * jnp.exp(0.5 * (row.log_var_shift + row.log_var_scale * denoised.var_values))
        z = sample_noise(keys, row.row + 1, x_t.shape[1:])
        x_s = row.c_x_0 * denoised.x_0_hat + row.c_x_t * x_t + sigma * z
        for k, remembered in enumerate(state.history):
            x_s = x_s + row.c_history[k] * remembered
        history = state.history
        if history:
            history = (row.r_x_0 * denoised.x_0_hat + row.r_x_t * x_t, *history[:-1])
        return (WalkState(x_s, history), None if frames is None else frames.at[slot].set(x_s, mode="drop")), None

    (state, frames), _ = jax.lax.scan(one_row, (state, frames), (table, slots))
    return state if frames is None else (state, frames)


def walk(
    denoise_fn: DenoiseFn,
    table: SamplerTable,
    x_t: Float[Array, "B *D"],
    keys: Key[Array, "B"],
    *,
    frame_ends: np.ndarray | None = None,
) -> Float[Array, "B *D"] | tuple[Float[Array, "B *D"], Float[Array, "K B *D"]]:
    """Takes x_t through all rows of the table with one `lax.scan`; jit-compatible.

    Args:
      denoise_fn: (x_t [B, *D], t [B]) -> Denoised; t is int32, or float32 where the table's is.
      x_t: at the step of the first row; N(0, I) at T-1.
      keys: one a sample, of `sample_keys`.
      frame_ends: [K] distinct row numbers of this table, or None. With them also returns the x_s that these
        rows end with, [K, B, *D]; only those K are kept in memory.
    """
    walked = walk_on(denoise_fn, table, begin_walk(table, x_t), keys, frame_ends=frame_ends)
    return walked.x_t if frame_ends is None else (walked[0].x_t, walked[1])


def p_sample(
    denoise_fn: DenoiseFn,
    table: SamplerTable,
    *,
    key: Key[Array, ""],
    num_samples: int,
    shape: tuple[int, ...],
    num_frames: int = 0,
) -> Float[Array, "..."]:
    """Samples 0..num_samples-1 of the model, float32 [B, *shape]; jit-compatible.

    Args:
      key: the seed; sample n and its noise depend on it and n alone.
      shape: of one sample, such as (H, W, C).
      num_frames: if > 0, returns [num_frames + 1, B, *shape]: x_T, then the x_s of evenly spaced rows; the
        last is x_0. Only these are kept in memory.

    Raises:
      UserError: more frames than rows.
    """
    keys = sample_keys(key, jnp.arange(num_samples))
    x_T = initial_noise(keys, shape)
    if num_frames == 0:
        return walk(denoise_fn, table, x_T, keys)
    _, frames = walk(denoise_fn, table, x_T, keys, frame_ends=frame_ends(table.num_calls, num_frames))
    return jnp.concatenate([x_T[None], frames])


def frame_ends(num_rows: int, num_frames: int) -> np.ndarray:
    """`num_frames` evenly spaced row numbers in 0..num_rows-1, the last row always among them, int64."""
    if not 1 <= num_frames <= num_rows:
        raise UserError(
            f"the number of frames must be in 1..{num_rows} (the sampler's network calls); got {num_frames}"
        )
    return np.rint(np.linspace(0, num_rows, num_frames + 1)).astype(int)[1:] - 1
