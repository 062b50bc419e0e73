"""Reverse samplers as tables: a row of coefficients a step, and one scan that walks any table.

Every sampler here is x_s = c_x_0 * x_0_hat + c_x_t * x_t + sigma * z. A row holds both ends (t, s) of its
step, so that no "previous t" is ever computed; s = -1 is the clean image.
"""

from typing import no_type_check

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.diffusion import VARIANCES, DenoiseFn
from ddpm_jax.errors import UserError, check_one_of
from ddpm_jax.keys import sample_keys, sample_noise
from ddpm_jax.schedules import Schedule

SAMPLERS = ("ancestral", "ddim")
SPACINGS = ("uniform", "quadratic")


# A pytree's leaves may be shardings, shapes or scalars of a scan, so its fields are not checked in tests.
@no_type_check
@flax.struct.dataclass
class SamplerTable:
    """The rows of a sampler in the order in which they are walked, each [S]."""

    row: Int[Array, "S"]  # 0..S-1: the noise of a step is drawn from fold_in(sample's key, row + 1)
    t: Int[Array, "S"]  # the step the network is called with
    s: Int[Array, "S"]  # the step that the row ends at; -1 is x_0
    c_x_0: Float[Array, "S"]
    c_x_t: Float[Array, "S"]
    sigma: Float[Array, "S"]

    @property
    def num_sampler_steps(self) -> int:
        """S, the number of network calls."""
        return self.t.shape[0]

    def rows(self, start: int, stop: int) -> "SamplerTable":
        """The rows start..stop-1 as a table: walking the parts one after another is walking the whole."""
        return jax.tree.map(lambda column: column[start:stop], self)


def spaced_steps(num_steps: int, num_sampler_steps: int, spacing: str = "uniform") -> np.ndarray:
    """The steps t that a strided sampler visits, descending int64 [S], both 0 and T-1 among them.

    Args:
      num_steps: T.
      num_sampler_steps: S in 1..T; 1 gives [T-1].
      spacing: "uniform", or "quadratic" (denser near 0; Song et al. 2021, appendix D.2).

    Raises:
      UserError: S outside 1..T, an unknown spacing, or a quadratic spacing that would visit a step twice.

    Example:
      >>> spaced_steps(1000, 5)
      array([999, 749, 500, 250,   0])
    """
    check_one_of("sample.spacing", spacing, SPACINGS)
    if not 1 <= num_sampler_steps <= num_steps:
        raise UserError(f"sample.num_sampler_steps must be in 1..{num_steps} (T); got {num_sampler_steps}")
    if num_sampler_steps == 1:
        return np.array([num_steps - 1])
    fractions = np.linspace(1, 0, num_sampler_steps)
    steps = np.rint((num_steps - 1) * (fractions if spacing == "uniform" else fractions**2)).astype(np.int64)
    if np.any(np.diff(steps) >= 0):
        raise UserError(
            f"sample.spacing='quadratic' with {num_sampler_steps} of {num_steps} steps would visit a step "
            "twice: take fewer sample.num_sampler_steps or 'uniform'"
        )
    return steps


