"""Truncated conditioning augmentation: the sampler of a stage of a cascade stops before x_0, and the next stage is
shown its x_s (Ho et al. 2021, "Cascaded diffusion models for high fidelity image generation", section 3.2).
"""

from typing import NamedTuple

import jax.numpy as jnp
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
      table: of the sampler of the stage that stops.
      process: of that stage.
      alpha_bar: in [0, 1): 1 - alpha_bar is the variance of the wanted noise.

    Raises:
      UserError: the table reaches this level only with x_0, where nothing would be left out; or it begins with less
        noise, so that nothing of the stage would be left.
    """
    t, s = np.asarray(table.t), np.asarray(table.s)
    if _alphas_bar(process, t[:1])[0] >= alpha_bar:
        raise UserError(
            f"{arg('truncate')} needs a level with less noise than the first step of the sampler before it, of which "
            "nothing would be left: take a lower level"
        )
    reached = _alphas_bar(process, s)
    # The first row of the two of a step, as of `heun_table`, is an estimate: the second does not go further down.
    ends_step = ~np.append(s[1:] >= t[1:], False)
    fitting = np.flatnonzero(ends_step & (reached >= alpha_bar))
    row = int(fitting[np.argmin(reached[fitting])])
    if reached[row] == 1:
        last = reached[ends_step & (reached < 1)].max(initial=0)
        raise UserError(
            f"{arg('truncate')} needs a step of the sampler before x_0 that has at most the noise of the level; the "
            f"last is at alpha-bar {last:.6f}, and the level has {alpha_bar:.6f}: take more steps, or a higher level"
        )
    keep = float(np.sqrt(alpha_bar / reached[row]))
    return Stop(row + 1, keep, float(np.sqrt(1 - keep**2)))


def _alphas_bar(process: Process, steps: np.ndarray) -> np.ndarray:
    """alpha-bar of steps, float64 [R]; 1 for x_0, the step -1."""
    if steps.dtype.kind == "i":  # in float64, so that stages of one schedule match exactly
        return np.append(process.schedule.host_alphas_bar, 1.0)[steps]
    signal, _ = process.levels(jnp.asarray(steps), ndim=1)
    return np.square(np.asarray(signal, np.float64))
