"""Reverse samplers as tables: one row of coefficients per network call.

Every sampler here is linear: x_s = c_x_0 * x_0_hat + c_x_t * x_t + sigma * z, and, for solvers of higher order,
a combination of values that earlier rows remembered. A row has both ends (t, s) of its step, so that no "previous t"
is ever computed; s = -1 is the clean image. Each other file in this folder builds the table of one method;
`sampling_loop` runs any table.
"""

import dataclasses
from typing import no_type_check

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax.runtime.errors import UserError, arg

MAX_REMEMBERED = 4  # K of plms, which uses the longest history


# A pytree's leaves may be shardings, shapes or scalars of a scan, so its fields are not checked in tests.
@no_type_check
@flax.struct.dataclass
class SamplerTable:
    """The rows of a sampler in their order of execution, one per network call."""

    row: Int[Array, "R"]  # 0..R-1: the noise of a row is drawn from fold_in(sample's key, row + 1)
    t: Int[Array, "R"] | Float[Array, "R"]  # the step for the network call; float if any is fractional
    s: Int[Array, "R"] | Float[Array, "R"]  # the step at the end of the row; -1 is x_0
    c_x_0: Float[Array, "R"]
    c_x_t: Float[Array, "R"]
    sigma: Float[Array, "R"]
    # If the variance is learned, sigma is multiplied by exp((log_var_shift + log_var_scale * var_values) / 2).
    log_var_shift: Float[Array, "R"] | None = None
    log_var_scale: Float[Array, "R"] | None = None
    # The variance of the row, also of the last: the weight of `Denoised.shift`, times the same exp(...) squared if the
    # variance is learned. None: the sampler has no mean to shift.
    c_shift: Float[Array, "R"] | None = None
    # CFG++: c_x_0 less the signal at s, that is, the part of c_x_0 that stems from eps; it is moved to
    # `Denoised.x_0_reference`. None: the sampler cannot do that.
    c_x_0_reference: Float[Array, "R"] | None = None
    # Solvers of higher order: the weights of the values of the last K rows, newest first, and what this row
    # remembers, r_x_0 * x_0_hat + r_x_t * x_t.
    c_history: Float[Array, "R K"] | None = None
    r_x_0: Float[Array, "R"] | None = None
    r_x_t: Float[Array, "R"] | None = None
    # After the row and its edit x := rise_scale x + rise_noise z: back to a noisier step, without a network call. The z
    # is drawn from a key of its own. 1 and 0 in rows without a rise.
    rise_scale: Float[Array, "R"] | None = None
    rise_noise: Float[Array, "R"] | None = None

    @property
    def num_calls(self) -> int:
        """R, the number of network calls."""
        return self.t.shape[0]

    @property
    def num_remembered(self) -> int:
        """K, the number of earlier rows that a row may use."""
        return 0 if self.c_history is None else self.c_history.shape[1]

    def rows(self, start: int, stop: int) -> "SamplerTable":
        """The rows start..stop-1 as a table: running the parts one after another is the same as running the whole."""
        return jax.tree.map(lambda column: column[start:stop], self)

    def rows_at(self, t: int | float) -> "SamplerTable":
        """The rows that call the network at step t, as a table: one, or two of `heun_table`. For tables on the host.

        Raises:
          UserError: no row calls the network at t.
        """
        steps = np.asarray(self.t)
        found = steps == np.asarray(t, steps.dtype) if np.ndim(t) == 0 else np.zeros(steps.shape, bool)
        if not np.any(found):
            raise UserError(f"{arg('t')} must be a step that the sampler visits, of {steps.tolist()}; got {t!r}")
        return jax.tree.map(lambda column: column[found], self)

    def padded(
        self,
        num_rows: int,
        *,
        learns_variance: bool,
        shifts_mean: bool = False,
        renoises: bool = False,
        rises: bool = False,
    ) -> "SamplerTable":
        """The table in NumPy, padded with rows of zeros and with all columns, so that all samplers and numbers of steps
        have tables of equal shape: `sampling_loop.walk_rows` runs them with one compiled program.

        The padding changes no result: remembered values have weight 0, and the variance is multiplied by 1. Two types
        of t remain: whole steps and fractional ones.

        Args:
          num_rows: at least the present number of rows.
          learns_variance: whether the network outputs values for the variance.
          shifts_mean: whether the denoiser gives a `shift`; only tables with `c_shift` can apply it.
          renoises: whether the denoiser gives an `x_0_reference`; only tables with `c_x_0_reference` can apply it.
          rises: whether x rises after rows, as in `repaint_table`; a table without a rise may have the columns, too.

        Raises:
          ValueError: fewer rows than present, more history than MAX_REMEMBERED, a table with a learned variance for
            a network that does not output one, a table that cannot apply a shift or a reference, or one that rises
            where that is not asked for.
        """
        if shifts_mean and self.c_shift is None:
            raise ValueError("the table has no c_shift, so that the mean cannot be shifted")
        if renoises and self.c_x_0_reference is None:
            raise ValueError("the table has no c_x_0_reference, so that eps cannot be that of the reference")
        if self.rise_scale is not None and not rises:
            raise ValueError("the table has rise_scale, so that x rises after some rows: give rises=True")
        if self.log_var_shift is not None and not learns_variance:
            raise ValueError("the table is for a learned variance, but the network outputs none")
        if num_rows < self.num_calls or self.num_remembered > MAX_REMEMBERED:
            raise ValueError(
                f"{self.num_calls} rows that look back {self.num_remembered} do not fit in {num_rows} that look back "
                f"{MAX_REMEMBERED}"
            )
        more = num_rows - self.num_calls
        zeros = np.zeros(num_rows, np.float32)

        def longer(column: Array | None, missing: np.ndarray | None) -> np.ndarray | None:
            if column is None:
                return missing
            return np.pad(np.asarray(column), [(0, more)] + [(0, 0)] * (np.ndim(column) - 1))

        history = longer(self.c_history, np.zeros((num_rows, 0), np.float32))
        columns = {
            field.name: longer(getattr(self, field.name), zeros)
            for field in dataclasses.fields(self)
            if learns_variance or not field.name.startswith("log_var")
        }
        if not shifts_mean:
            columns["c_shift"] = None
        if not renoises:
            columns["c_x_0_reference"] = None
        if not rises:
            columns["rise_scale"] = columns["rise_noise"] = None
        elif self.rise_scale is None:
            columns["rise_scale"] = np.ones(num_rows, np.float32)
        columns["c_history"] = np.pad(history, ((0, 0), (0, MAX_REMEMBERED - self.num_remembered)))
        return SamplerTable(**columns)


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