def _ends(schedule: Schedule, steps: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """t, s, alpha-bar_t and alpha-bar_s of every row, float64 on the host."""
    num_steps = schedule.num_steps
    t = np.arange(num_steps)[::-1] if steps is None else np.asarray(steps)
    whole = t.ndim == 1 and t.size >= 1 and np.issubdtype(t.dtype, np.integer)
    if not whole or np.any(np.diff(t) >= 0) or t[0] >= num_steps or t[-1] < 0:
        raise UserError(
            f"steps must be a falling list of whole numbers in 0..{num_steps - 1}; got {t.tolist()}"
        )
    s = np.append(t[1:], -1)
    alphas_bar = np.append(schedule.host_alphas_bar, 1.0)  # index -1: the clean image
    return t, s, alphas_bar[t], alphas_bar[s]


def _table(t: np.ndarray, s: np.ndarray, **columns: np.ndarray) -> SamplerTable:
    whole = {"row": np.arange(t.size), "t": t, "s": s}
    return SamplerTable(
        **{name: jnp.asarray(column, jnp.int32) for name, column in whole.items()},
        **{name: jnp.asarray(column, jnp.float32) for name, column in columns.items()},
    )


def ancestral_table(
    schedule: Schedule, *, steps: np.ndarray | None = None, variance: str = "fixed_large"
) -> SamplerTable:
    """x_s ~ p(x_s | x_t) = N(mu-tilde(x_t, x_0_hat), sigma^2 I) (Ho et al. 2020, algorithm 2).

    With `steps`, the process of the kept steps alone: its betas follow from the kept alpha-bar (Nichol and
    Dhariwal 2021, section 4). The last row adds no noise.

    Args:
      steps: the t to visit, descending; None for all T.
      variance: "fixed_small" (beta-tilde) or "fixed_large" (beta).

    Raises:
      UserError: steps that do not fall or leave 0..T-1, or an unknown variance.
    """
    check_one_of("diffusion.variance", variance, VARIANCES)
    t, s, abar_t, abar_s = _ends(schedule, steps)
    alpha = abar_t / abar_s
    beta = 1 - alpha
    var = beta if variance == "fixed_large" else beta * (1 - abar_s) / (1 - abar_t)
    return _table(
        t,
        s,
        c_x_0=beta * np.sqrt(abar_s) / (1 - abar_t),
        c_x_t=(1 - abar_s) * np.sqrt(alpha) / (1 - abar_t),
        sigma=np.where(s < 0, 0.0, np.sqrt(var)),
    )


def ddim_table(schedule: Schedule, *, steps: np.ndarray | None = None, eta: float = 0.0) -> SamplerTable:
    """x_s = sqrt(abar_s) x_0_hat + sqrt(1 - abar_s - sigma^2) eps_hat + sigma z (Song et al. 2021, eq. 12).

    sigma is eta times the posterior's deviation (eq. 16); eps_hat is the one that belongs to x_0_hat, so a
    clipped x_0_hat changes both. eta = 0 is deterministic, eta = 1 equals `ancestral_table`, "fixed_small".

    Args:
      steps: the t to visit, descending; None for all T.
      eta: >= 0; above 1 it may ask for more noise than x_s holds, which is refused.

    Raises:
      UserError: steps that do not fall or leave 0..T-1; eta negative or too large.
    """
    t, s, abar_t, abar_s = _ends(schedule, steps)
    sigma = eta * np.sqrt((1 - abar_s) / (1 - abar_t) * (1 - abar_t / abar_s))
    # 1 - abar_s - sigma^2, in a form that does not cancel at eta = 1. At the last row it and sigma are exactly 0.
    kept = (abar_t / abar_s) * (1 - abar_s) / (1 - abar_t)
    direction_var = (1 - abar_s) * ((1 - eta**2) + eta**2 * kept)
    if eta < 0 or np.any(direction_var < -1e-12):
        raise UserError(
            f"sample.eta must be at least 0 and leave sigma^2 <= 1 - alpha_bar; got {eta}: try 0 to 1"
        )
    c_eps = np.sqrt(np.maximum(direction_var, 0.0)) / np.sqrt(1 - abar_t)
    return _table(t, s, c_x_0=np.sqrt(abar_s) - c_eps * np.sqrt(abar_t), c_x_t=c_eps, sigma=sigma)


def initial_noise(keys: Key[Array, "B"], shape: tuple[int, ...]) -> Float[Array, "B *D"]:
    """x_T ~ N(0, I), [B, *shape], from fold_in(key, 0) of every sample."""
    return sample_noise(keys, 0, shape)


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
      denoise_fn: (x_t [B, *D], t int32 [B]) -> Denoised.
      x_t: at the step of the first row; N(0, I) at T-1.
      keys: one a sample, of `sample_keys`.
      frame_ends: [K] distinct row numbers of this table, or None. With them also returns the x_s that these
        rows end with, [K, B, *D]; only those K are kept in memory.
    """
    slots, frames = None, None
    if frame_ends is not None:
        # A row that is no frame writes to slot K, past the end: dropped.
        slots = np.full(table.num_sampler_steps, len(frame_ends), np.int32)
        slots[frame_ends] = np.arange(len(frame_ends))
        frames = jnp.zeros((len(frame_ends), *x_t.shape), x_t.dtype)

    def one_row(carry, row_and_slot):
        x_t, frames = carry
        row, slot = row_and_slot
        t = jnp.full(x_t.shape[:1], row.t, jnp.int32)
        z = sample_noise(keys, row.row + 1, x_t.shape[1:])
        x_s = row.c_x_0 * denoise_fn(x_t, t).x_0_hat + row.c_x_t * x_t + row.sigma * z
        return (x_s, None if frames is None else frames.at[slot].set(x_s, mode="drop")), None

    (x_s, frames), _ = jax.lax.scan(one_row, (x_t, frames), (table, slots))
    return x_s if frames is None else (x_s, frames)


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
    _, frames = walk(denoise_fn, table, x_T, keys, frame_ends=frame_ends(table.num_sampler_steps, num_frames))
    return jnp.concatenate([x_T[None], frames])


def frame_ends(num_rows: int, num_frames: int) -> np.ndarray:
    """`num_frames` evenly spaced row numbers in 0..num_rows-1, the last row always among them, int64."""
    if not 1 <= num_frames <= num_rows:
        raise UserError(
            f"the number of frames must be in 1..{num_rows} (the sampler's steps); got {num_frames}"
        )
    return np.rint(np.linspace(0, num_rows, num_frames + 1)).astype(int)[1:] - 1
