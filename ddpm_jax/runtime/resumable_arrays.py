"""Large arrays (images, features) that are filled row by row into files, and resume after Ctrl-C or a kill."""

import errno
import json
import os
import shutil
import time
import weakref
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from ddpm_jax.runtime import multi_host
from ddpm_jax.runtime.atomic_files import replace_file
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.runtime.json_files import is_count, read_json
from ddpm_jax.runtime.resume_file import KEEP_EVERY_SECONDS, fingerprint

_PROGRESS = "progress.json"
_HELD = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)  # of flock: another process has the lock


_OWN: dict[str, tuple[int, int]] = {}  # folder -> the descriptor that holds its lock, and how many objects use it


def remove_unused(folder: str) -> None:
    """Deletes the folder of a `ResumableArrays`, unless another process writes it."""
    folder = os.path.realpath(folder)
    if os.path.isdir(folder) and _lock(folder):
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(folder)


def _lock(folder: str) -> bool:
    """Takes the lock of a folder for this process; False if another process holds it.

    Where the system or the file system has no locks, nothing is locked.
    """
    if folder in _OWN:
        descriptor, users = _OWN[folder]
        _OWN[folder] = descriptor, users + 1
        return True
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            os.close(descriptor)
            return False
    _OWN[folder] = descriptor, 1
    return True


def _unlock(folder: str) -> None:
    if folder not in _OWN:
        return
    descriptor, users = _OWN.pop(folder)
    if users > 1:
        _OWN[folder] = descriptor, users - 1
    else:
        os.close(descriptor)


class ResumableArrays:
    """Arrays of equal length as memory-mapped `.npy` files in a folder of their own, filled from the first row on.

    While rows are missing, the file names end in `.partial.npy`. Use it in a `with` block: an exception in it, such as
    Ctrl-C, keeps what is done; a kill loses what came after the last `KEEP_EVERY_SECONDS`. Only the first process has
    the files; the others know how many rows are done.

    Args:
      prefix: the beginning of the folder's path, which ends in a hash of the facts.
      facts: everything that the rows depend on, as JSON; other facts give another folder.
      rows: name -> (shape of a row, dtype).
      num_rows: final number of rows of every array.

    Raises:
      UserError: another process writes the same arrays.
    """

    def __init__(self, prefix: str, facts: dict, rows: dict[str, tuple[tuple[int, ...], type]], num_rows: int):
        self._facts = json.loads(json.dumps(facts | {"num_rows": num_rows}))
        self.folder = f"{prefix}_{fingerprint(json.dumps(self._facts, sort_keys=True))}"
        self.num_rows, self.num_done = num_rows, 0
        self._is_first = jax.process_index() == 0
        self.arrays: dict[str, np.ndarray] = {}
        self._hold()
        if self._is_first:
            self.num_done = self._done_before()
            for name, (shape, dtype) in rows.items():
                self.arrays[name] = self._open(name, (num_rows, *shape), np.dtype(dtype))
        if jax.process_count() > 1:
            self.num_done = int(multihost_utils.broadcast_one_to_all(np.int32(self.num_done)))
        self._num_kept, self._last_kept = self.num_done, time.monotonic()

    def _hold(self) -> None:
        """Locks the folder for as long as the object is there, on all processes or none: one that continued would wait
        for ever for the others."""
        holds = True
        if self._is_first:
            os.makedirs(self.folder, exist_ok=True)
            holds = _lock(os.path.realpath(self.folder))
        if multi_host.broadcast_from_first(int(not holds)):
            raise UserError(f"{self.folder} is written by another process: wait until it ends, or stop it")
        if self._is_first:
            weakref.finalize(self, _unlock, os.path.realpath(self.folder))

    def remove(self) -> None:
        """Deletes the folder; the arrays can still be read."""
        if self._is_first:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def complete(self) -> bool:
        """Whether all rows are filled."""
        return self.num_done == self.num_rows

    def write(self, rows: dict[str, np.ndarray]) -> None:
        """Appends rows to every array; rows beyond the end are dropped."""
        num_new = min(len(next(iter(rows.values()))), self.num_rows - self.num_done)
        for name, array in self.arrays.items():
            array[self.num_done : self.num_done + num_new] = rows[name][:num_new]
        self.num_done += num_new
        if self.complete or time.monotonic() - self._last_kept >= KEEP_EVERY_SECONDS:
            self.keep()

    def fill(
        self, make: Callable[[int], dict[str, np.ndarray]], on_rows: Callable[[int], None] = lambda num_new: None
    ) -> None:
        """Writes make(first row) until all rows are filled."""
        with self:
            while not self.complete:
                before = self.num_done
                self.write(make(before))
                on_rows(self.num_done - before)

    def keep(self) -> None:
        """Makes all written rows permanent; gives complete arrays their final names."""
        if not self._is_first or self.num_done == self._num_kept:
            return
        for name, array in self.arrays.items():
            array.flush()
            if self.complete and os.path.exists(self._path(name, ".partial.npy")):
                os.replace(self._path(name, ".partial.npy"), self._path(name, ".npy"))
        with replace_file(os.path.join(self.folder, _PROGRESS), "w") as file:
            json.dump({"num_done": self.num_done, "facts": self._facts}, file, indent=1)
        self._num_kept, self._last_kept = self.num_done, time.monotonic()

    def __enter__(self) -> "ResumableArrays":
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if kind is not None:
            self.keep()

    def _path(self, name: str, ending: str) -> str:
        return os.path.join(self.folder, name + ending)

    def _done_before(self) -> int:
        try:
            found = read_json(os.path.join(self.folder, _PROGRESS), dict)
        except (OSError, ValueError):
            return 0  # a new folder, or one in which nothing was stored yet
        done = found.get("num_done")
        fits = is_count(done) and done <= self.num_rows and found.get("facts") == self._facts
        return done if fits else 0

    def _open(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        for ending in (".npy", ".partial.npy"):
            path = self._path(name, ending)
            try:
                np.lib.format.open_memmap(path, mode="r")  # "r+" would lengthen a file that was cut off
                array = np.lib.format.open_memmap(path, mode="r+")
            except (OSError, ValueError):
                continue
            if self.num_done and array.shape == shape and array.dtype == dtype:
                return array
        # A file is missing or damaged: all arrays start again, even if nothing is stored before the process ends.
        self.num_done = 0
        if os.path.exists(os.path.join(self.folder, _PROGRESS)):
            os.remove(os.path.join(self.folder, _PROGRESS))
        for ending in (".npy", ".partial.npy"):
            if os.path.exists(self._path(name, ending)):
                os.remove(self._path(name, ending))
        return np.lib.format.open_memmap(self._path(name, ".partial.npy"), mode="w+", dtype=dtype, shape=shape)
