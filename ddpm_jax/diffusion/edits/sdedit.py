"""SDEdit (Meng et al. 2022): an image is noised up to a middle step, and drawn again from there."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from ddpm_jax.diffusion.edits.first_order import falling_steps
from ddpm_jax.diffusion.edits.inputs import aligned, as_floats
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.sampling_loop import initial_noise
from ddpm_jax.runtime.errors import UserError, arg, real_number


def partial_table(table: SamplerTable, strength: float) -> SamplerTable:
    """The last floor(strength * S) rows of a table of S steps; it starts from `noised_start`.

    Meng et al. 2022, algorithm 1. The rows keep their numbers, and so their noise.

    Args:
      table: of a sampler of first order, such as `ancestral_table` or `ddim_table`. For others give the sampler the
        last of its steps instead.
      strength: in [0, 1]. 0: no row, the image itself; 1: the whole table. The paper starts at 0.3 T to 0.6 T.

    Raises:
      UserError: a table that remembers earlier rows or does not fall step by step to x_0; a strength outside [0, 1].

    Example:
      >>> from ddpm_jax.diffusion.samplers import ddim_table
      >>> from ddpm_jax.diffusion.schedules import make_schedule
      >>> partial_table(ddim_table(make_schedule("cosine", num_steps=5)), 0.6).t.tolist()
      [2, 1, 0]
    """
    strength = real_number("strength", strength)
    if not 0 <= strength <= 1:
        raise UserError(f"{arg('strength')} must be in [0, 1], 0 for the image itself; got {strength}")
    t, _ = falling_steps(table, f"make the table from the last of its steps: {arg('steps=steps[start:]')}")
    kept = int(strength * len(t) + 1e-9)  # 0.29 * 100 is a little less than 29
    return table.rows(len(t) - kept, len(t))


def noised_start(
    process: Process, table: SamplerTable, x_0: Shaped[Array | np.ndarray, "..."], keys: Key[Array, "B"]
) -> Float[Array, "B *D"]:
    """x_t ~ q(x_t | x_0) at the first step of the table, with the noise of `initial_noise`; x_0 if it has no row.

    Args:
      x_0: one for each key, or one for all with a first axis of size 1; on the scale of the model.

    Raises:
      UserError: x_0 is not finite floats, or has a first axis of another size.
    """
    shape = (len(keys), *x_0.shape[1:])
    x_0 = jnp.broadcast_to(aligned("x_0", as_floats("x_0", x_0), shape), shape)
    if table.num_calls == 0:
        return x_0
    signal, noise = process.levels(jnp.asarray(table.t)[:1], ndim=len(shape))
    return signal * x_0 + noise * initial_noise(keys, shape[1:])
