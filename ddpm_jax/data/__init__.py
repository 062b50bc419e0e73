"""Batches of uint8 images from an embedded data set, original files, a folder, an array file or TFDS.

Importing this package is cheap: TensorFlow Datasets, scikit-learn and Pillow are imported only by the source that needs
them. TensorFlow is never needed for reading.
"""

from ddpm_jax.data.batch_loader import BatchLoader, LoaderCounts
from ddpm_jax.data.image_source import ImageSource
from ddpm_jax.data.shuffling import batch_indices
from ddpm_jax.data.source_registry import make_source

__all__ = ["BatchLoader", "ImageSource", "LoaderCounts", "batch_indices", "make_source"]
