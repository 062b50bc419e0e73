"""One `lax.scan` through the rows of any sampler's table."""

from collections.abc import Callable
from typing import no_type_check

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.diffusion.denoiser import Denoised, DenoiseFn
from ddpm_jax.diffusion.rng import Purpose, purpose_key, sample_keys, sample_noise
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.runtime.errors import UserError, arg


def initial_noise(keys: Key[Array, "B"], shape: tuple[int, ...]) -> Float[Array, "B *D"]:
    """x_T ~ N(0, I), [B, *shape], from fold_in(key, 0) of every sample."""
    return sample_noise(keys, 0, shape)


# (x_s [B, *D], what the network said, the row of the table, the samples' keys) -> x_s.
EditFn = Callable[[Float[Array, "B *D"], Denoised, SamplerTable, Key[Array, "B"]], Float[Array, "B *D"]]


def edit_noise(keys: Key[Array, "B"], row: SamplerTable, shape: tuple[int, ...]) -> Float[Array, "B *D"]:
    """N(0, I) for an edit after a row, [B, *shape]; independent of the sampler's own noise."""
    return _noise_of_row(Purpose.EDIT, keys, row, shape)


def rise_noise(keys: Key[Array, "B"], row: SamplerTable, shape: tuple[int, ...]) -> Float[Array, "B *D"]:
    """N(0, I) of the rise after a row, [B, *shape]; independent of the sampler's own noise and of `edit_noise`."""
    return _noise_of_row(Purpose.RISE, keys, row, shape)


def _noise_of_row(
    purpose: Purpose, keys: Key[Array, "B"], row: SamplerTable, shape: tuple[int, ...]
) -> Float[Array, "B *D"]:
    of_row = jax.vmap(lambda key: purpose_key(key, purpose, row.row))(keys)
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(of_row)


def watching(callback: Callable[..., None], edit_fn: EditFn | None = None) -> EditFn:
    """An edit that changes nothing but passes each row to the host, after `edit_fn` if there is one.

    Args:
      callback: called with NumPy arrays: the number of the row, its t and s, x_s [B, *D], and x_0_hat [B, *D] as it was
        at t. On one device rows come in order; on several devices they may overtake each other. An exception in it ends
        the loop as an error of JAX.
    """

    def edit(
        x_s: Float[Array, "B *D"], denoised: Denoised, row: SamplerTable, keys: Key[Array, "B"]
    ) -> Float[Array, "B *D"]:
        if edit_fn is not None:
            x_s = edit_fn(x_s, denoised, row, keys)
        show = lambda *arrays: callback(*map(np.asarray, arrays))  # noqa: E731
        jax.debug.callback(show, row.row, row.t, row.s, x_s, denoised.x_0_hat)
        return x_s

    return edit


@no_type_check
@flax.struct.dataclass
class SamplerState:
    """The state of the sampler between rows."""

    x_t: Float[Array, "B *D"]
    history: tuple[Float[Array, "B *D"], ...]  # the values remembered by the last K rows, newest first
    # With self-conditioning, `Denoised.carry` of the last row, whatever the sampler: 0 before the first row.
    carry: Float[Array, "B *D"] | None = None


def init_sampler_state(
    table: SamplerTable, x_t: Float[Array, "B *D"], *, self_conditioning: bool = False
) -> SamplerState:
    """The state before the first row of the whole table."""
    history = tuple(jnp.zeros_like(x_t) for _ in range(table.num_remembered))
    return SamplerState(x_t, history, jnp.zeros_like(x_t) if self_conditioning else None)


def denoise_state(denoise_fn: DenoiseFn, state: SamplerState, t: Int[Array, ""] | Float[Array, ""]) -> Denoised:
    """What the denoiser says of x_t at step t, with the carry of the state.

    Raises:
      UserError: only one of the denoiser and the state has self-conditioning.
    """
    carried = () if state.carry is None else (state.carry,)
    denoised = denoise_fn(state.x_t, jnp.full(state.x_t.shape[:1], t), *carried)
    if (denoised.carry is None) != (state.carry is None):
        raise UserError(
            f"{arg('self_conditioning')} of the denoiser is {denoised.carry is not None} and that of the sampling loop "
            f"is {state.carry is not None}: give both the same"
        )
    return denoised


