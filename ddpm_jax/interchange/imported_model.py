"""What comes out of another code's file: a whole config and the weights of its network."""

import math
from dataclasses import dataclass
from typing import Any

import jax
from ml_collections import ConfigDict

from ddpm_jax.experiment import config_checks, model_factory
from ddpm_jax.experiment.packaged_configs import with_defaults
from ddpm_jax.interchange.tensor_mapping import Path, leaf_shapes
from ddpm_jax.models.unet import init_params

OWN_CONFIG = "ddpm_jax_config"  # the text beside the tensors that holds a config of this package


@dataclass(frozen=True)
class Imported:
    """A trained network by our names, not yet in a workdir.

    Attributes:
      config: complete and locked, as of `experiment.config_files.load_config`.
      params: the float32 NumPy tree of `experiment.model_factory.build_model(config)`.
      ema_params: the averaged weights; `params` itself where the file holds one set.
      notes: lines worth telling the person, such as what the file does not say.
    """

    config: ConfigDict
    params: dict
    ema_params: dict
    notes: tuple[str, ...] = ()


def config_of(*, image_size: tuple[int, int], num_channels: int, **groups: dict[str, Any]) -> ConfigDict:
    """The config of an imported network: what its file says, and else the defaults of configs/base.py.

    The data are a folder of pictures that is not known yet, none of them held out. Batches are as large as those of
    32x32 pictures by their number of pixels.

    Args:
      groups: fields by group, such as `schedule={"name": "linear"}`.
    """
    config = with_defaults(ConfigDict()).copy_and_resolve_references()
    pictures = max(1, 256 * 64**2 // math.prod(image_size))
    with config.unlocked():
        config.data.update(
            name="image_folder", split="train", eval_split="", image_size=tuple(image_size), num_channels=num_channels
        )
        config.train.batch_size = min(config.train.batch_size, pictures)
        config.eval.batch_size = min(config.eval.batch_size, pictures)
        config.sample.batch_size = min(config.sample.batch_size, pictures)
        config.sample.num_grid = min(config.sample.num_grid, pictures)
        for group, fields in groups.items():
            config[group].update(fields)
    return config.lock()


def shapes_of(config: ConfigDict) -> dict[Path, tuple[int, ...]]:
    """The shapes of the leaves of the config's network; raises UserError where it cannot be built."""
    model, image_shape = model_factory.build_model(config), config_checks.image_shape_of(config)
    return leaf_shapes(jax.eval_shape(lambda key: init_params(model, key, image_shape), jax.random.key(0)))
