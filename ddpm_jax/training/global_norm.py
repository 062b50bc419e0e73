"""The norm over all arrays of a gradient or of parameters, and clipping to it."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from ddpm_jax.runtime.devices import LEAST_SHARDED


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """The square root of the sum of all squares.

    Small arrays are joined before they are summed: two thirds of a U-Net's arrays are biases and scales, and a sum for
    each is a program to compile and a kernel to launch. They lie whole on every device, so that none is fetched.
    """
    leaves = jax.tree.leaves(tree)
    sums = [jnp.sum(jnp.square(leaf)) for leaf in leaves if leaf.size >= LEAST_SHARDED]
    if small := [jnp.ravel(leaf) for leaf in leaves if leaf.size < LEAST_SHARDED]:
        sums.append(jnp.sum(jnp.square(jnp.concatenate(small))))
    return jnp.sqrt(sum(sums))


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """g -> g * min(1, max_norm/|g|), |g| the `global_norm` of all of it (Pascanu et al. 2013, algorithm 1)."""

    def clip(updates: PyTree, params: PyTree | None = None) -> PyTree:
        norm = global_norm(updates)
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda g: factor * g, updates)

    return optax.stateless(clip)
