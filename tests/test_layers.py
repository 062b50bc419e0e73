"""The layers of the U-Net against slow NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models.layers import Downsample, Norm, SelfAttention, Upsample, time_embedding


@pytest.mark.parametrize("dim", [4, 8, 128])
def test_time_embedding_is_the_loop(dim):
    t = np.array([0, 1, 17, 999, 3999])
    half = dim // 2
    expected = np.zeros((len(t), dim))
    for b, step in enumerate(t):
        for i in range(half):
            angle = step * 10000 ** (-i / (half - 1))
            expected[b, i], expected[b, half + i] = np.sin(angle), np.cos(angle)
    # An angle of 3999 is a float32 to 2.4e-4, once in the frequency and once in the product.
    np.testing.assert_allclose(time_embedding(jnp.asarray(t), dim), expected, atol=5e-4)
    np.testing.assert_allclose(time_embedding(jnp.asarray(t[:3]), dim), expected[:3], atol=1e-5)


def init_and_apply(module, x, key=0):
    params = module.init(jax.random.key(key), x)
    return np.asarray(module.apply(params, x), np.float64), jax.tree.map(np.asarray, params["params"])


def conv_in_loops(x, kernel, bias, stride):
    """A valid 3x3 convolution of [B, H, W, C]."""
    height, width = ((side - 3) // stride + 1 for side in x.shape[1:3])
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            window = x[:, stride * i : stride * i + 3, stride * j : stride * j + 3]
            out[:, i, j] = np.tensordot(window, kernel, 3) + bias
    return out


def test_downsample_pads_bottom_and_right_alone():
    x = np.random.default_rng(0).standard_normal((2, 6, 4, 3))
    got, params = init_and_apply(Downsample(jnp.float32), jnp.asarray(x, jnp.float32))
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    expected = conv_in_loops(padded, params["conv"]["kernel"], params["conv"]["bias"], 2)
    assert got.shape == (2, 3, 2, 3)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_upsample_repeats_pixels_then_convolves():
    x = np.random.default_rng(0).standard_normal((2, 3, 2, 3))
    got, params = init_and_apply(Upsample(jnp.float32), jnp.asarray(x, jnp.float32))
    padded = np.pad(x.repeat(2, axis=1).repeat(2, axis=2), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = conv_in_loops(padded, params["conv"]["kernel"], params["conv"]["bias"], 1)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("offset,scale", [(0, 1), (1000, 1), (0, 1e-3)])
def test_norm_is_group_norm_with_epsilon_1e_6(offset, scale):
    """Exact for a large mean (a one-pass variance is not), and epsilon shows at a variance of 1e-6."""
    x = np.float32(offset + scale * np.random.default_rng(0).standard_normal((2, 4, 4, 6)))
    got, _ = init_and_apply(Norm(3), jnp.asarray(x))
    groups = x.astype(np.float64).reshape(2, 16, 3, 2)
    mean, var = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    expected = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
    # The float32 mean of numbers around 1000 is off by some 1e-4.
    np.testing.assert_allclose(got, expected, atol=1e-5 + 5e-7 * offset)


def test_attention_is_one_head_over_all_positions():
    x = np.random.default_rng(0).standard_normal((2, 2, 3, 4))
    module = SelfAttention(2, jnp.float32)
    params = module.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    got = module.apply(params, jnp.asarray(x, jnp.float32))
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
    groups = x.reshape(2, 6, 2, 2)
    mean, var = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    h = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(2, 6, 4)
    h = h * p["norm"]["norm"]["scale"] + p["norm"]["norm"]["bias"]
    q, k, v = (h @ p[name]["kernel"] + p[name]["bias"] for name in ("query", "key", "value"))
    weights = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(4))
    h = weights / weights.sum(-1, keepdims=True) @ v
    expected = x + (h @ p["out"]["kernel"] + p["out"]["bias"]).reshape(x.shape)
    np.testing.assert_allclose(got, expected, atol=1e-5)
