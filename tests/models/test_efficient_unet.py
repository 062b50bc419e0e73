"""The Efficient U-Net's options: where each block works, how wide it is, and what the scale of the skips changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models.parameters import init_params, num_params
from ddpm_jax.models.unet import UNet
from ddpm_jax.models.unet_checks import check_unet
from ddpm_jax.runtime.errors import UserError

SMALL = dict(channels=8, channel_mults=(1, 2), res_blocks_per_level=(1, 2), attention_resolutions=(4,), num_groups=4)
# Of images of 16x16 with 3 channels: block -> height of its output, channels of its input, of its output.
EFFICIENT = {
    "conv_in": (16, 3, 8),
    "down_0_downsample": (8, 8, 8),
    "down_0_block_0": (8, 8, 8),
    "down_1_downsample": (4, 8, 16),
    "down_1_block_0": (4, 16, 16),
    "down_1_attention_0": (4, 16, 16),
    "down_1_block_1": (4, 16, 16),
    "down_1_attention_1": (4, 16, 16),
    "middle_block_0": (4, 16, 16),
    "middle_attention": (4, 16, 16),
    "middle_block_1": (4, 16, 16),
    "up_1_block_0": (4, 16 + 16, 16),
    "up_1_attention_0": (4, 16, 16),
    "up_1_block_1": (4, 16 + 16, 16),
    "up_1_attention_1": (4, 16, 16),
    "up_1_block_2": (4, 16 + 16, 16),
    "up_1_attention_2": (4, 16, 16),
    "up_1_upsample": (8, 16, 16),
    "up_0_block_0": (8, 16 + 8, 8),
    "up_0_block_1": (8, 8 + 8, 8),
    "up_0_upsample": (16, 8, 8),
    "last_block": (16, 8 + 8, 8),
    "conv_out": (16, 8, 3),
}
# Of images of 8x8, in the usual order.
USUAL = {
    "conv_in": (8, 3, 8),
    "down_0_block_0": (8, 8, 8),
    "down_0_downsample": (4, 8, 8),
    "down_1_block_0": (4, 8, 16),
    "down_1_attention_0": (4, 16, 16),
    "down_1_block_1": (4, 16, 16),
    "down_1_attention_1": (4, 16, 16),
    "middle_block_0": (4, 16, 16),
    "middle_attention": (4, 16, 16),
    "middle_block_1": (4, 16, 16),
    "up_1_block_0": (4, 16 + 16, 16),
    "up_1_attention_0": (4, 16, 16),
    "up_1_block_1": (4, 16 + 16, 16),
    "up_1_attention_1": (4, 16, 16),
    "up_1_block_2": (4, 16 + 8, 16),
    "up_1_attention_2": (4, 16, 16),
    "up_1_upsample": (8, 16, 16),
    "up_0_block_0": (8, 16 + 8, 8),
    "up_0_block_1": (8, 8 + 8, 8),
    "conv_out": (8, 8, 3),
}


def shapes_of(unet, image_shape):
    return jax.eval_shape(lambda key: init_params(unet, key, image_shape), jax.random.key(0))


def random_params(unet, image_shape):
    rng = np.random.default_rng(0)
    fill = lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype)  # noqa: E731
    return jax.tree.map(fill, shapes_of(unet, image_shape))


def traced(unet, image_shape):
    """The shape of the network's output for one image, those of its blocks, and its parameters."""
    x_t, t = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    key = jax.random.key(0)
    out, state = jax.eval_shape(lambda x, t: unet.init_with_output(key, x, t, capture_intermediates=True), x_t, t)
    blocks = {name: found["__call__"][0].shape for name, found in state["intermediates"].items() if name != "__call__"}
    return out.shape, blocks, state["params"]


def num_of_block(name, taken, given, embedding, in_blocks):
    """Weights of a block, from its kind and its channels."""
    if "attention" in name:
        return 2 * taken + 4 * (taken + 1) * taken
    if name.startswith("conv") or (name.endswith("sample") and not in_blocks):
        return 9 * taken * given + given
    shortcut = (taken + 1) * given if taken != given else 0
    convolutions = (9 * taken + 1) * given + (9 * given + 1) * given
    return convolutions + (embedding + 1) * given + 2 * taken + 2 * given + shortcut


@pytest.mark.parametrize("first,side,table", [(True, 16, EFFICIENT), (False, 8, USUAL)])
@pytest.mark.parametrize("in_blocks", [False, True])
def test_each_block_has_its_height_and_its_channels(first, side, table, in_blocks):
    unet = UNet(**SMALL, downsample_first=first, resample_in_blocks=in_blocks)
    out, outputs, params = traced(unet, (side, side, 3))
    assert out == (1, side, side, 3)
    assert {name: outputs[name] for name in table} == {
        name: (1, height, height, given) for name, (height, _, given) in table.items()
    }
    assert params.keys() - table.keys() == {"time_1", "time_2", "norm_out"}
    counts = {name: num_of_block(name, taken, given, 32, in_blocks) for name, (_, taken, given) in table.items()}
    assert {name: num_params(params[name]) for name in table} == counts
    assert num_params(params) == sum(counts.values()) + 9 * 32 + 33 * 32 + 2 * 8


