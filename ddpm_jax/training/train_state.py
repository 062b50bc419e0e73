"""All that changes in training, as one pytree."""

from typing import no_type_check

import flax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree


# A pytree's leaves may be shapes or shardings, so its fields are not checked in tests.
@no_type_check
@flax.struct.dataclass
class TrainState:
    """All that changes in training. Randomness and batches are functions of (seed, step): no key is kept."""

    step: Int[Array, ""]  # the number of updates made
    params: PyTree
    ema_params: PyTree
    opt_state: PyTree
    t_history: PyTree = None  # of the time sampler; None where it remembers nothing


def init_state(
    params: PyTree, optimizer: optax.GradientTransformation, t_history: PyTree = None
) -> TrainState:
    """Step 0; the EMA starts at the parameters, the time sampler at `t_history`."""
    # A copy, so that a step may donate both without donating one buffer twice.
    ema_params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, optimizer.init(params), t_history)
