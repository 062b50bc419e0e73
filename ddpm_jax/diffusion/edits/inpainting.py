"""Inpainting by replacement: what is known of the result is put back after each row of a sampler's table."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from ddpm_jax.diffusion.denoiser import Denoised
from ddpm_jax.diffusion.edits.inputs import aligned, as_floats, as_mask
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.sampling_loop import EditFn, edit_noise


def known_region(
    process: Process, x_0: Shaped[Array | np.ndarray, "..."], mask: Shaped[Array | np.ndarray, "..."]
) -> EditFn:
    """edit_fn: where the mask is 1, x_s := q(x_s | x_0) at the noise level of the row's end, and x_0 itself at the end.

    The replacement method (Song et al. 2021, "Score-based generative modeling", appendix I.2). Each row has its own
    noise, from `edit_noise`.

    Args:
      x_0: floats, [*D] for all samples or [B, *D], on the scale of the model; only its known part is used.
      mask: 1 or True where x_0 is known, 0 or False where it is drawn; of a shape that broadcasts to that of x_s, such
        as [H, W, 1] or [B, H, W, 1].

    Raises:
      UserError: a mask with other values than 0 and 1 (under `jit` only the type is checked: bool is safe); x_0 in
        whole numbers; known values that are not finite; shapes that do not fit the samples.

    Example:
      >>> from ddpm_jax.diffusion.schedules import make_schedule
      >>> upper_half = np.arange(8)[:, None, None] < 4
      >>> edit_fn = known_region(Process(make_schedule("linear")), np.zeros((8, 8, 1), np.float32), upper_half)
    """
    known = as_mask(mask)
    x_0 = as_floats("x_0", x_0, used=known)

    def edit_fn(
        x_s: Float[Array, "B *D"], denoised: Denoised, row: SamplerTable, keys: Key[Array, "B"]
    ) -> Float[Array, "B *D"]:
        del denoised
        signal, noise = process.levels(row.s[None], ndim=x_s.ndim)
        of_known = signal * aligned("x_0", x_0, x_s.shape) + noise * edit_noise(keys, row, x_s.shape[1:])
        return jnp.where(aligned("mask", known, x_s.shape), of_known, x_s)

    return edit_fn
