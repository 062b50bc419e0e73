"""Errors by config field: for numbers that no run can use, and for arguments of the library, renamed to fields."""

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager

from ml_collections import ConfigDict

from ddpm_jax.diffusion.rng import check_seed
from ddpm_jax.experiment.config_overrides import flatten
from ddpm_jax.experiment.packaged_configs import base_config
from ddpm_jax.runtime.errors import MAX_INT, UserError, arguments_named, did_you_mean

# The minimum of fields that are used on the host; the others are checked where they are used.
_LEAST = {
    "train.num_steps": 1,
    "train.log_every_steps": 0,
    "train.checkpoint_every_steps": 0,
    "train.sample_every_steps": 0,
    "train.keep_checkpoints": 1,
    "train.num_ema_snapshots": 0,
    "train.nonfinite_limit": 0,
    "sample.num_sampler_steps": 0,
    "sample.num_grid": 1,
    "sample.num_preview_steps": 1,
    "data.area_factor": 1,
    "eval.batch_size": 1,
    "eval.max_images": 0,
}

_LEAST_FLOAT, _MOST_FLOAT = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # normal float32 numbers, in which all is computed
_MOST_BATCH_BYTES = 2**38
_MAX_SNAPSHOTS = 1000  # a linear system of twice their number is solved
_MAX_T = 1_000_000  # tables are [T]; beyond this, a mistyped number would exhaust the memory


def field_names(group: str, others: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """Argument -> the config field that it came from: GROUP.argument, or its entry in `others`."""
    others = others or {}
    return lambda argument: others.get(argument, f"{group}.{argument}")


def fields_named(group: str, others: Mapping[str, str] | None = None) -> AbstractContextManager[None]:
    """Renames arguments in errors that the library raises in the block to the names of their config fields.

    Example:
      >>> from ddpm_jax.diffusion.schedules import make_schedule
      >>> try:
      ...     with fields_named("schedule"):
      ...         make_schedule("linear", num_steps=0)
      ... except UserError as error:
      ...     print(error)
      schedule.num_steps must be at least 1; got 0
    """
    return arguments_named(field_names(group, others))


def check_fields(config: ConfigDict, own_groups: Collection[str] = ()) -> None:
    """Raises UserError for a field that nothing reads, because configs/base.py lacks it, or one that is missing.

    Args:
      own_groups: groups of networks, codecs and objectives, which may be the user's own. Other groups that
        configs/base.py lacks, such as those of a condition, are allowed if their name is not close to one that it has.
    """
    fields, base = flatten(config), base_config()
    known = flatten(base)
    for field in fields:
        group, _, name = field.partition(".")
        mistyped = group not in own_groups and bool(did_you_mean(group, base))
        if field not in known and (group in base or not name or mistyped):
            raise UserError(
                f"the config has the field {field!r}, which configs/base.py lacks, so that nothing reads it"
                f"{did_you_mean(field, known)}"
            )
    for field in known:
        if field not in fields:
            raise UserError(f"the config lacks the field {field!r} of configs/base.py: begin with its get_config()")


def check_numbers(config: ConfigDict) -> None:
    """Raises UserError for numbers that no run can use, whatever the other fields are."""
    for field, value in flatten(config).items():
        if field == "train.seed":
            check_seed(field, value)
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{field} must be finite; got {number}")
            if isinstance(number, float) and number and not _LEAST_FLOAT <= abs(number) <= _MOST_FLOAT:
                raise UserError(f"{field} must be 0 or a float32, {_LEAST_FLOAT:.1g}..{_MOST_FLOAT:.1g}; got {number}")
            if isinstance(number, int) and number > MAX_INT:
                raise UserError(f"{field} must be at most {MAX_INT}; got {number}")
        if field in _LEAST and value < _LEAST[field]:
            raise UserError(f"{field} must be at least {_LEAST[field]}; got {value}")
    if config.train.num_ema_snapshots > _MAX_SNAPSHOTS:
        raise UserError(
            f"train.num_ema_snapshots must be in 0..{_MAX_SNAPSHOTS}; got {config.train.num_ema_snapshots}"
        )
    if config.schedule.num_steps > _MAX_T:
        raise UserError(f"schedule.num_steps must be in 1..{_MAX_T}; got {config.schedule.num_steps}")


def check_batch_memory(config: ConfigDict) -> None:
    """Raises UserError for a batch that no machine has the memory for."""
    values = math.prod(image_shape_of(config))
    for field in ("train.batch_size", "sample.batch_size", "eval.batch_size"):
        group, name = field.split(".")
        size = 4 * values * config[group][name]
        if size > _MOST_BATCH_BYTES:
            raise UserError(
                f"{field} must leave a batch of at most {_MOST_BATCH_BYTES / 1e12:.2g} TB; got {config[group][name]} "
                f"times {values} values of 4 bytes, {size / 1e12:.3g} TB"
            )


def num_devices_of(config: ConfigDict) -> int:
    """The number of devices of the config; 0: all."""
    return config.train.num_devices


def image_shape_of(config: ConfigDict) -> tuple[int, ...]:
    """(H, W, C) of the images, or (*sizes, C) of other arrays."""
    size = tuple(config.data.image_size)
    if not size or min(size) < 1:
        raise UserError(f"data.image_size must be (height, width) in pixels; got {size}")
    if config.data.num_channels < 1:
        raise UserError(f"data.num_channels must be at least 1; got {config.data.num_channels}")
    return (*size, config.data.num_channels)


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether `image_shape_of` is one of images, (H, W, C)."""
    return len(shape) == 3
