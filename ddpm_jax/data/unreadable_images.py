"""Images of which some may prove unreadable in the middle of a training: another takes the place, and it is said."""

import itertools
import logging
import os
import threading
from collections.abc import Callable, Mapping

import numpy as np

from ddpm_jax.data.image_source import DecodedSource
from ddpm_jax.data.ragged import Ragged
from ddpm_jax.runtime.errors import UserError, arg

# A few damaged images are a nuisance; so many side by side are a disk or a folder that is gone.
MAX_IN_A_ROW = 100
_NUM_TOLD = 20  # each by its name; after that only how many


class ReplacingSource(DecodedSource):
    """A set too large for memory: an image that cannot be read is replaced by the next good one of its label.

    Which one that is depends on the set alone, so every run and every process sees the same.

    Args:
        attempt_many: n numbers -> n results, each uint8 [H, W, C] or the exception that it raised.
        name_of: number -> the name of the image in messages.
        place: the folder or file that all of it is in, for messages.
        image_shape, labels, notes, columns: as of every source.
    """

    def __init__(
        self,
        attempt_many: Callable[[list[int]], list],
        name_of: Callable[[int], str],
        *,
        place: str,
        num_examples: int,
        image_shape: tuple[int, int, int],
        labels: np.ndarray | None,
        notes: tuple[str, ...],
        columns: Mapping[str, np.ndarray | Ragged] | None = None,
    ):
        super().__init__(self._whole_ones, num_examples=num_examples, image_shape=image_shape, labels=labels)
        self.notes, self.columns = notes, columns or {}
        self._attempt_many, self._name_of, self._place = attempt_many, name_of, place
        self._instead: dict[int, int] = {}  # a damaged one -> the one that is taken for it
        self._num_told = 0
        self._lock = threading.Lock()

    def taken(self, indices: np.ndarray) -> np.ndarray:
        """The numbers of the images that `load` gave for `indices`."""
        return np.array([self._taken_for(index) for index in np.asarray(indices).tolist()], np.int64)

    def _whole_ones(self, indices: list[int]) -> list[np.ndarray]:
        asked = [self._taken_for(index) for index in indices]
        images = self._attempt_many(asked)
        for position, image in enumerate(images):
            if isinstance(image, Exception):
                with self._lock:
                    images[position] = self._replacement(asked[position], image)
        return images

    def _taken_for(self, index: int) -> int:
        while index in self._instead:
            index = self._instead[index]
        return index

    def _replacement(self, index: int, error: Exception) -> np.ndarray:
        """The image that stands for the damaged one; remembers and tells what was damaged on the way."""
        if index in self._instead:  # another thread was faster
            index = self._taken_for(index)
            error = self._attempt_many([index])[0]
        damaged: dict[int, Exception] = {}
        result = error
        for candidate in self._candidates(index):
            if candidate != index:
                result = self._attempt_many([candidate])[0]
            if not isinstance(result, Exception):
                self._instead |= dict.fromkeys(damaged, candidate)
                for broken, reason in damaged.items():
                    self._tell(broken, reason)
                return result
            damaged[candidate] = result
            if len(damaged) == MAX_IN_A_ROW or not os.path.exists(self._place):
                break
        if not os.path.exists(self._place):
            raise UserError(
                f"{arg('path')} {self._place!r} is gone; put it back, and the same command goes on from the last "
                "checkpoint"
            )
        if len(damaged) == MAX_IN_A_ROW:
            raise UserError(
                f"{arg('path')} {self._place!r}: {MAX_IN_A_ROW} images in a row could not be read, the last of them "
                f"{self._name_of(candidate)} ({reason_of(result)}); put them back or take them out of the set"
            )
        raise UserError(
            f"{arg('path')} {self._place!r}: no image could be read in full; the last is {self._name_of(candidate)} "
            f"({reason_of(result)})"
        )

    def _candidates(self, index: int):
        """The image itself, then those after it of its label, from the end on to the beginning."""
        yield index
        for candidate in itertools.chain(range(index + 1, len(self)), range(index)):
            same = self.labels is None or self.labels[candidate] == self.labels[index]
            if same and candidate not in self._instead:
                yield candidate

    def _tell(self, index: int, error: Exception) -> None:
        self._num_told += 1
        line = f"{self._name_of(index)!r} is damaged ({reason_of(error)}); the next image takes its place"
        if self._num_told <= _NUM_TOLD:
            self.notes += (line,)
        elif self._num_told & (self._num_told - 1):  # no power of two: told often enough
            return
        logging.getLogger(__name__).warning("%s (%d so far)", line, self._num_told)


def reason_of(error: Exception) -> str:
    """What was wrong with a file, in a few words."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:80] or type(error).__name__