def scan_rows(
    denoise_fn: DenoiseFn,
    table: SamplerTable,
    state: SamplerState,
    keys: Key[Array, "B"],
    *,
    edit_fn: EditFn | None = None,
    frame_ends: np.ndarray | None = None,
    noises: Float[Array, "..."] | None = None,  # [R, B, *D]
) -> SamplerState | tuple[SamplerState, Float[Array, "K B *D"]]:
    """Applies the next rows to x_t; see `sample_loop`. For tables that are split into chunks."""
    if noises is not None and noises.shape != (table.num_calls, *state.x_t.shape):
        raise UserError(f"{arg('noises')} must be {[table.num_calls, *state.x_t.shape]}; got {list(noises.shape)}")
    slots, frames = None, None
    if frame_ends is not None:
        # A row that is not a frame writes to slot K, past the end, which is dropped.
        slots = np.full(table.num_calls, len(frame_ends), np.int32)
        slots[frame_ends] = np.arange(len(frame_ends))
        frames = jnp.zeros((len(frame_ends), *state.x_t.shape), state.x_t.dtype)

    def one_row(carry, of_row):
        state, frames = carry
        row, slot, noise = of_row
        state = _after_row(denoise_fn, row, state, keys, edit_fn, noise)
        return (state, None if frames is None else frames.at[slot].set(state.x_t, mode="drop")), None

    (state, frames), _ = jax.lax.scan(one_row, (state, frames), (table, slots, noises))
    return state if frames is None else (state, frames)


def walk_rows(
    denoise_fn: DenoiseFn,
    table: SamplerTable,
    num_rows: Int[Array, ""],
    state: SamplerState,
    keys: Key[Array, "B"],
    *,
    edit_fn: EditFn | None = None,
) -> SamplerState:
    """Applies the first `num_rows` rows to x_t: like `scan_rows`, but the number is known only on the device.

    Args:
      table: from `SamplerTable.padded`, like the one that `state` was made for.
    """

    def one_row(i: Int[Array, ""], state: SamplerState) -> SamplerState:
        row = jax.tree.map(lambda column: jnp.asarray(column)[i], table)
        return _after_row(denoise_fn, row, state, keys, edit_fn)

    return jax.lax.fori_loop(0, num_rows, one_row, state)


def _after_row(
    denoise_fn: DenoiseFn,
    row: SamplerTable,
    state: SamplerState,
    keys: Key[Array, "B"],
    edit_fn: EditFn | None,
    z: Float[Array, "B *D"] | None = None,
) -> SamplerState:
    x_t, denoised = state.x_t, denoise_state(denoise_fn, state, row.t)
    sigma = row.sigma
    if row.log_var_shift is not None:
        learned = jnp.exp(0.5 * (row.log_var_shift + row.log_var_scale * denoised.var_values))
        sigma = jnp.where(sigma > 0, sigma * learned, 0.0)  # no noise in the last row, whatever the network says
    if z is None:
        z = sample_noise(keys, row.row + 1, x_t.shape[1:])
    x_s = row.c_x_0 * denoised.x_0_hat + row.c_x_t * x_t + sigma * z
    if denoised.shift is not None:
        x_s = x_s + _variance(row, denoised) * denoised.shift
    if denoised.x_0_reference is not None:
        if row.c_x_0_reference is None:
            raise UserError(f"only `ancestral_table` and `ddim_table` can {arg('renoise')} with the reference (CFG++)")
        x_s = x_s + row.c_x_0_reference * (denoised.x_0_reference - denoised.x_0_hat)
    for k, remembered in enumerate(state.history):
        x_s = x_s + row.c_history[k] * remembered
    if denoised.x_s_shift is not None:
        x_s = x_s + denoised.x_s_shift
    if edit_fn is not None:
        x_s = edit_fn(x_s, denoised, row, keys)
    if row.rise_scale is not None:
        x_s = row.rise_scale * x_s + row.rise_noise * rise_noise(keys, row, x_t.shape[1:])
    history = state.history
    if history:
        history = (row.r_x_0 * denoised.x_0_hat + row.r_x_t * x_t, *history[:-1])
    return SamplerState(x_s, history, denoised.carry)


