"""Columns whose rows differ in length, such as the tokens of captions, and padding of the rows to one length."""

import numpy as np

# The two arrays of a ragged column NAME in a file: the concatenated rows, and where each begins, N + 1 numbers.
VALUES, OFFSETS = ".values", ".offsets"


class Ragged:
    """N rows [n_i, ...] of one dtype; row i is values[offsets[i]:offsets[i + 1]].

    Raises:
      ValueError: the offsets do not rise from 0 to the number of values.
    """

    def __init__(self, values: np.ndarray, offsets: np.ndarray):
        self.values, self.offsets = values, np.asarray(offsets)
        fits = self.offsets.ndim == 1 and self.offsets.dtype.kind in "iu" and len(self.offsets) and np.ndim(values)
        if not fits or self.offsets[0] != 0 or self.offsets[-1] != len(values) or np.any(np.diff(self.offsets) < 0):
            raise ValueError(f"offsets must be whole numbers that rise from 0 to {len(np.atleast_1d(values))}")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """The lengths of the rows, int64 [N]."""
        return np.diff(self.offsets.astype(np.int64))

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values."""
        return self.values.dtype

    def __getitem__(self, rows: np.ndarray) -> "Ragged":
        """The rows with these numbers."""
        parts = [self.values[self.offsets[row] : self.offsets[row + 1]] for row in np.asarray(rows)]
        values = np.concatenate(parts) if parts else self.values[:0]
        return Ragged(values, np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64))

    def padded(self, length: int) -> np.ndarray:
        """[N, length, ...], with zeros after the end of each row; no row may be longer than `length`."""
        rows = np.zeros((len(self), length, *self.values.shape[1:]), self.dtype)
        rows[self.mask(length)] = self.values
        return rows

    def mask(self, length: int) -> np.ndarray:
        """bool [N, length]: True where a row has a value."""
        return np.arange(length) < self.lengths[:, None]


def column_names(names: list[str]) -> dict[str, bool]:
    """The columns among the arrays of a file -> whether each is ragged, that is, a pair NAME.values, NAME.offsets."""
    ragged = [name.removesuffix(VALUES) for name in names if name.endswith(VALUES)]
    ragged = [name for name in ragged if name + OFFSETS in names]
    parts = {name + part for name in ragged for part in (VALUES, OFFSETS)}
    return {name: False for name in names if name not in parts} | dict.fromkeys(ragged, True)
