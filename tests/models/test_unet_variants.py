"""The U-Nets of Nichol and Dhariwal 2021 and of Dhariwal and Nichol 2021: layers against NumPy, each field's effect."""


import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models.layers import Downsample, Norm, ResBlock, SelfAttention, downsample_mean, time_embedding
from ddpm_jax.models.parameters import init_params, num_params
from ddpm_jax.models.unet import UNet
from ddpm_jax.models.upsample_conv import upsample_nearest
from ddpm_jax.runtime.errors import UserError

SMALL = dict(channels=8, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(8, 4), num_groups=4)
MINI = dict(channels=4, channel_mults=(1,), num_res_blocks=1, attention_resolutions=(), num_groups=2, dropout=0.0)


def random_like(shapes, seed=0):
    """Random numbers for every parameter, zero layers, norms and biases included."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


def random_params(module, *args, **kwargs):
    return random_like(jax.eval_shape(lambda key: module.init(key, *args, **kwargs), jax.random.key(0)))


def as_float64(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])


def shapes_of(unet, image_shape=(8, 8, 3)):
    return jax.eval_shape(lambda key: init_params(unet, key, image_shape), jax.random.key(0))


# NumPy, float64


def group_norm(x, num_groups, epsilon, layer):
    batch, height, width, channels = x.shape
    groups = x.reshape(batch, height * width, num_groups, channels // num_groups)
    mean, var = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    return ((groups - mean) / np.sqrt(var + epsilon)).reshape(x.shape) * layer["norm"]["scale"] + layer["norm"]["bias"]


def swish(x):
    return x / (1 + np.exp(-x))


def conv(x, layer, stride=1):
    """3x3, one row and column of zeros on every side."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = (-(-side // stride) for side in x.shape[1:3])
    out = np.zeros((len(x), height, width, layer["kernel"].shape[-1]))
    for i in range(height):
        for j in range(width):
            window = padded[:, stride * i : stride * i + 3, stride * j : stride * j + 3]
            out[:, i, j] = np.tensordot(window, layer["kernel"], 3) + layer["bias"]
    return out


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def resized(x, resize):
    if resize == "up":
        return x.repeat(2, axis=1).repeat(2, axis=2)
    if resize == "down":
        return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    return x


# The layers


@pytest.mark.parametrize(
    "resize,scale_shift_norm,channels", [("", True, 6), ("down", True, 4), ("up", False, 4), ("down", False, 6)]
)
def test_residual_block_is_the_formula(resize, scale_shift_norm, channels):
    rng = np.random.default_rng(0)
    x, time = rng.standard_normal((2, 4, 6, 4)), rng.standard_normal((2, 8))
    block = ResBlock(
        channels, 0.0, 2, jnp.float32, norm_eps=0.1, scale_shift_norm=scale_shift_norm, resize=resize
    )
    args = jnp.asarray(x, jnp.float32), jnp.asarray(time, jnp.float32)
    params = random_params(block, *args, train=False)
    got = block.apply(params, *args, train=False)
    p = as_float64(params)
    h = conv(resized(swish(group_norm(x, 2, 0.1, p["norm_1"])), resize), p["conv_1"])
    by_time = dense(swish(time), p["time"])[:, None, None]
    if scale_shift_norm:
        assert by_time.shape[-1] == 2 * channels
        h = group_norm(h, 2, 0.1, p["norm_2"]) * (1 + by_time[..., :channels]) + by_time[..., channels:]
    else:
        h = group_norm(h + by_time, 2, 0.1, p["norm_2"])
    h = conv(swish(h), p["conv_2"])
    skip = resized(x, resize)
    expected = h + (dense(skip, p["shortcut"]) if channels != 4 else skip)
    np.testing.assert_allclose(got, expected, atol=3e-5)


def test_a_scale_and_a_shift_of_0_are_the_plain_norm():
    x, time = jax.random.normal(jax.random.key(0), (2, 4, 4, 4)), jnp.ones((2, 8))
    plain, scaled = (ResBlock(4, 0.0, 2, jnp.float32, scale_shift_norm=flag) for flag in (False, True))
    params = random_params(scaled, x, time, train=False)["params"]
    params["time"] = jax.tree.map(jnp.zeros_like, params["time"])
    half = jax.tree.map(lambda leaf: leaf[..., :4], params["time"])
    np.testing.assert_array_equal(
        scaled.apply({"params": params}, x, time, train=False),
        plain.apply({"params": params | {"time": half}}, x, time, train=False),
    )


def test_halving_undoes_doubling():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    assert upsample_nearest(x).shape == (2, 6, 10, 4)
    np.testing.assert_array_equal(downsample_mean(upsample_nearest(x)), x)
    assert downsample_mean(x.astype(jnp.bfloat16)[:, :2, :4]).dtype == jnp.bfloat16


