"""The U-Net: exact counts, initialisers, and what must not leak between samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models.parameters import init_params, num_params
from ddpm_jax.models.unet import UNet
from ddpm_jax.models.unet_checks import check_unet
from ddpm_jax.runtime.errors import UserError

SMALL = dict(channels=8, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(4,), num_groups=4)


def shapes_of(unet, image_shape):
    return jax.eval_shape(lambda key: init_params(unet, key, image_shape), jax.random.key(0))


def count_by_formula(
    c, mults, blocks, attention, side, colours, *, out=0, scale_shift=False, resample_in_blocks=False, classes=0
):
    """Weights of the original network or a variant, counted block by block."""

    def conv(a, b, k=3):
        return k * k * a * b + b

    def norm(a):
        return 2 * a

    def res_block(a, b):
        shortcut = conv(a, b, 1) if a != b else 0
        time = conv(4 * c, 2 * b if scale_shift else b, 1)
        return norm(a) + conv(a, b) + time + norm(b) + conv(b, b) + shortcut

    def resample(a):
        return res_block(a, a) if resample_in_blocks else conv(a, a)

    def attend(a):
        return norm(a) + 4 * conv(a, a, 1)

    total = conv(c, 4 * c, 1) + conv(4 * c, 4 * c, 1) + classes * 4 * c + conv(colours, c)
    width, skips = c, [c]
    for level, mult in enumerate(mults):
        for _ in range(blocks):
            total += res_block(width, c * mult)
            width = c * mult
            total += attend(width) if side in attention else 0
            skips.append(width)
        if level < len(mults) - 1:
            total += resample(width)
            skips.append(width)
            side //= 2
    total += 2 * res_block(width, width) + attend(width)
    for level, mult in reversed(list(enumerate(mults))):
        for _ in range(blocks + 1):
            total += res_block(width + skips.pop(), c * mult)
            width = c * mult
            total += attend(width) if side in attention else 0
        if level > 0:
            total += resample(width)
            side *= 2
    return total + norm(width) + conv(width, out or colours)


@pytest.mark.parametrize(
    "mults,side,published",
    [((1, 2, 2, 2), 32, 35_746_307), ((1, 1, 2, 2, 4, 4), 256, 113_673_219)],
)
def test_parameter_counts_are_the_originals(mults, side, published):
    params = shapes_of(UNet(channel_mults=mults), (side, side, 3))
    assert num_params(params) == published == count_by_formula(128, mults, 2, (16,), side, 3)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "channels,mults,side,resample_in_blocks,classes,published",
    [
        (128, (1, 2, 2, 2), 32, False, 0, "50M"),  # Nichol and Dhariwal 2021: CIFAR-10; as in the files' names
        (192, (1, 2, 3, 4), 64, False, 1000, "270M"),  # the same: ImageNet 64x64 with labels
        (192, (1, 2, 3, 4), 64, True, 1000, "296M"),  # Dhariwal and Nichol 2021: ImageNet 64x64
    ],
)
def test_parameter_counts_of_openai(channels, mults, side, resample_in_blocks, classes, published):
    attention = (32, 16, 8) if resample_in_blocks else (16, 8)
    unet = UNet(
        channels, mults, 3, attention, head_channels=64 if resample_in_blocks else 0, num_heads=4, out_channels=6,
        scale_shift_norm=True, resample_in_blocks=resample_in_blocks, num_classes=classes,
    )  # fmt: skip
    count = num_params(shapes_of(unet, (side, side, 3)))
    digits = len(published[:-1].rstrip("0"))
    assert f"{float(f'{count:.{digits - 1}e}') / 1e6:.0f}M" == published
    assert count == count_by_formula(
        channels, mults, 3, attention, side, 3,
        out=6, scale_shift=True, resample_in_blocks=resample_in_blocks, classes=classes,
    )  # fmt: skip


@pytest.mark.parametrize("colours", [1, 2, 3, 4])
@pytest.mark.parametrize("blocks,attention", [(1, ()), (2, (8, 4)), (3, (4,))])
def test_parameter_counts_follow_the_formula(colours, blocks, attention):
    unet = UNet(**{**SMALL, "num_res_blocks": blocks, "attention_resolutions": attention})
    expected = count_by_formula(8, (1, 2), blocks, attention, 8, colours)
    assert num_params(shapes_of(unet, (8, 8, colours))) == expected


@pytest.fixture(scope="module")
def fresh_params(tiny_unet):
    init = jax.jit(lambda key: init_params(tiny_unet, key, (8, 8, 3)))
    return init(jax.random.key(0))


def test_fresh_weights_are_fan_average_uniform_and_zero_layers_almost_0(fresh_params):
    flat = {"/".join(k.key for k in path): v for path, v in jax.tree_util.tree_leaves_with_path(fresh_params)}
    zero_layers = [name for name in flat if name.endswith("kernel") and is_zero_layer(name)]
    num_res, num_attention = 2 + 2 + 4, 1 + 1 + 2
    assert len(zero_layers) == num_res + num_attention + 1
    for name, value in flat.items():
        value = np.asarray(value, np.float64)
        if name.endswith("bias"):
            assert np.all(value == 0), name
        elif name.endswith("scale"):
            assert np.all(value == 1), name
        else:
            *kernel, fan_in, fan_out = value.shape
            average = np.prod(kernel) * (fan_in + fan_out) / 2
            limit = np.sqrt(3 * (1e-10 if is_zero_layer(name) else 1) / average)
            # U(-l, l): no value beyond l, deviation l/sqrt(3) and the largest of n draws at l (1 - some/n).
            n = value.size
            assert limit * (1 - 10 / n) < np.abs(value).max() <= limit * (1 + 1e-6), name
            assert abs(value.std() * np.sqrt(3) / limit - 1) < 5 * 0.45 / np.sqrt(n), name
            assert abs(value.mean()) < 5 * limit / np.sqrt(3 * n), name


def is_zero_layer(name):
    return "conv_2" in name or "/out/" in name or "conv_out" in name


def test_a_fresh_network_predicts_nothing(fresh_params, tiny_apply):
    x_t = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    out = tiny_apply(fresh_params, x_t, jnp.array([0, 999]))
    # The last kernel is below sqrt(3e-10/(9 * 5.5)) = 2.5e-6; 72 products with activations of size 1.
    assert 0 < np.abs(out).max() < 72 * 2.5e-6


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 12, 3), (16, 8, 1), (8, 20, 2), (8, 8, 4)])
def test_any_divisible_size_and_any_number_of_channels(shape):
    unet = UNet(**SMALL)
    params = shapes_of(unet, shape)
    out = jax.eval_shape(
        lambda p, x, t: unet.apply({"params": p}, x, t),
        params,
        jax.ShapeDtypeStruct((3, *shape), jnp.float32),
        jax.ShapeDtypeStruct((3,), jnp.int32),
    )
    assert out.shape == (3, *shape) and out.dtype == jnp.float32
    wide = UNet(**SMALL, out_channels=2 * shape[-1])
    assert shapes_of(wide, shape)["conv_out"]["kernel"].shape == (3, 3, 8, 2 * shape[-1])


def test_samples_do_not_mix(tiny_params, tiny_apply):
    x_t, t = jax.random.normal(jax.random.key(1), (4, 8, 8, 3)), jnp.array([0, 10, 500, 999])
    out = tiny_apply(tiny_params, x_t, t)
    other = tiny_apply(tiny_params, x_t.at[2].mul(-3.0), t.at[2].set(7))
    keep = jnp.array([0, 1, 3])
    np.testing.assert_array_equal(other[keep], out[keep])
    assert np.abs(other[2] - out[2]).max() > 0.01
    # Alone or in company, up to the order of float32 sums.
    alone = tiny_apply(tiny_params, x_t[1:2], t[1:2])
    np.testing.assert_allclose(alone[0], out[1], rtol=1e-4, atol=1e-4 * np.abs(out).max())


def test_every_parameter_and_t_and_every_pixel_matter(tiny_params, tiny_unet):
    x_t, t = jax.random.normal(jax.random.key(1), (1, 8, 8, 3)), jnp.array([10])
    weights = jax.random.normal(jax.random.key(2), x_t.shape)
    f = lambda p, x, t: jnp.sum(weights * tiny_unet.apply({"params": p}, x, t))  # noqa: E731
    by_params, by_x = jax.jit(jax.grad(f, (0, 1)))(tiny_params, x_t, t)
    for path, gradient in jax.tree_util.tree_leaves_with_path(by_params):
        # A bias of all keys alike shifts every logit of a query alike: softmax does not see it.
        if [entry.key for entry in path[-2:]] == ["key", "bias"]:
            assert np.abs(gradient).max() < 1e-2
        else:
            assert np.abs(gradient).max() > 1e-4, path
    assert np.all(by_x != 0)
    apply = jax.jit(f)
    assert abs(apply(tiny_params, x_t, t) - apply(tiny_params, x_t, t + 1)) > 1e-3


def test_dropout_acts_in_training_alone(tiny_params, tiny_unet, tiny_apply):
    x_t, t = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.array([3, 4])
    train = jax.jit(
        lambda key: tiny_unet.apply({"params": tiny_params}, x_t, t, train=True, rngs={"dropout": key})
    )
    one, other = train(jax.random.key(0)), train(jax.random.key(1))
    assert np.abs(one - other).max() > 0.01
    np.testing.assert_array_equal(train(jax.random.key(0)), one)
    out = tiny_apply(tiny_params, x_t, t)
    assert np.abs(one - out).max() > 0.01
    np.testing.assert_array_equal(tiny_apply(tiny_params, x_t, t), out)


def test_bfloat16_computes_low_and_keeps_high(tiny_params, tiny_unet, tiny_apply):
    x_t, t = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.array([3, 400])
    low_unet = tiny_unet.clone(dtype=jnp.bfloat16)
    shapes = shapes_of(low_unet, (8, 8, 3))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    low, state = low_unet.apply({"params": tiny_params}, x_t, t, capture_intermediates=True)
    assert low.dtype == jnp.float32
    outputs = jax.tree_util.tree_leaves_with_path(state["intermediates"])
    for path, value in outputs:
        float32 = any(name in str(path) for name in ("norm", "conv_out")) or len(path) == 2
        assert value.dtype == (jnp.float32 if float32 else jnp.bfloat16), path
    high = tiny_apply(tiny_params, x_t, t)
    # Some 20 layers in a row, each rounding to 2^-9: a few per cent of the output's size, but not nothing.
    error = np.abs(low - high).max() / np.abs(high).max()
    assert 1e-5 < error < 0.1


@pytest.mark.parametrize(
    "change,size,parts",
    [
        ({}, (9, 8), ["image_size", "divisible by 2", "got (9, 8)", "8 or 10"]),
        ({}, (1, 8), ["image_size", "take 2"]),
        ({}, (0, 8), ["image_size", "take 2"]),
        (dict(channel_mults=()), (8, 8), ["channel_mults", "got ()"]),
        (dict(channel_mults=(1, 0)), (8, 8), ["channel_mults", "got (1, 0)"]),
        (dict(channels=7), (8, 8), ["channels", "even", "got 7"]),
        (dict(channels=2, num_groups=1), (8, 8), ["channels", "at least 4", "got 2"]),
        (dict(num_groups=3), (8, 8), ["num_groups", "got 3 groups", "8 = 8 * 1"]),
        (dict(channels=6, channel_mults=(2,)), (8, 8), ["num_groups", "got 4 groups", "6 = 6 * 1"]),
        (dict(num_groups=0), (8, 8), ["num_groups", "at least 1", "got 0"]),
        (dict(num_res_blocks=0), (8, 8), ["num_res_blocks", "at least 1", "got 0"]),
        (dict(attention_resolutions=(4, 16)), (8, 8), ["attention_resolutions", "[8, 4]", "got 16"]),
        (dict(dropout=1.0), (8, 8), ["dropout", "[0, 1)", "got 1.0"]),
        (dict(num_heads=0), (8, 8), ["num_heads", "at least 1", "got 0"]),
        (dict(num_heads=3), (8, 8), ["num_heads", "[16]", "got 3: take 2 or 4"]),
        (dict(num_heads=99), (8, 8), ["num_heads", "got 99: take 16"]),
        (dict(num_heads=16, attention_resolutions=(8, 4)), (8, 8), ["num_heads", "[8, 16]", "got 16: take 8"]),
        (dict(num_heads=3, attention_resolutions=()), (8, 8), ["num_heads", "the middle, [16]", "got 3"]),
        (dict(head_channels=-1), (8, 8), ["head_channels", "at least 0", "got -1"]),
        (dict(head_channels=5), (8, 8), ["head_channels", "[16]", "got 5: take 4 or 8"]),
        (dict(num_classes=-1), (8, 8), ["num_classes", "at least 0", "got -1"]),
        (dict(channel_mults=(0.3, 1)), (8, 8), ["channel_mults", "whole numbers", "got 8 * 0.3"]),
        (dict(channel_mults=(-0.5, 1)), (8, 8), ["channel_mults", "above 0", "got (-0.5, 1)"]),
        (dict(conv_in_channels=-4), (8, 8), ["conv_in_channels", "at least 0", "got -4"]),
        (dict(conv_in_channels=6), (8, 8), ["conv_in_channels", "the 4 groups", "got 6"]),
        (dict(norm_eps=0.0), (8, 8), ["norm_eps", "above 0", "got 0.0"]),
        (dict(time_scale=0.0), (8, 8), ["time_scale", "above 0", "got 0.0"]),
        (dict(time_scale=1001.0), (8, 8), ["time_scale", "at most 1000", "got 1001.0"]),
        (dict(embedding_order="cos"), (8, 8), ["embedding_order", "'cos_sin'", "got 'cos'"]),
        (dict(embedding_spacing="halves"), (8, 8), ["embedding_spacing", "'half_minus_1'", "mean 'half'?"]),
        (dict(down_padding="start"), (8, 8), ["down_padding", "['both', 'end']", "got 'start'"]),
        (
            dict(down_padding="both", resample_in_blocks=True),
            (8, 8),
            ["down_padding", "resample_in_blocks=True", "must be 'end'; got 'both'"],
        ),
    ],
)
def test_check_unet_refuses(change, size, parts):
    with pytest.raises(UserError) as error:
        check_unet(UNet(**{**SMALL, **change}), size)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "\n" not in str(error.value)


def test_check_unet_accepts():
    check_unet(UNet(**SMALL), (8, 12))
    check_unet(UNet(), (32, 32))
    check_unet(UNet(channel_mults=(1, 1, 2, 2, 4, 4)), (256, 256))
    check_unet(UNet(**SMALL, num_heads=16), (8, 8))  # level 0 has 8 channels and no attention
    check_unet(UNet(**SMALL, num_heads=3, head_channels=4), (8, 8))
    check_unet(UNet(**{**SMALL, "channel_mults": (0.5, 1.0)}, conv_in_channels=4), (8, 8))
    check_unet(UNet(10, (0.8, 1.6), 1, (), num_groups=4, conv_in_channels=8), (8, 8))  # no norm has 10 channels
