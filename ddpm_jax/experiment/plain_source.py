"""From the group `data` of a config to the images of a split, as they are in the data."""

from ml_collections import ConfigDict

from ddpm_jax.data import ImageSource, make_source
from ddpm_jax.data.wrapped_sources import RenamingSource
from ddpm_jax.experiment.codec_factory import data_dtype_of
from ddpm_jax.experiment.config_checks import field_names, image_shape_of
from ddpm_jax.runtime.errors import arguments_named


def plain_source(config: ConfigDict, split: str, field: str = "data.split") -> ImageSource:
    """The images of one split; `field` is the config field that named it, for error messages."""
    data = config.data
    shape = image_shape_of(config)
    renamed = {"split": field, "path=DIR": "--config.data.path=DIR", "dtype": "codec.name"}
    renamed |= {"dtype='uint8'": "codec.name='pixels'", "dtype='float32'": "codec.name='floats'"}
    names = field_names("data", renamed)
    with arguments_named(names):
        source = make_source(
            name=data.name,
            split=split,
            image_size=shape[:-1],
            num_channels=shape[-1],
            dtype=data_dtype_of(config),
            path=data.path,
            data_dir=data.data_dir,
        )
    return RenamingSource(source, names)
