"""Inception v3 as the FID uses it: the TensorFlow graph of 2015-12-05, whose numbers papers report.

It differs from torchvision's Inception v3: 1,008 outputs, average pools that do not count the padding, and a max pool
in the last block. Layers have the names of that graph, with `_` for `/`. Batch norms are folded into the convolutions.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

INPUT_SIZE = 299
NUM_CLASSES = 1008
NUM_SPATIAL_CHANNELS = 7
WIDTHS = {"pool": 2048, "spatial": 17 * 17 * NUM_SPATIAL_CHANNELS, "logits": NUM_CLASSES}


class Features(NamedTuple):
    """The outputs that the metrics use."""

    pool: Float[Array, "B 2048"]  # pool_3: FID, KID, precision, recall
    spatial: Float[Array, "B 2023"]  # the first 7 channels of mixed_6/conv, 17 x 17: sFID (Nash et al. 2021)
    logits: Float[Array, "B 1008"] | None  # pool times the output layer's weights, without its bias: Inception Score


class Conv(nn.Module):
    """relu(conv + bias).

    Attributes:
      kernel: height and width.
    """

    channels: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # Full float32 also on accelerators, whose default precision would change the third digit of the features.
        conv = nn.Conv(
            self.channels, self.kernel, strides=self.stride, padding=self.padding,
            precision=jax.lax.Precision.HIGHEST, name="conv",
        )  # fmt: skip
        return nn.relu(conv(x))


def average_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """The mean over 3x3 pixels, not counting padding."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def halving_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """The maximum over 3x3 pixels at every second pixel, without padding."""
    return nn.max_pool(x, (3, 3), strides=(2, 2))


class Inception(nn.Module):
    """Images -> `Features`.

    Attributes:
      has_output: whether there are weights for the output layer, and therefore logits.
    """

    has_output: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> Features:
        """x: [B, 299, 299, 3], from `to_input_range`. (Other sizes of at least 75 work, for tests.)"""
        for name, conv in {
            "conv": Conv(32, (3, 3), stride=2, padding="VALID", name="conv"),
            "conv_1": Conv(32, (3, 3), padding="VALID", name="conv_1"),
            "conv_2": Conv(64, (3, 3), name="conv_2"),
            "conv_3": Conv(80, (1, 1), name="conv_3"),
            "conv_4": Conv(192, (3, 3), padding="VALID", name="conv_4"),
        }.items():
            x = conv(x)
            if name in ("conv_2", "conv_4"):
                x = halving_pool(x)
        for name, pool_channels in (("mixed", 32), ("mixed_1", 64), ("mixed_2", 64)):
            x = _block_35(x, name, pool_channels)  # [B, 35, 35, 256 or 288]
        x = _to_17(x, "mixed_3")
        for name, width in (("mixed_4", 128), ("mixed_5", 160), ("mixed_6", 160), ("mixed_7", 192)):
            x, first_branch = _block_17(x, name, width)  # [B, 17, 17, 768]
            if name == "mixed_6":
                spatial = first_branch[..., :NUM_SPATIAL_CHANNELS]
        x = _to_8(x, "mixed_8")
        x = _block_8(x, "mixed_9", average_pool)  # [B, 8, 8, 2048]
        x = _block_8(x, "mixed_10", lambda x: nn.max_pool(x, (3, 3), padding="SAME"))
        pool = x.mean(axis=(1, 2))
        logits = None
        if self.has_output:
            kernel = self.param("logits_kernel", nn.initializers.lecun_normal(), (2048, NUM_CLASSES))
            logits = jnp.matmul(pool, kernel, precision=jax.lax.Precision.HIGHEST)
        return Features(pool, spatial.reshape(len(x), -1), logits)


def to_input_range(images: Float[Array, "..."]) -> Float[Array, "..."]:
    """0..255 -> (x - 128)/128, -1..0.9921875."""
    return (images - 128.0) / 128.0


def resize_tf_bilinear(images: UInt8[Array, "B H W C"] | Float[Array, "B H W C"], size: int = INPUT_SIZE) -> Array:
    """float32 [B, size, size, C]: ResizeBilinear of TensorFlow 1, as in the FID graph.

    Pixel i of the result is at i * H/size in the image, interpolated between rows floor and floor + 1 (the last row is
    repeated): only the top left corners are aligned, and there is no antialiasing when an image shrinks.
    """
    x = images.astype(jnp.float32)
    for axis in (1, 2):
        length = x.shape[axis]
        position = jnp.arange(size, dtype=jnp.float32) * jnp.float32(length / size)
        low = jnp.minimum(jnp.floor(position).astype(jnp.int32), length - 1)
        high = jnp.minimum(low + 1, length - 1)
        shape = [1] * 4
        shape[axis] = size
        fraction = (position - low).reshape(shape)
        from_low, from_high = jnp.take(x, low, axis=axis), jnp.take(x, high, axis=axis)
        x = from_low + (from_high - from_low) * fraction
    return x


def _block_35(x: Array, name: str, pool_channels: int) -> Array:
    tower = Conv(48, (1, 1), name=f"{name}_tower_conv")(x)
    tower = Conv(64, (5, 5), name=f"{name}_tower_conv_1")(tower)
    tower_1 = Conv(64, (1, 1), name=f"{name}_tower_1_conv")(x)
    tower_1 = Conv(96, (3, 3), name=f"{name}_tower_1_conv_1")(tower_1)
    tower_1 = Conv(96, (3, 3), name=f"{name}_tower_1_conv_2")(tower_1)
    tower_2 = Conv(pool_channels, (1, 1), name=f"{name}_tower_2_conv")(average_pool(x))
    return jnp.concatenate([Conv(64, (1, 1), name=f"{name}_conv")(x), tower, tower_1, tower_2], axis=-1)


def _to_17(x: Array, name: str) -> Array:
    conv = Conv(384, (3, 3), stride=2, padding="VALID", name=f"{name}_conv")(x)
    tower = Conv(64, (1, 1), name=f"{name}_tower_conv")(x)
    tower = Conv(96, (3, 3), name=f"{name}_tower_conv_1")(tower)
    tower = Conv(96, (3, 3), stride=2, padding="VALID", name=f"{name}_tower_conv_2")(tower)
    return jnp.concatenate([conv, tower, halving_pool(x)], axis=-1)


def _block_17(x: Array, name: str, width: int) -> tuple[Array, Array]:
    """(the block's result, its first branch)."""
    conv = Conv(192, (1, 1), name=f"{name}_conv")(x)
    tower = Conv(width, (1, 1), name=f"{name}_tower_conv")(x)
    tower = Conv(width, (1, 7), name=f"{name}_tower_conv_1")(tower)
    tower = Conv(192, (7, 1), name=f"{name}_tower_conv_2")(tower)
    tower_1 = Conv(width, (1, 1), name=f"{name}_tower_1_conv")(x)
    for index, kernel in enumerate(((7, 1), (1, 7), (7, 1), (1, 7)), start=1):
        tower_1 = Conv(192 if index == 4 else width, kernel, name=f"{name}_tower_1_conv_{index}")(tower_1)
    tower_2 = Conv(192, (1, 1), name=f"{name}_tower_2_conv")(average_pool(x))
    return jnp.concatenate([conv, tower, tower_1, tower_2], axis=-1), conv


def _to_8(x: Array, name: str) -> Array:
    tower = Conv(192, (1, 1), name=f"{name}_tower_conv")(x)
    tower = Conv(320, (3, 3), stride=2, padding="VALID", name=f"{name}_tower_conv_1")(tower)
    tower_1 = Conv(192, (1, 1), name=f"{name}_tower_1_conv")(x)
    tower_1 = Conv(192, (1, 7), name=f"{name}_tower_1_conv_1")(tower_1)
    tower_1 = Conv(192, (7, 1), name=f"{name}_tower_1_conv_2")(tower_1)
    tower_1 = Conv(192, (3, 3), stride=2, padding="VALID", name=f"{name}_tower_1_conv_3")(tower_1)
    return jnp.concatenate([tower, tower_1, halving_pool(x)], axis=-1)


def _block_8(x: Array, name: str, pool) -> Array:
    tower = Conv(384, (1, 1), name=f"{name}_tower_conv")(x)
    tower_1 = Conv(448, (1, 1), name=f"{name}_tower_1_conv")(x)
    tower_1 = Conv(384, (3, 3), name=f"{name}_tower_1_conv_1")(tower_1)
    branches = [Conv(320, (1, 1), name=f"{name}_conv")(x)]
    for prefix, h in ((f"{name}_tower", tower), (f"{name}_tower_1", tower_1)):
        branches.append(Conv(384, (1, 3), name=f"{prefix}_mixed_conv")(h))
        branches.append(Conv(384, (3, 1), name=f"{prefix}_mixed_conv_1")(h))
    branches.append(Conv(192, (1, 1), name=f"{name}_tower_2_conv")(pool(x)))
    return jnp.concatenate(branches, axis=-1)
