"""From `codec.name` of a config, and the group of that name, to the codec between the data and x_0."""

import functools
from collections.abc import Callable

from ml_collections import ConfigDict

from ddpm_jax.codecs.codec import PIXELS, Codec
from ddpm_jax.codecs.floats import FloatCodec
from ddpm_jax.experiment.config_checks import fields_named, image_shape_of
from ddpm_jax.experiment.config_json import config_from_json, config_to_json
from ddpm_jax.runtime.errors import check_one_of

# Name -> function that builds the codec from a config. That of an autoencoder would read its parameters, such as from a
# workdir named in the config's group: `Checkpoints(workdir).restore_params("ema_params")`.
CODECS: dict[str, Callable[[ConfigDict], Codec]] = {
    "pixels": lambda config: PIXELS,
    "floats": lambda config: FloatCodec(config.floats.mean, config.floats.scale),
}


def build_codec(config: ConfigDict) -> Codec:
    """The codec of a config, the same object for the same config; raises UserError for an unknown name."""
    own = "; a codec of your own must be in CODECS of this process (docs/extending.md)"
    check_one_of("codec.name", config.codec.name, CODECS, own)
    with fields_named(config.codec.name):
        return _built(CODECS[config.codec.name], config_to_json(config))


@functools.lru_cache(maxsize=4)
def _built(build: Callable[[ConfigDict], Codec], config_json: str) -> Codec:
    return build(config_from_json(config_json))


def data_dtype_of(config: ConfigDict) -> str:
    """The dtype of the data that the codec encodes; uint8 for a codec without the attribute."""
    return getattr(build_codec(config), "dtype", "uint8")


def x_0_shape_of(config: ConfigDict) -> tuple[int, ...]:
    """The shape of one x_0: that of the image for pixels."""
    return build_codec(config).x_0_shape(image_shape_of(config))
