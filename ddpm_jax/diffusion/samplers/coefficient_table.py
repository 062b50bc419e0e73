"""Reverse samplers as tables: a row of coefficients a network call.

Every sampler here is linear: x_s = c_x_0 * x_0_hat + c_x_t * x_t + sigma * z, and, for solvers of higher order,
a combination of what earlier rows remembered. A row holds both ends (t, s) of its step, so that no "previous t"
is ever computed; s = -1 is the clean image. Each other file of this folder makes the table of one method;
`sampling_loop` walks any table.
"""

import dataclasses
from typing import no_type_check

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax.runtime.errors import UserError, arg

MAX_REMEMBERED = 4  # K of the solver that looks back furthest, plms


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

    def rows_at(self, t: int | float) -> "SamplerTable":
        """The rows that call the network at step t, as a table: one, or two of `heun_table`. For tables on the host.

        Raises:
          UserError: no row calls the network at t.
        """
        steps = np.asarray(self.t)
        if not np.any(steps == t):
            raise UserError(f"{arg('t')} must be a step that the sampler visits, of {steps.tolist()}; got {t}")
        return jax.tree.map(lambda column: column[steps == t], self)

    def padded(self, num_rows: int, *, learns_variance: bool) -> "SamplerTable":
        """The table in NumPy with more rows, of zeros, and with all columns, so that all samplers and numbers of steps
        have tables of one shape: `sampling_loop.walk_rows` takes them with one compiled program.

        What is added changes no result: weights of 0 on what is remembered, a variance that is times 1. Two types of t
        stay two: whole steps and fractional ones.

        Args:
          num_rows: at least as many as there are.
          learns_variance: whether the network gives values for it.

        Raises:
          ValueError: fewer rows than there are, more that is remembered than MAX_REMEMBERED, or a table with a learned
            variance for a network that gives none.
        """
        if self.log_var_shift is not None and not learns_variance:
            raise ValueError("the table is of a process that learns the variance, and the network gives none")
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
