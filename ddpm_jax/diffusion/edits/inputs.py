"""The arrays that an edit is given, such as known images and masks: checked, and aligned with the samples."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from ddpm_jax.runtime.errors import UserError, arg


def as_floats(
    name: str, array: Shaped[Array | np.ndarray, "..."], used: Bool[Array, "..."] | None = None
) -> Float[Array, "..."]:
    """The argument `name` as float32.

    Args:
      used: where its values are used, a mask that broadcasts with it; None: everywhere.

    Raises:
      UserError: whole numbers, which are not on the scale of the model; a used value that is not finite (not seen under
        `jit`).
    """
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(
            f"{arg(name)} must be floats on the scale of the model, such as from to_model_scale(images); got "
            f"{array.dtype}"
        )
    if not isinstance(array, jax.core.Tracer) and not isinstance(used, jax.core.Tracer):
        _check_finite(name, np.asarray(array), True if used is None else np.asarray(used))
    return jnp.asarray(array, jnp.float32)


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


def _check_finite(name: str, array: np.ndarray, used: np.ndarray | bool) -> None:
    try:
        values = np.where(used, array, 0)
    except ValueError:
        raise UserError(
            f"{arg('mask')} must have the shape of {name}, {list(array.shape)}, with size 1 where it is the same for "
            f"all; got {list(used.shape)}"
        ) from None
    if not np.all(np.isfinite(values)):
        where = " where the mask is 1" if np.ndim(used) else ""
        raise UserError(f"{arg(name)} must be finite{where}; got NaN or infinity")
