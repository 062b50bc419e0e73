"""The layers of the U-Net against slow NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models.layers import Downsample, Norm, ResBlock, SelfAttention, Upsample, time_embedding


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


@pytest.mark.parametrize("offset", [0, 3, 30, 100])
def test_one_pass_over_bfloat16_costs_less_than_its_rounding(offset):
    """Beside float64: what the one-pass variance adds is under a twentieth of what the rounding of x has changed."""
    exact = offset + np.random.default_rng(0).standard_normal((2, 16, 16, 6))
    x = jnp.asarray(exact, jnp.bfloat16)
    got, _ = init_and_apply(Norm(3, dtype=jnp.bfloat16), x)
    two_passes, _ = init_and_apply(Norm(3), x)

    def normed(x):
        groups = np.asarray(x, np.float64).reshape(2, 256, 3, 2)
        mean, var = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
        return ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)

    rounding = np.abs(normed(x) - normed(exact)).max()
    assert np.abs(got - normed(x)).max() < 0.05 * rounding
    assert not np.array_equal(got, two_passes)  # it is another computation


def test_time_joins_in_float32():
    """256 + 0.5 is 256 in bfloat16; the norm of a group of 256 and 256.5 is -1 and 1."""
    block = ResBlock(2, 0.0, 1, jnp.bfloat16, norm_eps=1e-12)
    x, time = jnp.zeros((1, 2, 2, 2)), jnp.ones((1, 4))
    params = jax.tree.map(jnp.zeros_like, block.init(jax.random.key(0), x, time, train=False)["params"])
    params["conv_1"]["bias"] = jnp.array([256.0, 256.0])
    params["time"]["bias"] = jnp.array([0.0, 0.5])
    params["norm_2"]["norm"]["scale"] = jnp.ones(2)
    params["conv_2"]["kernel"] = params["conv_2"]["kernel"].at[1, 1].set(jnp.eye(2))
    got = block.apply({"params": params}, x, time, train=False)
    swish = np.array([-1, 1]) / (1 + np.exp([1, -1]))
    np.testing.assert_allclose(got, np.broadcast_to(swish, got.shape), rtol=2**-8)  # bfloat16 rounds swish


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
