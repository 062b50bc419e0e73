"""Self-conditioning: the network also sees the previous estimate of x_0 (Chen, Zhang and Hinton 2022, "Analog Bits:
Generating Discrete Data using Diffusion Models with Self-Conditioning", algorithms 1 and 2).

The input of the network is concat(x_t, x_0_prev) on the last axis, with zeros for x_0_prev where there is no previous
estimate. In sampling it is the x_0_hat of the network call before. In training, with probability 1/2, it is that of a
first call with zeros at the same x_t and t, through which no gradient flows, and else zeros.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.parameterisations import Steps
from ddpm_jax.diffusion.process import ModelFn


def with_estimate(model_fn: ModelFn, x_0_prev: Float[Array, "B *D"]) -> ModelFn:
    """(x_t, t) -> model_fn(concat(x_t, x_0_prev), t), for a network whose input has twice the channels of x_t.

    Args:
      x_0_prev: the previous estimate of x_0. A guide may call the network with several rows per image, adjacent to each
        other, as `guidance.interleave` makes them: all rows of an image see its estimate.
    """

    def model_fn_of_x_t(x_t: Float[Array, "N *D"], t: Steps) -> Float[Array, "N ..."]:
        return model_fn(jnp.concatenate([x_t, _each_repeated(x_0_prev, len(x_t))], axis=-1), t)

    return model_fn_of_x_t


def input_shape(x_0_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the network's input for one image: twice the channels."""
    return (*x_0_shape[:-1], 2 * x_0_shape[-1])


def _each_repeated(rows: Float[Array, "B *D"], num_rows: int) -> Float[Array, "N *D"]:
    """Row i as rows k i .. k i + k - 1 of `num_rows` = k B."""
    times, rest = divmod(num_rows, len(rows))
    if rest:
        raise ValueError(f"a guide must call the network with whole multiples of {len(rows)} rows; got {num_rows}")
    if times == 1:
        return rows
    return jnp.broadcast_to(rows[:, None], (len(rows), times, *rows.shape[1:])).reshape(num_rows, *rows.shape[1:])