@pytest.mark.parametrize("num_heads", [1, 2, 6])
def test_attention_is_the_loop_over_heads(num_heads):
    x = np.random.default_rng(0).standard_normal((2, 2, 3, 6))
    module = SelfAttention(3, jnp.float32, num_heads=num_heads, norm_eps=0.1)
    params = random_params(module, jnp.asarray(x, jnp.float32))
    got = module.apply(params, jnp.asarray(x, jnp.float32))
    p = as_float64(params)
    h = group_norm(x, 3, 0.1, p["norm"]).reshape(2, 6, 6)
    q, k, v = (dense(h, p[name]) for name in ("query", "key", "value"))
    mixed, width = np.zeros_like(h), 6 // num_heads
    for b in range(2):
        for head in range(num_heads):
            own = slice(width * head, width * (head + 1))
            for i in range(6):
                weights = np.exp([q[b, i, own] @ k[b, j, own] / np.sqrt(width) for j in range(6)])
                mixed[b, i, own] = weights / weights.sum() @ v[b, :, own]
    np.testing.assert_allclose(got, x + dense(mixed, p["out"]).reshape(x.shape), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_head_has_the_bits_of_attention_without_heads(dtype):
    """Of q, k, v [B, N, C] and two plain products, so that a network trained with one head stays what it was."""
    x = jax.random.normal(jax.random.key(0), (3, 4, 5, 32))
    module = SelfAttention(4, dtype)
    params = random_params(module, x)

    def without_heads(params, x):
        p = params["params"]
        layers = {"dtype": dtype, "features": 32}
        h = Norm(4).apply({"params": p["norm"]}, x).astype(dtype).reshape(3, 20, 32)
        q, k, v = (nn.Dense(**layers).apply({"params": p[name]}, h) for name in ("query", "key", "value"))
        logits = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32) * 32**-0.5
        h = jnp.einsum("bqk,bkc->bqc", jax.nn.softmax(logits).astype(dtype), v)
        return x + nn.Dense(**layers).apply({"params": p["out"]}, h).reshape(x.shape)

    np.testing.assert_array_equal(jax.jit(module.apply)(params, x), jax.jit(without_heads)(params, x))


def test_norm_adds_epsilon_to_the_variance():
    x = jnp.float32(1e-3 * np.random.default_rng(0).standard_normal((2, 4, 4, 6)))
    params = random_params(Norm(3, 1e-5), x)
    expected = group_norm(np.asarray(x, np.float64), 3, 1e-5, as_float64(params))
    np.testing.assert_allclose(Norm(3, 1e-5).apply(params, x), expected, atol=1e-5)


def test_downsample_with_padding_on_both_sides():
    x = np.random.default_rng(0).standard_normal((2, 6, 4, 3))
    module = Downsample(jnp.float32, padding="both")
    params = random_params(module, jnp.asarray(x, jnp.float32))
    got = module.apply(params, jnp.asarray(x, jnp.float32))
    assert got.shape == (2, 3, 2, 3)
    np.testing.assert_allclose(got, conv(x, as_float64(params)["conv"], stride=2), atol=1e-5)


@pytest.mark.parametrize("order", ["sin_cos", "cos_sin"])
@pytest.mark.parametrize("spacing,steps", [("half_minus_1", 3), ("half", 4)])
def test_time_embedding_at_any_time(order, spacing, steps):
    t = np.array([0, 0.25, 17.5, 250])
    expected = np.zeros((4, 8))
    sin, cos = (slice(0, 4), slice(4, 8)) if order == "sin_cos" else (slice(4, 8), slice(0, 4))
    for b, time in enumerate(t):
        angles = np.array([time * 10000 ** (-i / steps) for i in range(4)])
        expected[b, sin], expected[b, cos] = np.sin(angles), np.cos(angles)
    got = time_embedding(jnp.asarray(t, jnp.float32), 8, order=order, spacing=spacing)
    np.testing.assert_allclose(got, expected, atol=5e-5)
    whole = time_embedding(jnp.array([0, 250]), 8, order=order, spacing=spacing)
    np.testing.assert_array_equal(whole, got[jnp.array([0, 3])])


# The network


def test_heads_by_number_or_by_width():
    heads = {}

    def spy(call, args, kwargs, context):
        if isinstance(context.module, SelfAttention):
            heads[context.module.name] = context.module.num_heads
        return call(*args, **kwargs)

    def heads_of(**fields):
        heads.clear()
        with nn.intercept_methods(spy):
            shapes_of(UNet(**SMALL, **fields))
        return dict(heads)

    names = ["down_0_attention_0", "down_1_attention_0", "middle_attention"]
    names += [f"up_{level}_attention_{i}" for level in (1, 0) for i in (0, 1)]
    assert heads_of() == dict.fromkeys(names, 1)
    assert heads_of(num_heads=2) == dict.fromkeys(names, 2)
    # Level 0 has 8 channels, level 1 and the middle have 16.
    assert heads_of(num_heads=2, head_channels=4) == {name: 2 if "_0_att" in name else 4 for name in names}


def test_heads_need_no_other_weights():
    assert shapes_of(UNet(**SMALL)) == shapes_of(UNet(**SMALL, head_channels=4))


