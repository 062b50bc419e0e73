"""The check that samples are finite, before they are decoded."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.runtime.errors import UserError


@jax.jit
def _all_finite(x: jax.Array, num: jax.Array) -> jax.Array:
    """Whether the first `num` samples are finite; the others fill the batch."""
    finite = jnp.all(jnp.isfinite(x.reshape(len(x), -1)), axis=1)
    return jnp.all(finite | (jnp.arange(len(x), dtype=jnp.int32) >= num))


def check_finite(x_0: jax.Array, numbers: np.ndarray, num_used: int) -> None:
    """Raises UserError if one of the first `num_used` samples, which have these numbers, is NaN or infinite."""
    if not bool(_all_finite(x_0, np.int32(num_used))):
        last = int(numbers[min(num_used, len(numbers)) - 1])
        raise UserError(
            f"samples {int(numbers[0])} to {last} became NaN or infinite: take more sampler steps, another sampler, "
            "sample.clip_x_0=true, or a smaller scale of the guidance"
        )
