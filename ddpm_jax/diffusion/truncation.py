"""Truncated conditioning augmentation: the sampler of a stage of a cascade stops before x_0, and the next stage is
shown its x_s (Ho et al. 2021, "Cascaded diffusion models for high fidelity image generation", section 4).
"""

from typing import NamedTuple

import numpy as np

from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.runtime.errors import UserError, arg


class Stop(NamedTuple):
    """Where a sampler stops, and how its x gets the noise of another alpha-bar: keep x + add N(0, I).

    Attributes:
      num_rows: rows of the table that are walked.
      keep, add: with keep^2 + add^2 = 1, as of a step of the forward process.
    """

    num_rows: int
    keep: float
    add: float


def stop_at(table: SamplerTable, process: Process, alpha_bar: float) -> Stop:
    """The first place in a table where x has at most the noise of alpha_bar, and what is missing there.

    The stages are matched by alpha-bar, which is the same as by log SNR, and not by the index of a step: they may have
    other schedules. Where the table has no such level, x of the next cleaner one gets the missing noise, q(x_t | x_s)
    of the forward process, which is exact if x_s is.

    Args:
      table: of the sampler of the stage that stops, on the host.
      process: of that stage.
      alpha_bar: in (0, 1): 1 - alpha_bar is the variance of the wanted noise.

    Raises:
      UserError: the table reaches this level only with x_0, where nothing would be left out.
    """
    reached = _alphas_bar_after(table, process)
    # Of equal ones the last: the first of the two rows of a step of `heun_table` is only an estimate.
    fitting = np.flatnonzero(reached >= alpha_bar)
    noisiest = fitting[reached[fitting] == reached[fitting].min()]
    row = int(noisiest[-1])
    if reached[row] == 1:
        raise UserError(
            f"{arg('truncated')} needs a step of the sampler before x_0 that has at most the noise of the level; the "
            f"last is at alpha-bar {reached[reached < 1].max(initial=0):.6f}, and the level has {alpha_bar:.6f}: take "
            "more steps, or a higher level"
        )
    keep = float(np.sqrt(alpha_bar / reached[row]))
    return Stop(row + 1, keep, float(np.sqrt(1 - keep**2)))


def _alphas_bar_after(table: SamplerTable, process: Process) -> np.ndarray:
    """alpha-bar of x after each row, float64 [R]; 1 for x_0."""
    steps = np.asarray(table.s)
    if table.rise_noise is not None:
        rises = np.asarray(table.rise_noise) > 0
        steps = np.where(rises, np.append(np.asarray(table.t)[1:], -1), steps)
    if steps.dtype.kind == "i":  # in float64, so that stages of one schedule match exactly
        return np.append(process.schedule.host_alphas_bar, 1.0)[steps]
    signal, _ = process.levels(steps, ndim=1)
    return np.square(np.asarray(signal, np.float64))
