"""What the network of a config is told besides x_t and t: the table of the kinds of condition, and all at once."""

from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from ddpm_jax.data import ImageSource
from ddpm_jax.data.condition import ConditionSpec, of_data
from ddpm_jax.experiment.class_condition import ClassCondition
from ddpm_jax.experiment.condition_kind import ConditionKind, RowsOf
from ddpm_jax.experiment.image_condition import ImageCondition, labels_of_shown
from ddpm_jax.runtime.errors import UserError

# A kind that is added here is used wherever its `spec` is not empty.
CONDITIONS: list[ConditionKind] = [ClassCondition(), ImageCondition()]


def condition_spec(config: ConfigDict) -> ConditionSpec:
    """The entries of all kinds.

    Raises:
      UserError: a drop rate outside [0, 1), or one for a network that is told nothing.
    """
    drop_rate, spec = config.condition.drop_rate, {}
    if not 0 <= drop_rate < 1:
        raise UserError(f"condition.drop_rate must be in [0, 1); got {drop_rate}")
    for kind in CONDITIONS:
        spec |= kind.spec(config)
    if drop_rate and not of_data(spec):
        raise UserError(
            f"condition.drop_rate={drop_rate} is for a network with a condition from the data; the config has "
            "model.num_classes=0 and no other: take 0, or more classes"
        )
    return spec


def check_source(config: ConfigDict, source: ImageSource, what: str) -> None:
    """Raises UserError unless the source knows all that the network is told."""
    for kind in _used(config):
        kind.check_source(config, source, what)


def condition_of(config: ConfigDict, *, derived: bool = True) -> RowsOf:
    """Numbers of samples -> their condition; raises UserError for settings that do not fit.

    Args:
      derived: False: without derived entries, and the images that they are made from.
    """
    kinds = [kind for kind in CONDITIONS if derived or of_data(kind.spec(config)) or not kind.spec(config)]
    labels = labels_of_shown(config)
    return _joined([kind.of_samples(config) for kind in kinds] + ([labels] if labels else []))


def given_condition(config: ConfigDict, condition: Mapping[str, ArrayLike], num_samples: int) -> RowsOf:
    """Numbers of samples -> their condition, of values that are given for each; see `TrainedRun.sample`.

    Raises:
      UserError: an entry that the network lacks or that is missing, another shape, or values that it does not know.
    """
    spec = condition_spec(config)
    if not isinstance(condition, Mapping):
        raise UserError(f"condition must be arrays by name, such as {{'label': [3]}}; got {condition!r}")
    if set(condition) != set(spec):
        wanted = f"the entries {sorted(spec)}" if spec else "no condition"
        raise UserError(f"the network takes {wanted}; got {sorted(condition)}")
    rows = {}
    for name, entry in spec.items():
        given = np.asarray(condition[name])
        if given.shape not in ((num_samples, *entry.shape), entry.shape):
            raise UserError(
                f"the condition {name!r} must be {[num_samples, *entry.shape]}, a row for each sample, or "
                f"{list(entry.shape)}, one for all; got {list(given.shape)}"
            )
        if not np.can_cast(given.dtype, entry.dtype, casting="same_kind"):
            raise UserError(f"the condition {name!r} must be {entry.dtype}; got {given.dtype}")
        if given.dtype.kind in "iu" and np.any(given.astype(entry.dtype) != given):
            raise UserError(f"the condition {name!r} must fit {entry.dtype}; got {given.min()}..{given.max()}")
        rows[name] = np.broadcast_to(given.astype(entry.dtype), (num_samples, *entry.shape))
    for kind in _used(config):
        kind.check_values(config, rows)
    # A last batch is filled up with samples that are thrown away.
    return lambda ids: {name: values[ids % num_samples] for name, values in rows.items()}


def negative_of(config: ConfigDict) -> RowsOf | None:
    """Numbers of samples -> what they are guided away from, where a kind says something else than the null.

    Raises:
      UserError: settings that do not fit, or something for one kind alone.
    """
    given = {kind: kind.negative(config) for kind in CONDITIONS}
    if not any(given.values()):
        return None
    missing = [name for kind in _used(config) if not given[kind] for name in of_data(kind.spec(config))]
    if missing:
        raise UserError(f"guidance away from something needs a value for every condition; got none for {missing}")
    return _joined([given[kind] for kind in _used(config) if given[kind]])


def _used(config: ConfigDict) -> list[ConditionKind]:
    return [kind for kind in CONDITIONS if kind.spec(config)]


def _joined(parts: list[RowsOf]) -> RowsOf:
    return lambda ids: {name: rows for part in parts for name, rows in part(ids).items()}
