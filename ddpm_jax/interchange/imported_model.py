"""The result of an import: a complete config and the weights of its network."""

import math
import shlex
from dataclasses import dataclass
from typing import Any

from ddpm_jax.experiment import model_factory
from ddpm_jax.experiment.config_files import Config, config_of_groups
from ddpm_jax.experiment.config_overrides import fields_by_group
from ddpm_jax.experiment.packaged_configs import base_config
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.interchange.tensor_mapping import Path, leaf_shapes
from ddpm_jax.models.parameters import num_params
from ddpm_jax.runtime.errors import UserError

OWN_CONFIG = "ddpm_jax_config"  # the text next to the tensors in a file that contains a config of this package


@dataclass(frozen=True)
class Imported:
    """A trained network by our names, not yet in a workdir.

    Attributes:
      config: complete and locked, as from `experiment.config_files.load_config`.
      params: the float32 NumPy tree of `experiment.model_factory.build_network(config)`.
      ema_params: the averaged weights; `params` itself if the file has only one set.
      notes: lines to show to the user, such as what the file does not say.
    """

    config: Config
    params: dict
    ema_params: dict
    notes: tuple[str, ...] = ()


def config_of(*, image_size: tuple[int, int], num_channels: int, **groups: dict[str, Any]) -> Config:
    """The config of an imported network: the settings of its file, and the defaults of configs/base.py for the rest.

    The data are set to a folder of images that is not known yet, with no held-out images. Batches have about as many
    pixels as those for 32x32 images.

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


def described(source: str, imported: Imported) -> list[str]:
    """Lines that say what was imported, so that the user can check it.

    Args:
      source: the name of the format.
    """
    config, run = imported.config, TrainedRun(0, imported.config, imported.params)
    facts, betas, num_classes = run.facts, run.process.schedule.betas, run.model.num_classes
    shape, classes = "x".join(map(str, run.image_shape)), f" with {num_classes} classes" if num_classes else ""
    lines = [
        f"network   {num_params(imported.params):,} parameters for images of {shape}{classes}, from {source}",
        f"schedule  {facts['schedule']}, {facts['num_steps']} steps, beta {betas[0]:.3g} to {betas[-1]:.3g}",
    ]
    if model_factory.is_classifier(config):
        lines.append("predicts  the class of a noised image")
    else:
        sampler, calls = run.sampler_settings["sampler"], run.sampler_table.num_calls
        lines.append(f"predicts  {facts['prediction']}, variance {facts['variance']}")
        if run.image_task is not None and run.image_task.factor > 1:
            factor, (height, width, channels) = run.image_task.factor, run.image_shape
            lines.append(f"enlarges  images of {height // factor}x{width // factor}x{channels}, {factor} times")
        lines.append(f"sampler   {sampler}, {calls} network calls, clip_x_0 {str(facts['clip_x_0']).lower()}")
    return lines + [f"note      {note}" for note in imported.notes]


def next_command(imported: Imported, workdir: str) -> str:
    """What a user may try first with an imported network, after `python -m ddpm_jax.`."""
    run, flag = TrainedRun(0, imported.config, imported.params), f"--workdir={shlex.quote(workdir)}"
    if model_factory.is_classifier(imported.config):
        return f"sample --workdir=DIR_OF_A_MODEL --classifier={shlex.quote(workdir)} --classifier_scale=1"
    if run.image_task is not None and run.image_task.factor > 1:
        classes = "--classes=CLASS " if run.model.num_classes else ""
        out = shlex.quote(f"{workdir}/enlarged")
        return f"edit {flag} --what={run.image_task.name} --images=SMALL_IMAGES {classes}--out={out}"
    return f"sample {flag} --out={shlex.quote(f'{workdir}/samples/first')}"


def own_shapes_of(config: Config) -> dict[Path, tuple[int, ...]]:
    """The shapes of the leaves of the config's network, by path; raises UserError if it cannot be built."""
    return leaf_shapes(model_factory.param_shapes(config, model_factory.build_network(config)))


def shapes_of(config: Config) -> dict[Path, tuple[int, ...]]:
    """The shapes of the leaves of the config's network, for the weights of another code.

    Raises:
      UserError: it cannot be built, or has a setting that none of the other codes has.
    """
    network = model_factory.build_network(config)
    for name in ("downsample_first", "scale_skips"):
        if getattr(network, name, False):
            raise UserError(f"unet.{name} must be False for weights of another code, which does not have it; got True")
    return own_shapes_of(config)
