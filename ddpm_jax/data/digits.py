"""The 1,797 scanned handwritten digits, 8 x 8, that scikit-learn ships: real images without a download."""

import numpy as np

from ddpm_jax.data.image_source import ImageSource, fit_images
from ddpm_jax.data.splits import check_split, split_rows

SPLITS = ("train", "test", "all")


def make_digits(*, split: str, image_size: tuple[int, int], num_channels: int) -> ImageSource:
    """The digits as round(255 v / 16), v = 0..16 being their grey levels (E. Alpaydin, C. Kaynak, 1998).

    Args:
        split: `test` is every tenth image (180), `train` the others (1,617), `all` both; slices of them.
        image_size: (H, W) in pixels; 8 x 8 is native.
        num_channels: 1, or 3 equal channels.

    Raises:
        UserError: the split is unknown or empty.
    """
    name = check_split(split, SPLITS)
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # [N, 8, 8, 1]
    is_test = np.arange(len(images)) % 10 == 0
    rows = np.flatnonzero({"train": ~is_test, "test": is_test, "all": np.ones_like(is_test)}[name])
    rows = rows[split_rows(split, num_examples=len(rows))]
    labels = digits.target[rows].astype(np.int64)
    return fit_images(images[rows], labels, image_size=image_size, num_channels=num_channels)
