"""Batches of uint8 images from an embedded set, original files, a folder, an array file or TFDS.

Importing this package is cheap: TensorFlow Datasets, scikit-learn and Pillow are imported by the source
that needs them, TensorFlow never for reading.
"""

from ddpm_jax.data.loader import BatchLoader, LoaderCounts
from ddpm_jax.data.named import make_source
from ddpm_jax.data.order import batch_indices
from ddpm_jax.data.source import ImageSource

__all__ = ["BatchLoader", "ImageSource", "LoaderCounts", "batch_indices", "make_source"]
