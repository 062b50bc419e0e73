"""Fused q, k, v weights: both orders, against attention on the fused outputs."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.interchange.fused_qkv import split_fused_qkv
from ddpm_jax.models.layers import SelfAttention
from ddpm_jax.runtime.errors import UserError


def attend(q, k, v):
    """One head: q, k, v [N, c]."""
    weights = np.exp(q @ k.T / np.sqrt(q.shape[1]))
    return weights / weights.sum(axis=1, keepdims=True) @ v


def fused_attention(fused, num_heads, order):
    """[N, 3C] -> [N, C], as the codes that fuse it do: cut by position in the 3C outputs."""
    channels = fused.shape[1] // 3
    width = channels // num_heads
    out = np.zeros((len(fused), channels))
    for head in range(num_heads):
        starts = [3 * width * head + width * i for i in range(3)]  # q, k and v of a head are neighbours
        if order == "qkv_first":
            starts = [channels * i + width * head for i in range(3)]  # all q, then all k, then all v
        out[:, width * head : width * (head + 1)] = attend(*(fused[:, start : start + width] for start in starts))
    return out


@pytest.mark.parametrize("order", ["heads_first", "qkv_first"])
@pytest.mark.parametrize("num_heads", [1, 2, 3])
def test_our_attention_on_the_split_weights_is_theirs(num_heads, order):
    rng = np.random.default_rng(0)
    x, kernel, bias = rng.standard_normal((1, 2, 3, 6)), rng.standard_normal((6, 18)), rng.standard_normal(18)
    out = {"kernel": rng.standard_normal((6, 6)), "bias": rng.standard_normal(6)}
    norm = {"norm": {"scale": np.ones(6), "bias": np.zeros(6)}}
    split = split_fused_qkv(kernel, bias, num_heads=num_heads, order=order)
    params = {**split, "out": out, "norm": norm}
    got = SelfAttention(3, jnp.float32, num_heads).apply({"params": params}, jnp.asarray(x, jnp.float32))
    groups = x.reshape(1, 6, 3, 2)
    mean, var = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    h = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(6, 6)
    h = fused_attention(h @ kernel + bias, num_heads, order) @ out["kernel"] + out["bias"]
    np.testing.assert_allclose(got, x + h.reshape(x.shape), atol=2e-5)


def test_the_orders_differ_unless_there_is_one_head():
    kernel, bias = np.arange(4.0 * 12).reshape(4, 12), np.arange(12.0)

    def bias_of_query(num_heads, order):
        return split_fused_qkv(kernel, bias, num_heads=num_heads, order=order)["query"]["bias"].tolist()

    assert bias_of_query(1, "heads_first") == bias_of_query(1, "qkv_first") == [0, 1, 2, 3]
    assert bias_of_query(2, "heads_first") == [0, 1, 6, 7]
    assert bias_of_query(2, "qkv_first") == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "width,num_heads,order,message",
    [
        (12, 2, "new", "order must be one of ['heads_first', 'qkv_first']; got 'new'"),
        (8, 2, "qkv_first", "kernel must be [C, 3C] and bias [3C]; got (4, 8) and (8,)"),
        (12, 3, "heads_first", "num_heads must divide the 4 channels; got 3"),
        (12, 0, "qkv_first", "num_heads must divide the 4 channels; got 0"),
    ],
)
def test_what_is_refused(width, num_heads, order, message):
    with pytest.raises(UserError) as error:
        split_fused_qkv(np.zeros((4, width)), np.zeros(width), num_heads=num_heads, order=order)
    assert str(error.value) == message
