"""A batch as it travels to the device, uint8 images and perhaps labels, and its images as float32 in [-1, 1]."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

Images = UInt8[Array | np.ndarray, "B H W C"]
Labels = Int[Array | np.ndarray, "B"]
Batch = Images | tuple[Images, Labels]


def images_and_labels(batch: Batch) -> tuple[Images, Labels | None]:
    """Both parts of a batch; None where it has no labels."""
    return batch if isinstance(batch, tuple) else (batch, None)


def label_args(labels: Labels | None) -> tuple[Labels, ...]:
    """What a network is called with after x_t and t."""
    return () if labels is None else (labels,)


def to_model_scale(images: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """x/127.5 - 1: uint8 0..255 -> float32 [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(x_0: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """[-1, 1] -> the nearest of 0..255; values outside are clipped."""
    return jnp.clip(jnp.round((x_0 + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
