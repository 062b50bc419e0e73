"""From the group `data` of a config to the images of a split, as they are in the data."""

from ml_collections import ConfigDict

from ddpm_jax.data import ImageSource, make_source
from ddpm_jax.data.wrapped_sources import RenamingSource, ShrunkSource
from ddpm_jax.experiment.codec_factory import data_dtype_of
from ddpm_jax.experiment.config_checks import field_names, image_shape_of
from ddpm_jax.runtime.errors import arguments_named, check_between


def plain_source(config: ConfigDict, split: str, field: str = "data.split") -> ImageSource:
    """The images of one split; `field` is the config field that named it, for error messages."""
    data, factor = config.data, config.data.area_factor
    *sizes, channels = image_shape_of(config)
    check_between("data.area_factor", factor, 1, 1024)
    renamed = {"split": field, "path=DIR": "--config.data.path=DIR", "dtype": "codec.name"}
    renamed |= {"dtype='uint8'": "codec.name='pixels'", "dtype='float32'": "codec.name='floats'"}
    names = field_names("data", renamed)
    with arguments_named(names):
        source = make_source(
            name=data.name,
            split=split,
            image_size=tuple(size * factor for size in sizes),
            num_channels=channels,
            dtype=data_dtype_of(config),
            path=data.path,
            data_dir=data.data_dir,
        )
        if factor > 1:
            source = ShrunkSource(source, factor)
    return RenamingSource(source, names)
