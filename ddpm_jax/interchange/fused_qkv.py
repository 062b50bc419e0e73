"""Converts the fused q, k, v weights of other code to the three dense layers of `SelfAttention`."""

from jaxtyping import Float
from numpy import ndarray

from ddpm_jax.runtime.errors import UserError, check_one_of

QKV_ORDERS = ("heads_first", "qkv_first")


def split_fused_qkv(
    kernel: Float[ndarray, "C C_out"], bias: Float[ndarray, "C_out"], *, num_heads: int, order: str
) -> dict[str, dict[str, ndarray]]:
    """[W_q, W_k, W_v] and their biases from one dense layer C -> 3C, as the tree of `SelfAttention`'s layers.

    The orders of the 3C outputs in the code of Nichol and Dhariwal 2021 and of Dhariwal and Nichol 2021:
    "heads_first" is [heads, 3, C/heads] (the former; in the latter the "legacy" order), "qkv_first" is
    [3, heads, C/heads] (the latter's "new attention order"). With one head they are the same.

    Args:
      kernel: [C, 3C], as in a Flax dense layer; a PyTorch weight [3C, C, 1] is its transpose.
      bias: [3C].
      num_heads: of the network that the weights come from.
      order: "heads_first" or "qkv_first".

    Returns:
      {"query": {"kernel": [C, C], "bias": [C]}, "key": ..., "value": ...}.

    Raises:
      UserError: another order, or other shapes.

    Example:
      >>> import numpy as np
      >>> split = split_fused_qkv(np.zeros((2, 6)), np.arange(6.0), num_heads=2, order="heads_first")
      >>> {name: layer["bias"].tolist() for name, layer in split.items()}
      {'query': [0.0, 3.0], 'key': [1.0, 4.0], 'value': [2.0, 5.0]}
    """
    check_one_of("order", order, QKV_ORDERS)
    channels = kernel.shape[0]
    if kernel.shape[1] != 3 * channels or bias.shape != (3 * channels,):
        raise UserError(f"kernel must be [C, 3C] and bias [3C]; got {kernel.shape} and {bias.shape}")
    if num_heads < 1 or channels % num_heads:
        raise UserError(f"num_heads must divide the {channels} channels; got {num_heads}")

    def by_layer(fused: ndarray) -> ndarray:
        """[rows, 3C] -> [rows, 3, C]."""
        if order == "heads_first":
            fused = fused.reshape(-1, num_heads, 3, channels // num_heads).swapaxes(1, 2)
        return fused.reshape(-1, 3, channels)

    kernels, biases = by_layer(kernel), by_layer(bias)
    names = ("query", "key", "value")
    return {name: {"kernel": kernels[:, i], "bias": biases[0, i]} for i, name in enumerate(names)}
