"""The picture of the samples of a run."""

import numpy as np

from ddpm_jax.codecs.pixels import to_uint8
from ddpm_jax.experiment.generator import Generator
from ddpm_jax.experiment.image_condition import SHOWN
from ddpm_jax.runtime.image_files import class_columns, grid_of_groups, image_grid


def sample_picture(generator: Generator, images: np.ndarray, num_columns: int | None = None) -> np.ndarray:
    """Samples 0 to N - 1 as one image: with classes each column has one; with a task beside what the network is shown.

    Args:
      images: uint8 [N, H, W, C].
      num_columns: samples in a row; None: one class in each column, or as high as wide.

    Returns:
      uint8 [height, width] or [height, width, 3].
    """
    shown = generator.condition_of(np.arange(len(images))).get(SHOWN)
    if shown is None:
        return image_grid(images, num_columns or class_columns(len(images), generator.num_classes))
    return grid_of_groups({"shown": np.asarray(to_uint8(shown)), "sample": images}, num_columns)
