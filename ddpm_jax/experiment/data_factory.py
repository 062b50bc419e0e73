"""The groups `data` and `model` of a config -> the images of a split, with labels where the network has classes."""

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.data import ImageSource, make_source
from ddpm_jax.data.condition import ConditionSpec, Entry
from ddpm_jax.data.image_source import RenamingSource
from ddpm_jax.experiment.config_checks import field_names, image_shape_of
from ddpm_jax.runtime.errors import UserError, arguments_named


def build_source(config: ConfigDict, split: str, field: str = "data.split") -> ImageSource:
    """The images of one split; `field` is what a person typed it as, for complaints about it."""
    data = config.data
    shape = image_shape_of(config)
    names = field_names("data", {"split": field, "path=DIR": "--config.data.path=DIR"})
    with arguments_named(names):
        source = make_source(
            name=data.name,
            split=split,
            image_size=shape[:2],
            num_channels=shape[2],
            path=data.path,
            data_dir=data.data_dir,
        )
    source = RenamingSource(source, names)
    if config.model.num_classes:
        _check_labels(source, config.model.num_classes, f"{data.name} {split!r}")
    return source


def condition_spec(config: ConfigDict) -> ConditionSpec:
    """What the network is told of an image: its class, where it has classes.

    Raises:
      UserError: a drop rate outside [0, 1), or one for a network that is told nothing.
    """
    drop_rate, num_classes = config.condition.drop_rate, config.model.num_classes
    if not 0 <= drop_rate < 1:
        raise UserError(f"condition.drop_rate must be in [0, 1); got {drop_rate}")
    if drop_rate and not num_classes:
        raise UserError(
            f"condition.drop_rate={drop_rate} is for a network with a condition; the config has model.num_classes=0: "
            "take 0, or more classes"
        )
    return {"label": Entry(null=num_classes if drop_rate else None)} if num_classes else {}


def _check_labels(source: ImageSource, num_classes: int, what: str) -> None:
    """Raises UserError unless every image has a class of the network's."""
    if source.labels is None:
        raise UserError(
            f"model.num_classes={num_classes} needs a label for every image, and {what} has none: "
            + "; ".join(["take model.num_classes=0, or data with labels", *source.notes])
        )
    lowest, highest = int(np.min(source.labels)), int(np.max(source.labels))
    if lowest < 0 or highest >= num_classes:
        raise UserError(
            f"model.num_classes must be above every label; got {num_classes} for the labels "
            f"{lowest}..{highest} of {what}"
        )
