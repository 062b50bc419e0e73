"""Initial parameters of a network, and their number."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ddpm_jax.models.initialisers import shared_draws


def init_params(
    network: nn.Module,
    key: Key[Array, ""],
    image_shape: tuple[int, ...],
    condition: Mapping[str, Array | np.ndarray] | None = None,
) -> dict:
    """Initial float32 parameters for images (H, W, C); jit- and eval_shape-compatible.

    They have the same distribution as those of `network.init`, but come from a few long draws, which compile much
    faster.

    Args:
      condition: the condition of one image, [1, ...] per entry; by default label 0 for a network with classes, else
        empty.
    """
    t = jnp.zeros((1,), jnp.int32)
    if condition is None:
        condition = {"label": t} if getattr(network, "num_classes", 0) else {}
    if getattr(network, "remat", False):  # remat changes no parameter name, and a draw must not happen inside it
        network = network.clone(remat=False)

    @jax.jit  # the network itself is never run, because its output is not used
    def draw(key: Key[Array, ""]) -> dict:
        key_together, key_apart = jax.random.split(key)
        with shared_draws(key_together):
            return network.init(key_apart, jnp.zeros((1, *image_shape), jnp.float32), t, condition)["params"]

    return draw(key)


def num_params(params: dict) -> int:
    """The number of weights in a tree of arrays or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
