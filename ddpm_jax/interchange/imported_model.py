"""What comes out of another code's file: a whole config and the weights of its network."""

import math
from dataclasses import dataclass
from typing import Any

import jax

from ddpm_jax.experiment import config_checks, model_factory
from ddpm_jax.experiment.config_files import Config, config_of_groups
from ddpm_jax.experiment.config_overrides import fields_by_group
from ddpm_jax.experiment.packaged_configs import base_config
from ddpm_jax.interchange.tensor_mapping import Path, leaf_shapes
from ddpm_jax.models.parameters import init_params

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

    config: Config
    params: dict
    ema_params: dict
    notes: tuple[str, ...] = ()


def config_of(*, image_size: tuple[int, int], num_channels: int, **groups: dict[str, Any]) -> Config:
    """The config of an imported network: what its file says, and else the defaults of configs/base.py.

    The data are a folder of images that is not known yet, none of them held out. Batches are as large as those of
    32x32 images by their number of pixels.

    Args:
      groups: fields by group, such as `schedule={"name": "linear"}`.
    """
    defaults, num_images = fields_by_group(base_config()), max(1, 256 * 64**2 // math.prod(image_size))
    given = {
        "data": {
            "name": "image_folder",
            "split": "train",
            "eval_split": "",
            "image_size": tuple(image_size),
            "num_channels": num_channels,
        },
        "train": {"batch_size": min(defaults["train"]["batch_size"], num_images)},
        "eval": {"batch_size": min(defaults["eval"]["batch_size"], num_images)},
        "sample": {name: min(defaults["sample"][name], num_images) for name in ("batch_size", "num_grid")},
    }
    return config_of_groups({name: given.get(name, {}) | groups.get(name, {}) for name in given | groups})


def shapes_of(config: Config) -> dict[Path, tuple[int, ...]]:
    """The shapes of the leaves of the config's network; raises UserError where it cannot be built."""
    model, image_shape = model_factory.build_model(config), config_checks.image_shape_of(config)
    return leaf_shapes(jax.eval_shape(lambda key: init_params(model, key, image_shape), jax.random.key(0)))
