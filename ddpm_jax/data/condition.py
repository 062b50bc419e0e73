"""The condition of a network: its inputs besides x_t and t, as named arrays with one row per image, and their types.

An unconditional network gets the empty condition `{}`. A class is one entry, "label". Training, likelihoods and the
sampling loop know no entry by name. Only the network that uses an entry, the column of the data that it comes from, the
code that builds it from the config, and the file that samples are written to do.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

Condition = Mapping[str, Array | np.ndarray]  # entry -> [B, *shape]
KINDS = ("global", "spatial", "sequence", "mask")
MASK = "_mask"  # the entry NAME_mask, of kind "mask", belongs to the entry NAME, of kind "sequence"


@dataclass(frozen=True)
class Entry:
    """One entry of a condition.

    Attributes:
      shape: of the row of one image.
      dtype: on the device.
      kind: "global"; "spatial": [H, W, ...] over the pixels, mirrored together with the image; "sequence": [L, ...],
        from a ragged column, padded with zeros to the length L; "mask": bool [L], named NAME_mask for the sequence
        NAME, True where the sequence has a value.
      null: the value, broadcast over the row, that means "no information"; None: there is no such value, and the entry
        cannot be dropped.
      derived: made from the image itself, such as its grey copy, in training by the train step on the device. It is
        never dropped: whatever the network is guided towards or away from, it is told this.
    """

    shape: tuple[int, ...] = ()
    dtype: str = "int32"
    kind: str = "global"
    null: float | int | None = None
    derived: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}; got {self.kind!r}")


ConditionSpec = Mapping[str, Entry]


def of_data(spec: ConditionSpec) -> ConditionSpec:
    """The entries that come from the data, and not from the image itself."""
    return {name: entry for name, entry in spec.items() if not entry.derived}


def has_null(spec: ConditionSpec) -> bool:
    """Whether the condition has entries besides the derived ones, and all of them can be dropped."""
    given = of_data(spec)
    return bool(given) and all(entry.null is not None for entry in given.values())


def null_condition(spec: ConditionSpec, batch_size: int) -> dict[str, np.ndarray]:
    """The condition without information, for `batch_size` images; without the derived entries.

    Raises:
      ValueError: an entry without a null.
    """
    given = of_data(spec)
    for name, entry in given.items():
        if entry.null is None:
            raise ValueError(f"condition {name!r} has no null")
    return {name: np.full((batch_size, *entry.shape), entry.null, entry.dtype) for name, entry in given.items()}


def example_condition(spec: ConditionSpec) -> dict[str, np.ndarray]:
    """Zeros with the shapes for one image, [1, ...] each, for `models.parameters.init_params`."""
    return {name: np.zeros((1, *entry.shape), entry.dtype) for name, entry in spec.items()}


def drop(spec: ConditionSpec, condition: Condition, dropped: Bool[Array, "B"]) -> dict[str, Array]:
    """Replaces all entries by their null for the images that are dropped (Ho and Salimans 2022, algorithm 1).

    The condition is that of the data, without derived entries.
    """

    def dropped_entry(name: str, rows: Array) -> Array:
        which = dropped.reshape((-1,) + (1,) * (rows.ndim - 1))
        return jnp.where(which, jnp.asarray(spec[name].null, rows.dtype), rows)

    return {name: dropped_entry(name, rows) for name, rows in condition.items()}


def mirror(spec: ConditionSpec, condition: Condition, mirrored: Bool[Array, "B"]) -> dict[str, Array]:
    """Mirrors the spatial entries of the mirrored images left-right; other entries are unchanged."""

    def mirrored_entry(name: str, rows: Array) -> Array:
        if spec[name].kind != "spatial":
            return rows
        return jnp.where(mirrored.reshape((-1,) + (1,) * (rows.ndim - 1)), rows[:, :, ::-1], rows)

    return {name: mirrored_entry(name, rows) for name, rows in condition.items()}
