"""ILVR (Choi et al. 2021): samples with the low frequencies of a reference image."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from ddpm_jax.diffusion.denoiser import Denoised
from ddpm_jax.diffusion.edits.inputs import aligned, as_floats
from ddpm_jax.diffusion.edits.projections import average_measurement
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.sampling_loop import EditFn, edit_noise

LowPass = Callable[[Float[Array, "B *D"]], Float[Array, "B *D"]]


def block_average(factor: int) -> LowPass:
    """phi_N: each value := the mean of its block of `factor` values along each axis but the first and the last.

    Raises:
      UserError: a factor below 1; in use, one that does not divide the sizes.
    """
    blocks = average_measurement(factor)
    return lambda x: blocks.pseudo_inverse(blocks.measure(x))


def ilvr(
    process: Process, reference: Shaped[Array | np.ndarray, "..."], low_pass: LowPass, *, last_step: int = -1
) -> EditFn:
    """edit_fn: x_s := phi(y_s) + x_s - phi(x_s), with y_s ~ q(y_s | reference) at the noise level of the row's end.

    Choi et al. 2021, algorithm 1. Each row has its own noise, from `edit_noise`.

    Args:
      reference: [*D] for all samples or [B, *D], on the scale of the model.
      low_pass: phi, linear, [B, *D] -> [B, *D], such as `block_average(8)`. Differs: the paper's is a bicubic filter.
      last_step: rows that end at a step s below it are not edited; -1: all rows are, so that at the end the low
        frequencies are those of the reference. Higher values leave more freedom (the paper's conditioning range).

    Raises:
      UserError: the reference is not finite floats; when called, it has not the shape of the samples.
    """
    reference = as_floats("reference", reference)

    def edit_fn(
        x_s: Float[Array, "B *D"], denoised: Denoised, row: SamplerTable, keys: Key[Array, "B"]
    ) -> Float[Array, "B *D"]:
        del denoised
        signal, noise = process.levels(row.s[None], ndim=x_s.ndim)
        y_s = signal * aligned("reference", reference, x_s.shape) + noise * edit_noise(keys, row, x_s.shape[1:])
        return jnp.where(row.s >= last_step, x_s + low_pass(y_s - x_s), x_s)

    return edit_fn
