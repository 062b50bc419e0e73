"""A batch as it travels to the device: uint8 images, or for a network with classes the pair of them and labels."""

import numpy as np
from jaxtyping import Array, Int, UInt8

Images = UInt8[Array | np.ndarray, "B H W C"]
Labels = Int[Array | np.ndarray, "B"]
Batch = Images | tuple[Images, Labels]


def images_and_labels(batch: Batch) -> tuple[Images, Labels | None]:
    """Both parts of a batch; None where it has no labels."""
    return batch if isinstance(batch, tuple) else (batch, None)


def label_args(labels: Labels | None) -> tuple[Labels, ...]:
    """What a network is called with after x_t and t."""
    return () if labels is None else (labels,)
