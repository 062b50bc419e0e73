"""Split names and their slices: `train`, `train[:95%]`, `train[95%:]`, `test[100:200]`."""

import re

import numpy as np

from ddpm_jax.data.shuffling import permutation
from ddpm_jax.runtime.errors import UserError, arg, check_one_of

_GRAMMAR = re.compile(r"(?P<name>\w[\w .+-]*)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")
# Any constant would do, but it must never change: a held-out part must stay held out.
_ORDER_SEED = 20200619


def split_name(split: str) -> str:
    """The name before the slice: `train` for `train[:95%]`.

    Raises:
        UserError: `split` is not a name with at most one slice.
    """
    return _parse(split)[0]


def split_rows(split: str, *, num_examples: int) -> np.ndarray:
    """Rows of a data set of N images that the slice of `split` selects; int64 [n], ascending.

    A slice is cut from one fixed pseudo-random order instead of the stored order, because folders and array
    files are often sorted by class. So `train[:95%]` and `train[95%:]` are disjoint, are everything together,
    and have the same distribution. The slice does not depend on the training seed.

    Raises:
        UserError: `split` is malformed or selects no image.
    """
    _, start, stop = _parse(split)
    if start is None and stop is None:
        rows = np.arange(num_examples, dtype=np.int64)
    else:
        part = slice(_position(start, num_examples), _position(stop, num_examples))
        rows = np.sort(permutation(seed=_ORDER_SEED, epoch=0, num_examples=num_examples)[part])
    if not len(rows):
        raise UserError(
            f"{arg('split')} {split!r} selects none of the {num_examples} images; give a wider slice or more images"
        )
    return rows


def check_split(split: str, allowed: tuple[str, ...]) -> str:
    """The name of the split, after checking that it is one of `allowed`.

    Raises:
        UserError: it is not; the message lists the splits.
    """
    name = split_name(split)
    check_one_of("split", name, allowed)
    return name


def _parse(split: str) -> tuple[str, str | None, str | None]:
    match = _GRAMMAR.fullmatch(split)
    if match is None:
        raise UserError(
            f"{arg('split')} must be a name with at most one slice, like 'train', 'train[:95%]' or 'train[95%:]'; "
            f"got {split!r}"
        )
    return match["name"], match["start"], match["stop"]


def _position(bound: str | None, num_examples: int) -> int | None:
    if bound is None or not bound.endswith("%"):
        return None if bound is None else int(bound)
    position = round(abs(int(bound[:-1])) * num_examples / 100)
    # Only an explicit minus sign counts from the end; -0 would mean the beginning.
    return num_examples - min(position, num_examples) if bound.startswith("-") else position
