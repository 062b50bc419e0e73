"""From a config to the images of a split, with the columns for the network's condition."""

from ml_collections import ConfigDict

from ddpm_jax.data import ImageSource
from ddpm_jax.experiment.conditions import check_source
from ddpm_jax.experiment.image_condition import with_shown_images
from ddpm_jax.experiment.plain_source import plain_source


def build_source(config: ConfigDict, split: str, field: str = "data.split") -> ImageSource:
    """The images of one split; `field` is the config field that named it, for error messages."""
    source = with_shown_images(config, plain_source(config, split, field))
    check_source(config, source, f"{config.data.name} {split!r}")
    return source
