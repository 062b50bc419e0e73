"""What a network is told besides x_t and t: named arrays, one row an image, and what is known of each before any comes.

An unconditional network is told nothing, `{}`. A class is one entry, "label". Training, likelihoods and the sampling
loop know no entry by its name; the network that takes it does, the column of the data that it comes from, what is made
of the config, and the file that samples are written to.
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
      shape: of one image's row.
      dtype: on the device.
      kind: "global"; "spatial": [H, W, ...] over the pixels, mirrored with the image; "sequence": [L, ...], of a ragged
        column, padded with zeros to the length L; "mask": bool [L], named NAME_mask for the sequence NAME, True where
        it has a value.
      null: the value, broadcast over the row, that says that nothing is known; None: there is none, and the entry
        cannot be dropped.
    """

    shape: tuple[int, ...] = ()
    dtype: str = "int32"
    kind: str = "global"
    null: float | int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}; got {self.kind!r}")


ConditionSpec = Mapping[str, Entry]


def has_null(spec: ConditionSpec) -> bool:
    """Whether there is something to be told, and all of it may be left out."""
    return bool(spec) and all(entry.null is not None for entry in spec.values())


def null_condition(spec: ConditionSpec, batch_size: int) -> dict[str, np.ndarray]:
    """The condition that says nothing, of `batch_size` images.

    Raises:
      ValueError: an entry without a null.
    """
    for name, entry in spec.items():
        if entry.null is None:
            raise ValueError(f"condition {name!r} has no null")
    return {name: np.full((batch_size, *entry.shape), entry.null, entry.dtype) for name, entry in spec.items()}


def example_condition(spec: ConditionSpec) -> dict[str, np.ndarray]:
    """Zeros of the shapes of one image, [1, ...] each, for `models.parameters.init_params`."""
    return {name: np.zeros((1, *entry.shape), entry.dtype) for name, entry in spec.items()}


def drop(spec: ConditionSpec, condition: Condition, dropped: Bool[Array, "B"]) -> dict[str, Array]:
    """The null in place of all entries of the images that are dropped (Ho and Salimans 2022, algorithm 1)."""

    def dropped_entry(name: str, rows: Array) -> Array:
        which = dropped.reshape((-1,) + (1,) * (rows.ndim - 1))
        return jnp.where(which, jnp.asarray(spec[name].null, rows.dtype), rows)

    return {name: dropped_entry(name, rows) for name, rows in condition.items()}


def mirror(spec: ConditionSpec, condition: Condition, mirrored: Bool[Array, "B"]) -> dict[str, Array]:
    """The spatial entries of the images that are mirrored, left and right exchanged; the others as they are."""

    def mirrored_entry(name: str, rows: Array) -> Array:
        if spec[name].kind != "spatial":
            return rows
        return jnp.where(mirrored.reshape((-1,) + (1,) * (rows.ndim - 1)), rows[:, :, ::-1], rows)

    return {name: mirrored_entry(name, rows) for name, rows in condition.items()}