def _variance(row: SamplerTable, denoised: Denoised) -> Float[Array, "..."]:
    """The variance of p(x_s | x_t), by which a gradient shifts its mean."""
    if row.c_shift is None:
        raise UserError(
            f"only `ancestral_table` can apply a {arg('mean_shift_fn')}; for other samplers give `gradient_guidance` "
            f"as {arg('guide')}"
        )
    if row.log_var_shift is None:
        return row.c_shift
    return row.c_shift * jnp.exp(row.log_var_shift + row.log_var_scale * denoised.var_values)


def sample_loop(
    denoise_fn: DenoiseFn,
    table: SamplerTable,
    x_t: Float[Array, "B *D"],
    keys: Key[Array, "B"],
    *,
    edit_fn: EditFn | None = None,
    frame_ends: np.ndarray | None = None,
    noises: Float[Array, "..."] | None = None,  # [R, B, *D]
    self_conditioning: bool = False,
) -> Float[Array, "B *D"] | tuple[Float[Array, "B *D"], Float[Array, "K B *D"]]:
    """Applies all rows of the table to x_t with one `lax.scan`; jit-compatible.

    Args:
      denoise_fn: (x_t [B, *D], t [B]) -> Denoised; t is int32, or float32 if the table's t is. With self_conditioning
        (x_t, t, carry).
      x_t: at the step of the first row; N(0, I) at T-1.
      keys: one per sample, from `sample_keys`.
      edit_fn: (x_s, denoised, row, keys) -> x_s after each row, to put back known parts of the result. `row` is the
        row of the table. The noise levels at its ends are `Process.levels(row.t)` and `Process.levels(row.s)`; noise is
        drawn with `edit_noise(keys, row, shape)`.
      frame_ends: [K] distinct row numbers of this table, or None. If given, the x_s after these rows are returned as
        well, [K, B, *D]; only those K are kept in memory.
      noises: z of each row, in place of what is drawn from the keys: to compare with another code on its noise. Edits
        and rises still draw theirs.
      self_conditioning: each call of the denoiser sees the x_0_hat of the row before, 0 in the first row. Of a sampler
        with two rows per step, such as `heun_table`, the second sees that of the first. As for `make_denoiser`.

    Raises:
      UserError: the denoiser has self-conditioning and the loop has not, or the reverse.
    """
    state = init_sampler_state(table, x_t, self_conditioning=self_conditioning)
    walked = scan_rows(denoise_fn, table, state, keys, edit_fn=edit_fn, frame_ends=frame_ends, noises=noises)
    return walked.x_t if frame_ends is None else (walked[0].x_t, walked[1])


def p_sample_loop(
    denoise_fn: DenoiseFn,
    table: SamplerTable,
    *,
    key: Key[Array, ""],
    num_samples: int,
    shape: tuple[int, ...],
    edit_fn: EditFn | None = None,
    num_frames: int = 0,
    self_conditioning: bool = False,
) -> Float[Array, "..."]:
    """Samples 0..num_samples-1 of the model, float32 [B, *shape]; jit-compatible.

    Args:
      key: the seed; sample n and its noise depend only on the seed and on n.
      shape: of one sample, such as (H, W, C).
      edit_fn: see `sample_loop`.
      num_frames: if > 0, returns [num_frames + 1, B, *shape]: x_T, then x_s after evenly spaced rows; the
        last is x_0. Only these are kept in memory.
      self_conditioning: see `sample_loop`.

    Raises:
      UserError: more frames than rows; self_conditioning is not that of the denoiser.
    """
    keys = sample_keys(key, jnp.arange(num_samples))
    x_T = initial_noise(keys, shape)
    if num_frames == 0:
        return sample_loop(denoise_fn, table, x_T, keys, edit_fn=edit_fn, self_conditioning=self_conditioning)
    ends = frame_ends(table.num_calls, num_frames)
    _, frames = sample_loop(
        denoise_fn, table, x_T, keys, edit_fn=edit_fn, frame_ends=ends, self_conditioning=self_conditioning
    )
    return jnp.concatenate([x_T[None], frames])


def frame_ends(num_rows: int, num_frames: int) -> np.ndarray:
    """`num_frames` evenly spaced row numbers in 0..num_rows-1, always including the last row, int64."""
    if not 1 <= num_frames <= num_rows:
        raise UserError(
            f"the number of frames must be in 1..{num_rows} (the sampler's network calls); got {num_frames}"
        )
    return np.rint(np.linspace(0, num_rows, num_frames + 1)).astype(int)[1:] - 1
