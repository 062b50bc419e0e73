"""Replaces images that turn out to be unreadable in the middle of training by others, and reports them."""

import itertools
import logging
import os
import threading
from collections.abc import Callable, Mapping

import numpy as np

from ddpm_jax.data.image_source import DecodedSource
from ddpm_jax.data.ragged import Ragged
from ddpm_jax.runtime.errors import UserError, arg

# A few damaged images are replaced; this many in a row mean that a disk or a folder is missing.
MAX_IN_A_ROW = 100
_NUM_TOLD = 20  # reported by name; after that only the number is reported


class ReplacingSource(DecodedSource):
    """A data set too large for memory: an unreadable image is replaced by the next readable one with the same label.

    The replacement depends only on the data set, so every run and every process sees the same image.

    Args:
        attempt_many: n numbers -> n results, each uint8 [H, W, C] or the exception that was raised.
        name_of: number -> the name of the image in messages.
        place: the folder or file that contains all images, for messages.
        image_shape, labels, notes, columns: as in every source.
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
        self._instead: dict[int, int] = {}  # damaged image -> its replacement
        self._num_told = 0
        self._lock = threading.Lock()

    def taken(self, indices: np.ndarray) -> np.ndarray:
        """The numbers of the images that `load` returned for `indices`."""
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
        """The replacement of a damaged image; records and reports all damaged images found on the way."""
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
                f"{arg('path')} {self._place!r} is missing; put it back, and the same command resumes from the last "
                "checkpoint"
            )
        if len(damaged) == MAX_IN_A_ROW:
            raise UserError(
                f"{arg('path')} {self._place!r}: {MAX_IN_A_ROW} images in a row could not be read, the last of them "
                f"{self._name_of(candidate)} ({reason_of(result)}); put them back, or remove them from the data set"
            )
        raise UserError(
            f"{arg('path')} {self._place!r}: no image could be read in full; the last is {self._name_of(candidate)} "
            f"({reason_of(result)})"
        )

    def _candidates(self, index: int):
        """The image itself, then those after it with the same label, continuing at the beginning after the end."""
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
        elif self._num_told & (self._num_told - 1):  # after the limit, report only at powers of two
            return
        logging.getLogger(__name__).warning("%s (%d so far)", line, self._num_told)


def reason_of(error: Exception) -> str:
    """What is wrong with a file, in a few words."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:80] or type(error).__name__
