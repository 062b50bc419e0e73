"""Another sampler for a trained run: which settings may be given, and the config with them."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.diffusion.process import FIXED_VARIANCES, LEARNED_VARIANCES
from ddpm_jax.experiment.config_overrides import apply_override
from ddpm_jax.experiment.image_condition import check_augmentation_level
from ddpm_jax.experiment.sample_guidance import is_guided
from ddpm_jax.experiment.sampler_factory import SAMPLERS
from ddpm_jax.runtime.errors import UserError, arg, check_one_of, whole_number
from ddpm_jax.workdir.class_names import numbered

# Fields of the group `sample`, but for the variance, which is `diffusion.variance`.
SAMPLER_SETTINGS = (
    "sampler", "num_sampler_steps", "spacing", "respacing", "eta", "churn", "dynamic_threshold", "guidance_scale",
    "guidance_rescale", "variance", "classes", "negative_classes", "guidance_interval", "clip_x_0", "classifier",
    "classifier_scale", "apg_eta", "apg_norm", "cfg_plus_plus", "autoguidance", "autoguidance_step",
    "autoguidance_weights", "augmentation_level",
)  # fmt: skip
_FIELDS = {name: f"sample.{name}" for name in SAMPLER_SETTINGS} | {
    "variance": "diffusion.variance", "batch_size": "sample.batch_size"
}  # fmt: skip
_OF_GUIDANCE = {  # with the value that is no setting
    "guidance_interval": (), "guidance_rescale": 0.0, "negative_classes": (), "apg_eta": 1.0, "apg_norm": 0.0,
    "autoguidance": "",
}  # fmt: skip


@contextmanager
def settings_named(given: Iterable[str]) -> Iterator[None]:
    """Errors in the block name these settings, and not the config fields that they changed."""
    try:
        yield
    except UserError as error:
        error.mark({_FIELDS[name]: name for name in given if name in _FIELDS})
        raise


def with_sampler_settings(
    config: ConfigDict, given: Mapping[str, object], *, batch_size: int | None, num_devices: int
) -> ConfigDict:
    """A run's config with the group `sample`, and the variance, changed to what was given; locked.

    Args:
      given: some of SAMPLER_SETTINGS by name, as values or as the text that a config takes.
      batch_size: images per batch; None: the run's, rounded up to a multiple of the number of devices.

    Raises:
      UserError: an unknown setting, a value of a wrong type, settings of guidance without guidance, or one that would
        have no effect; everything else is checked by the factories. Settings are marked as arguments in the message.
    """
    for name in given:
        check_one_of("a setting of the sampler", name, SAMPLER_SETTINGS)
    batch_size = None if batch_size is None else whole_number("batch_size", batch_size)
    config = config.copy_and_resolve_references()
    with settings_named(given):
        for name, value in given.items():
            if name == "variance":
                continue
            if isinstance(value, os.PathLike):
                value = os.fspath(value)
            if type(value) in (int, float) and type(value) is type(config.sample[name]):
                with config.unlocked():
                    config.sample[name] = value
            else:
                apply_override(config, f"sample.{name}={_text_of(value)}")
    sample = config.sample
    if "clip_x_0" in given and sample.dynamic_threshold:
        raise UserError(
            f"{arg('clip_x_0')} has no effect where a dynamic threshold takes its place, here of "
            f"{sample.dynamic_threshold:g}: give {arg('dynamic_threshold=0')} too"
        )
    idle = [name for name, neutral in _OF_GUIDANCE.items() if name in given and sample[name] != neutral]
    if idle and not is_guided(config):
        raise UserError(f"{arg(idle[0])} needs a {arg('guidance_scale')} other than 1, which is no guidance")
    if {"classes", "negative_classes"} & given.keys() and is_guided(config):
        _check_another_class(config)
    for name in ("autoguidance_step", "autoguidance_weights"):
        if name in given and not sample.autoguidance:
            raise UserError(f"{arg(name)} needs an {arg('autoguidance')}, the run that it is of")
    if not sample.autoguidance or ("autoguidance" not in given and not is_guided(config)):
        with config.unlocked():  # no guidance was asked for, so that the run's own reference is not used
            sample.update({"autoguidance": "", "autoguidance_step": 0, "autoguidance_weights": "ema"})
    if "classifier_scale" in given and not sample.classifier:
        raise UserError(f"{arg('classifier_scale')} needs a {arg('classifier')}, the run of a classifier")
    if "augmentation_level" in given:
        with settings_named(given):
            check_augmentation_level(config)
    _check_effect(given, sample.sampler)
    if "variance" in given:
        _check_variance(config, str(given["variance"]))
    with config.unlocked():
        config.diffusion.variance = given.get("variance", config.diffusion.variance)
        if "respacing" not in given and ("num_sampler_steps" in given or "spacing" in given):
            sample.respacing = ""  # what is given takes the place of the run's own
        if batch_size is None:
            # The run's batch suits the devices that it was trained on; these may be others.
            batch_size = -(-sample.batch_size // num_devices) * num_devices
        sample.batch_size = batch_size
    return config.lock()


def with_class_numbers(given: Mapping[str, object], names: Sequence[str]) -> dict[str, object]:
    """The settings with the number of each class that is given by its name; a number is taken as a number.

    Args:
      names: of the classes 0, 1, ...; empty: only numbers can be given.

    Raises:
      UserError: a name that is not one of them.
    """
    given = dict(given)
    for setting in ("classes", "negative_classes"):
        value = given.get(setting)
        if not names or value is None:
            continue
        if isinstance(value, str):  # in the forms that a config takes
            classes = [one.strip().strip("'\"") for one in value.strip().strip("()[]").split(",")]
            classes = classes[:-1] if classes[-1] == "" else classes
        else:
            classes = np.atleast_1d(np.asarray(value)).tolist()
        if any(isinstance(one, str) and not _is_number(one) for one in classes):
            given[setting] = ",".join(str(_number_of(setting, one, names)) for one in classes)
    return given


def _is_number(text: str) -> bool:
    return text.strip().lstrip("+-").isdecimal()


def _number_of(setting: str, name: object, names: Sequence[str]) -> object:
    if not isinstance(name, str):
        return name
    if name in names and not _is_number(name):
        return names.index(name)
    if _is_number(name):
        return name.strip()
    if name.strip() not in names:
        known = numbered(names)
        remedy = ": give a list such as 3,7" if re.fullmatch(r"\d+\s*-\s*\d+", name.strip()) else ""
        raise UserError(f"{arg(setting)} must be numbers or names of the classes {known}; got {name.strip()!r}{remedy}")
    return names.index(name.strip())


def _text_of(value: object) -> str:
    """A value as the text that a config takes."""
    if isinstance(value, str):
        return value
    return ",".join(map(str, np.atleast_1d(np.asarray(value)).tolist()))


def _check_effect(given: Mapping[str, object], sampler: str) -> None:
    """Raises UserError for a setting that the sampler does not read, or that another one takes the place of."""
    if "sampler" in given:
        check_one_of("sampler", sampler, SAMPLERS)
    for name, owner in (("eta", "ddim"), ("churn", "heun")):
        if name in given and sampler != owner:
            raise UserError(f"{arg(name)} is of {arg(f'sampler={owner}')}; got {sampler!r}, which does not read it")
    idle = [name for name in ("num_sampler_steps", "spacing") if name in given]
    if "respacing" in given and idle:
        raise UserError(f"{arg('respacing')} says which steps are visited: leave out {arg(idle[0])}")


def _check_another_class(config: ConfigDict) -> None:
    """Raises UserError if every sample would be guided away from the class that it has."""
    classes = tuple(config.sample.classes) or tuple(range(config.model.num_classes))
    negative = tuple(config.sample.negative_classes)
    if not classes or not negative or (config.condition.task and not config.sample.classes):
        return  # with a task the classes are those of the images that are shown
    period = math.lcm(len(classes), len(negative))
    if all(classes[n % len(classes)] == negative[n % len(negative)] for n in range(period)):
        raise UserError(
            f"{arg('negative_classes')} has no effect: it is the class of every sample itself; got "
            f"{','.join(map(str, negative))}: give others than {arg('classes')}"
        )


def _check_variance(config: ConfigDict, variance: str) -> None:
    check_one_of("variance", variance, FIXED_VARIANCES)
    given = arg(f"variance={variance}")
    if config.diffusion.variance in LEARNED_VARIANCES:
        raise UserError(
            f"{given} is for a network that does not give its variance; this one does "
            f"(diffusion.variance={config.diffusion.variance!r}): leave it out"
        )
    if config.sample.sampler != "ancestral":
        raise UserError(
            f"{given} is of {arg('sampler=ancestral')}; got {config.sample.sampler!r}, which does not read it"
        )