def test_equal_numbers_are_one_number_to_the_bit():
    one, each = (UNet(4, (1, 2), 1, (), num_groups=2, res_blocks_per_level=numbers) for numbers in ((), (1, 1)))
    assert shapes_of(one, (8, 8, 3)) == shapes_of(each, (8, 8, 3))
    inputs = shapes_of(one, (8, 8, 3)), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32), jnp.array([3])
    programs = [jax.jit(lambda p, x, t, unet=unet: unet.apply({"params": p}, x, t)) for unet in (one, each)]
    assert len({program.lower(*inputs).as_text() for program in programs}) == 1


@pytest.fixture(scope="module")
def even():
    """A network without self-attention whose groups of a concatenation are of one of its parts; and its parameters."""
    unet = UNet(8, (1, 1), 1, (), num_groups=4, norm_eps=1e-12, dropout=0.0)
    return unet, random_params(unet, (8, 8, 3))


def test_scaled_skips_are_the_plain_ones_with_scaled_shortcuts(even):
    """GroupNorm undoes the scale in each group of skip channels; what is left is in the 1x1 shortcuts."""
    unet, params = even
    x_t, t = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.array([3, 700])
    networks = {scaled: unet.clone(scale_skips=scaled) for scaled in (False, True)}
    apply = jax.jit(lambda params, scaled: networks[scaled].apply({"params": params}, x_t, t), static_argnums=1)

    def with_shortcuts(scale):
        def changed(name, block):
            if not name.startswith("up") or "shortcut" not in block:
                return block
            kernel = block["shortcut"]["kernel"]
            return block | {"shortcut": block["shortcut"] | {"kernel": kernel.at[8:].multiply(scale)}}  # 8: of h

        return {name: changed(name, block) for name, block in params.items()}

    plain, scaled = apply(params, False), apply(params, True)
    largest = np.abs(plain).max()
    # Some 30 layers of sums of up to 144 products, in another order.
    np.testing.assert_allclose(scaled, apply(with_shortcuts(2**-0.5), False), atol=2e-5 * largest)
    assert np.abs(scaled - plain).max() > 1e-2 * largest
    without = with_shortcuts(0.0)
    np.testing.assert_allclose(apply(without, True), apply(without, False), atol=2e-5 * largest)


def test_the_last_block_sees_single_pixels():
    """Of an image that repeats itself every 2x2 pixels, what is upsampled is the same in all four: x_t is not."""
    unet = UNet(4, (1,), 1, (), num_groups=2, dropout=0.0, downsample_first=True)
    params = random_params(unet, (64, 64, 1))
    rows, columns = np.indices((64, 64))
    x_t = jnp.asarray((-1.0) ** (rows + columns), jnp.float32)[None, :, :, None]
    apply = jax.jit(lambda params: unet.apply({"params": params}, x_t, jnp.array([3]))[0, 30:34, 30:34, 0])
    # Eleven 3x3 convolutions at 32x32 do not reach the middle from the border.
    assert np.std(apply(params)) > 1e-2
    block = params["last_block"]
    deaf = {
        "norm_1": {"norm": {name: leaf.at[4:].set(0.0) for name, leaf in block["norm_1"]["norm"].items()}},
        "shortcut": block["shortcut"] | {"kernel": block["shortcut"]["kernel"].at[4:].set(0.0)},
    }
    assert np.std(apply(params | {"last_block": block | deaf})) < 1e-5


@pytest.mark.parametrize("mults,shape", [((1,), (2, 6, 1)), ((1, 2), (12, 20, 3))])
def test_one_level_and_odd_heights(mults, shape):
    unet = UNet(8, mults, 1, (), num_groups=4, downsample_first=True, scale_skips=True, down_padding="both")
    check_unet(unet, shape[:2])
    out, outputs, _ = traced(unet, shape)
    assert out == (1, *shape)
    assert outputs["middle_block_1"][1:3] == tuple(side // 2 ** len(mults) for side in shape[:2])


@pytest.mark.parametrize(
    "change,size,message",
    [
        (
            dict(res_blocks_per_level=(1,)), (16, 16),
            "res_blocks_per_level must be a whole number above 0 for each level of channel_mults (2), or () for "
            "num_res_blocks in all; got (1,)",
        ),
        (dict(res_blocks_per_level=(1, 2, 3)), (16, 16), "for each level of channel_mults (2), or ()"),
        (dict(res_blocks_per_level=(1, 0)), (16, 16), "got (1, 0)"),
        (dict(res_blocks_per_level=(1, True)), (16, 16), "got (1, True)"),
        (dict(res_blocks_per_level=(1, 500)), (16, 16), "at most 500 blocks (the sum of res_blocks_per_level)"),
        (
            dict(), (16, 10),
            "image_size must be divisible by 4 = 2^levels for the 2 levels of channel_mults and downsample_first=True; "
            "got (16, 10): take 8 or 12, or fewer levels",
        ),
        (dict(attention_resolutions=(16,)), (16, 16), "the heights of the levels, [8, 4]; got 16"),
    ],
)  # fmt: skip
def test_check_unet_refuses(change, size, message):
    with pytest.raises(UserError) as error:
        check_unet(UNet(**{**SMALL, "downsample_first": True, **change}), size)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_check_unet_accepts():
    check_unet(UNet(**SMALL), (8, 12))
    check_unet(UNet(**SMALL, downsample_first=True), (16, 12))
    imagen = UNet(128, (1, 2, 4, 8), attention_resolutions=(16,), num_heads=8, res_blocks_per_level=(2, 4, 8, 8))
    check_unet(imagen.clone(downsample_first=True, scale_skips=True), (256, 256))
