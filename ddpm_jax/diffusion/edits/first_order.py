"""The walks that an edit may cut or repeat: from noise to x_0, row by row, without a memory."""

import numpy as np

from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.runtime.errors import UserError, arg


def falling_steps(table: SamplerTable, remedy: str) -> tuple[np.ndarray, np.ndarray]:
    """t and s of a table of first order that falls step by step to x_0, on the host.

    Args:
      remedy: what to do in place of a solver that remembers earlier rows.

    Raises:
      UserError: a table of another kind.
    """
    if table.num_remembered:
        raise UserError(
            f"{arg('table')} must be of a sampler of first order, because a row may not use what rows before a jump or "
            f"a cut remembered; got one that looks back {table.num_remembered}: {remedy}"
        )
    if table.rise_scale is not None:
        raise UserError(f"{arg('table')} rises already: give the table of a sampler, such as of ancestral or ddim")
    t, s = np.asarray(table.t), np.asarray(table.s)
    if np.any(t[1:] >= t[:-1]) or not np.array_equal(np.append(t[1:], -1), s):
        raise UserError(
            f"{arg('table')} must fall step by step to x_0 (s = -1); got steps from {t.tolist()} to {s.tolist()}"
        )
    return t, s
