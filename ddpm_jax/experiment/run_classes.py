"""The classes of a run's samples by name, and the config of another sampler whose classes were given so."""

import os
from collections.abc import Mapping

from ml_collections import ConfigDict

from ddpm_jax.experiment.sampler_settings import with_class_numbers, with_sampler_settings
from ddpm_jax.runtime.errors import UserError, arg
from ddpm_jax.workdir.class_names import numbered, read_class_names


def names_of_classes(config: ConfigDict, own_names: tuple[str, ...], classifier: object = None) -> tuple[str, ...]:
    """The names of the classes of samples, which are the classifier's if the network has no classes.

    Args:
      own_names: those of the run.
      classifier: the folder of a classifier; None: that of the config.
    """
    classifier = config.sample.classifier if classifier is None else classifier
    if not config.model.num_classes and isinstance(classifier, str | os.PathLike) and classifier:
        return read_class_names(classifier)
    return own_names


def with_sampler(
    config: ConfigDict,
    own_names: tuple[str, ...],
    given: Mapping[str, object],
    *,
    batch_size: int | None,
    num_devices: int,
) -> ConfigDict:
    """The config with another sampler; see `sampler_settings.with_sampler_settings`. Classes may be given by name.

    Raises:
      UserError: settings that do not fit; a classifier or weaker network with other names of its classes.
    """
    for name in ("classifier", "autoguidance"):
        if given.get(name, "") is None:  # none, as the config says it
            given = {**given, name: ""}
        _check_same_names(config, own_names, name, given.get(name, config.sample[name]))
    names = names_of_classes(config, own_names, given.get("classifier", config.sample.classifier))
    given = with_class_numbers(given, names)
    return with_sampler_settings(config, given, batch_size=batch_size, num_devices=num_devices)


def _check_same_names(config: ConfigDict, own_names: tuple[str, ...], setting: str, workdir: object) -> None:
    """Raises UserError if the run and another one both have names for their classes, and not the same."""
    if not config.model.num_classes or not isinstance(workdir, str | os.PathLike) or not workdir:
        return
    theirs = read_class_names(workdir)
    if theirs and own_names and theirs != own_names:
        raise UserError(f"{arg(setting)} has the classes {numbered(theirs)}; the run has {numbered(own_names)}")
