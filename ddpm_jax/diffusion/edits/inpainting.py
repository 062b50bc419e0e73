"""Inpainting by replacement: what is known of the result is put back after each row of a sampler's table."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, Shaped

from ddpm_jax.diffusion.denoiser import Denoised
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.sampling_loop import EditFn, edit_noise
from ddpm_jax.runtime.errors import UserError, arg


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
    if not jnp.issubdtype(x_0.dtype, jnp.floating):
        raise UserError(
            f"{arg('x_0')} must be floats on the scale of the model, such as from to_model_scale(images); got "
            f"{x_0.dtype}"
        )
    if not any(isinstance(array, jax.core.Tracer) for array in (x_0, known)):
        _check_finite(np.asarray(x_0), np.asarray(known))
    x_0 = jnp.asarray(x_0, jnp.float32)

    def edit_fn(
        x_s: Float[Array, "B *D"], denoised: Denoised, row: SamplerTable, keys: Key[Array, "B"]
    ) -> Float[Array, "B *D"]:
        del denoised
        signal, noise = process.levels(row.s[None], ndim=x_s.ndim)
        of_known = signal * aligned("x_0", x_0, x_s.shape) + noise * edit_noise(keys, row, x_s.shape[1:])
        return jnp.where(aligned("mask", known, x_s.shape), of_known, x_s)

    return edit_fn


def as_mask(mask: Shaped[Array | np.ndarray, "..."]) -> Bool[Array, "..."]:
    """The mask as booleans, True = known.

    Raises:
      UserError: other values than 0 and 1.
    """
    if not isinstance(mask, jax.core.Tracer):
        values = np.asarray(mask)
        if values.dtype.kind not in "biuf" or not np.all((values == 0) | (values == 1)):
            raise UserError(
                f"{arg('mask')} must be boolean, or 1 where the image is known and 0 elsewhere; got {_others(values)}: "
                f"take {arg('mask > 127')} of an image"
            )
    return jnp.asarray(mask) == 1


def aligned(
    name: str, array: Shaped[Array | np.ndarray, "..."], to: tuple[int, ...]
) -> Shaped[Array | np.ndarray, "..."]:
    """The argument `name`, which may be the same for all samples, with as many axes as the samples of shape `to`.

    Raises:
      UserError: it does not broadcast to the samples.
    """
    sizes = zip(array.shape[::-1], to[::-1], strict=False)
    if array.ndim > len(to) or any(size not in (1, wanted) for size, wanted in sizes):
        raise UserError(
            f"{arg(name)} must have the shape of the samples, {list(to)}, without the first axis or with size 1 where "
            f"it is the same for all; got {list(array.shape)}"
        )
    return array.reshape((1,) * (len(to) - array.ndim) + array.shape)


def _others(values: np.ndarray) -> str:
    if values.dtype.kind not in "biuf":
        return f"an array of {values.dtype}"
    return f"values such as {values[~((values == 0) | (values == 1))][0]}"


def _check_finite(x_0: np.ndarray, known: np.ndarray) -> None:
    try:
        used = np.where(known, x_0, 0)
    except ValueError:
        raise UserError(
            f"{arg('mask')} must have the shape of x_0, {list(x_0.shape)}, with size 1 where it is the same for all; "
            f"got {list(known.shape)}"
        ) from None
    if not np.all(np.isfinite(used)):
        raise UserError(f"{arg('x_0')} must be finite where the mask is 1; got NaN or infinity")
