"""RePaint (Lugmayr et al. 2022): a table that rises to noisier steps and walks down again, to harmonise an edit."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.edits.first_order import falling_steps
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.timestep_spacing import time_grid
from ddpm_jax.runtime.errors import UserError, arg, check_between, whole_number

MAX_ROWS = 1_000_000  # the table is on the device; the paper's has 2,410


def repaint_table(
    table: SamplerTable, process: Process, *, jump_length: int = 10, num_resamplings: int = 10
) -> SamplerTable:
    """The table with rises: from every jump_length-th step the samples return jump_length steps and walk down again.

    Lugmayr et al. 2022, algorithm 1 and appendix B, for use with `known_region`. Counting the steps from the least
    noisy, 0..S-1, a rise starts at 0, jump_length, 2 jump_length, ... below S - jump_length, and each stretch is walked
    num_resamplings times in all. A rise is q(x_t | x_s) = N(sqrt(abar_t / abar_s) x_s, (1 - abar_t / abar_s) I), the
    jump_length steps of the paper at once, after the edit of the row. Each row has a number of its own, and so its own
    noise.

    Differs: line 5 of the paper's algorithm multiplies the noise of the known part by the variance; `known_region` uses
    the standard deviation, at the end of the row.

    Args:
      table: of a sampler of first order, `ancestral_table` (the paper's) or `ddim_table`, over S steps.
      process: that the table was made for.
      jump_length: j, in 1..S-1. 10 in the paper, where S = 250.
      num_resamplings: r, at least 1; 10 in the paper. 1: the table itself. The table has at most 1,000,000 rows.

    Returns:
      A table of S + ceil((S - j)/j) (r - 1) j rows, one network call each: 2,410 for S = 250, j = r = 10.

    Raises:
      UserError: a table that remembers earlier rows, does not fall step by step to x_0, or rises already; an argument
        outside its range.

    Example:
      >>> from ddpm_jax.diffusion.samplers import ancestral_table
      >>> from ddpm_jax.diffusion.schedules import make_schedule
      >>> process = Process(make_schedule("cosine", num_steps=4))
      >>> repaint_table(ancestral_table(process), process, jump_length=2, num_resamplings=2).t.tolist()
      [3, 2, 1, 2, 1, 0]
    """
    t, _ = falling_steps(table, "take ancestral or ddim")
    num_steps = table.num_calls
    jump_length = whole_number("jump_length", jump_length)
    num_resamplings = whole_number("num_resamplings", num_resamplings)
    check_between("num_resamplings", num_resamplings, 1)
    if num_resamplings == 1:
        return table
    check_between("jump_length", jump_length, 1)
    if jump_length >= num_steps:
        raise UserError(
            f"{arg('jump_length')} must be below the sampler's {num_steps} steps, or there is no jump; got "
            f"{jump_length}: take more steps or shorter jumps"
        )
    num_rows = num_steps - (jump_length - num_steps) // jump_length * (num_resamplings - 1) * jump_length
    if num_rows > MAX_ROWS:
        raise UserError(
            f"{arg('num_resamplings')} must leave at most {MAX_ROWS:,} network calls of a sample; {num_resamplings} "
            f"of jumps of {jump_length} from {num_steps} steps are {num_rows:,}: take fewer"
        )
    rows, rises_to = _walk(num_steps, jump_length, num_resamplings)
    grid = time_grid(process.schedule, t)
    abar = grid.alphas**2
    # Row k goes from point k of the grid to point k + 1; a rise after it leads to the point where the next row begins.
    kept = np.where(rises_to < 0, 1.0, abar[rises_to] / abar[rows + 1])
    columns = jax.tree.map(lambda column: jnp.asarray(column)[rows], table)
    return columns.replace(
        row=jnp.arange(len(rows), dtype=jnp.int32),
        rise_scale=jnp.asarray(np.sqrt(kept), jnp.float32),
        rise_noise=jnp.asarray(np.sqrt(1 - kept), jnp.float32),
    )


def _walk(num_steps: int, jump_length: int, num_resamplings: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the table in the order of the walk, and for each the row that begins where x rises to, or -1."""
    rows, rises_to = [], []
    for row in range(num_steps):
        rows.append(row)
        rises_to.append(-1)
        step = num_steps - 2 - row  # at the end of the row, counted from the least noisy; -1 is x_0
        if 0 <= step < num_steps - jump_length and step % jump_length == 0:
            stretch = list(range(row + 1 - jump_length, row + 1))
            for _ in range(num_resamplings - 1):
                rises_to[-1] = stretch[0]
                rows += stretch
                rises_to += [-1] * jump_length
    return np.array(rows), np.array(rises_to)
