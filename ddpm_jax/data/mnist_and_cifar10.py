"""MNIST, Fashion-MNIST and CIFAR-10 from the files that their authors published, placed in a folder by the user."""

import os
from pathlib import Path

from ddpm_jax.data.cifar10_files import read_cifar10
from ddpm_jax.data.idx_files import read_idx_pair
from ddpm_jax.data.image_source import ImageSource, fit_images
from ddpm_jax.data.splits import check_split, split_rows
from ddpm_jax.runtime.errors import UserError, arg

NAMES = ("mnist", "fashion_mnist", "cifar10")
SPLITS = ("train", "test")


def make_originals(*, name: str, split: str, image_size: tuple[int, int], num_channels: int, path: str) -> ImageSource:
    """A split of `name`, read from the folder `path` without TensorFlow.

    Args:
        name: `mnist`, `fashion_mnist` (idx files) or `cifar10` (its binary or its Python version).
        split: `train` or `test`, or a slice of one.
        image_size: (H, W) in pixels; 28 x 28 and 32 x 32 are native.
        num_channels: 1 or 3.
        path: the folder that holds the files, compressed or not.

    Raises:
        UserError: the folder, a file in it or the split is missing or wrong.
    """
    split_part = check_split(split, SPLITS)
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir():
        kind = "a file" if folder.exists() else "no such folder"
        raise UserError(
            f"{arg('path')} must be the folder that holds the original files of {name!r}; got {path!r} ({kind})"
        )
    images, labels = (read_cifar10 if name == "cifar10" else read_idx_pair)(folder, split_part)
    rows = split_rows(split, num_examples=len(images))
    if len(rows) < len(images):
        images, labels = images[rows], labels[rows]
    return fit_images(images, labels, image_size=image_size, num_channels=num_channels)