def test_blocks_that_resample_take_the_place_of_convolutions():
    plain, blocks = (shapes_of(UNet(**SMALL, resample_in_blocks=flag)) for flag in (False, True))
    assert plain.keys() == blocks.keys()
    for name in plain:
        if name.endswith("sample"):
            assert plain[name].keys() == {"conv"}
            assert blocks[name].keys() == {"norm_1", "conv_1", "time", "norm_2", "conv_2"}
        else:
            assert plain[name] == blocks[name], name


VARIANT = dict(
    norm_eps=1e-5, head_channels=4, scale_shift_norm=True, resample_in_blocks=True, embedding_order="cos_sin",
    embedding_spacing="half", time_scale=0.25, num_classes=10, out_channels=6,
)  # fmt: skip


def test_every_layer_of_a_variant_computes_in_its_dtype():
    unet = UNet(**SMALL, **VARIANT, dtype=jnp.bfloat16)
    shapes = shapes_of(unet, (8, 12, 3))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    x_t, t = jax.ShapeDtypeStruct((2, 8, 12, 3), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    out, state = jax.eval_shape(
        lambda p, x, t: unet.apply({"params": p}, x, t, {"label": t}, capture_intermediates=True), shapes, x_t, t
    )
    assert out.shape == (2, 8, 12, 6) and out.dtype == jnp.float32
    for path, value in jax.tree_util.tree_leaves_with_path(state["intermediates"]):
        float32 = any(name in str(path) for name in ("norm", "conv_out")) or len(path) == 2
        assert value.dtype == (jnp.float32 if float32 else jnp.bfloat16), path


def test_time_scale_and_fractional_t():
    unet = UNet(**MINI)
    params = random_like(shapes_of(unet))
    x_t = jnp.tile(jax.random.normal(jax.random.key(1), (1, 8, 8, 3)), (3, 1, 1, 1))

    @jax.jit
    def both(t):
        return unet.apply({"params": params}, x_t, t), unet.clone(time_scale=0.25).apply({"params": params}, x_t, 4 * t)

    whole, scaled = both(jnp.array([10, 11, 12]))
    np.testing.assert_array_equal(whole, scaled)
    between, scaled = both(jnp.array([10.0, 10.25, 12.0]))
    np.testing.assert_array_equal(between, scaled)
    # A float without a fraction is the step; one with a fraction is a time of its own.
    np.testing.assert_array_equal(between[::2], whole[::2])
    assert np.abs(between[1:2] - whole[:2]).max(axis=(1, 2, 3)).min() > 1e-3


def test_labels():
    unet = UNet(**MINI, num_classes=3)
    params = random_like(shapes_of(unet))
    assert params["label_embedding"].shape == (3, 16)
    assert num_params(params) == num_params(shapes_of(UNet(**MINI))) + 3 * 16
    x_t, t = jax.random.normal(jax.random.key(1), (4, 8, 8, 3)), jnp.array([5, 5, 5, 5])
    apply = jax.jit(lambda params, labels: unet.apply({"params": params}, x_t, t, {"label": labels}))
    out = apply(params, jnp.array([0, 1, 2, 0]))
    other = apply(params, jnp.array([0, 2, 3, -1]))
    np.testing.assert_array_equal(other[0], out[0])
    assert np.abs(other[1] - out[1]).max() > 1e-3
    assert np.all(np.isnan(other[2:]))  # neither the last label nor any other
    # A vector of zeros says nothing: the network without labels.
    rest = {name: value for name, value in params.items() if name != "label_embedding"}
    without = UNet(**MINI).apply({"params": rest}, x_t, t)
    zeros = {"label_embedding": jnp.zeros((3, 16))}
    np.testing.assert_allclose(apply(rest | zeros, jnp.array([0, 1, 2, 0])), without, atol=1e-5)
    assert np.abs(out - without).max() > 1e-3


def test_fresh_vectors_of_labels_are_standard_normal():
    unet = UNet(**MINI, num_classes=200)
    # The rest of the network, whose random bits take XLA longest, is left out of the program.
    init = jax.jit(lambda key: init_params(unet, key, (2, 2, 1))["label_embedding"])
    vectors = np.asarray(init(jax.random.key(0)))
    assert abs(vectors.mean()) < 4 / np.sqrt(3200) and abs(vectors.std() - 1) < 4 / np.sqrt(6400)


@pytest.mark.parametrize("num_classes,given", [(0, {"label": jnp.array([0])}), (3, {}), (3, None)])
def test_labels_are_given_if_the_network_takes_them(num_classes, given):
    unet, t = UNet(**MINI, num_classes=num_classes), jnp.array([0])
    with pytest.raises(UserError) as error:
        unet.apply({"params": {}}, jnp.zeros((1, 8, 8, 3)), t, given)
    taken = ["label"] if num_classes else []
    assert str(error.value) == f"the network takes the condition {taken}; got {sorted(given or {})}"
