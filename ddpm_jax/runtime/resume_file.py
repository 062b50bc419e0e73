"""Stores the intermediate results of a long measurement in a file, so that it resumes after Ctrl-C or a kill."""

import hashlib
import json
import os
import sys
import time
import zipfile

import jax
import numpy as np
from jax.experimental import multihost_utils

from ddpm_jax.runtime.atomic_files import replace_file

KEEP_EVERY_SECONDS = 20


class ResumeFile:
    """Arrays that a measurement fills part by part, and the number of parts that are done.

    Use it in a `with` block: an exception in the block, such as Ctrl-C, keeps what is done; a kill loses what came
    after the last `KEEP_EVERY_SECONDS`. Call `finish` when the results are stored elsewhere.

    Args:
      prefix: the beginning of the file's path, which ends in a hash of the facts and `.partial.npz`; None stores
        nothing.
      facts: everything that the results depend on, as JSON: a file with other facts is not used.
      arrays: name -> array of the final shape; filled in place by the measurement.
    """

    def __init__(self, prefix: str | None, facts: dict, arrays: dict[str, np.ndarray]):
        self.arrays, self.num_done = arrays, 0
        self._facts = json.dumps(facts, sort_keys=True)
        self._path = None
        if prefix is not None and jax.process_index() == 0:
            self._path = f"{prefix}_{fingerprint(self._facts)}.partial.npz"
            if os.path.exists(self._path):
                self._restore()
        if jax.process_count() > 1:
            # Only the first process needs to see the file.
            whole = multihost_utils.broadcast_one_to_all((np.int32(self.num_done), self.arrays))
            self.num_done = int(whole[0])
            for name, array in self.arrays.items():
                array[...] = whole[1][name]
        self._num_kept = self.num_done
        self._last_kept, self._keep_seconds = time.monotonic(), 0.0

    def _restore(self) -> None:
        try:
            with np.load(self._path) as file:
                if str(file["facts"]) != self._facts:
                    return
                found = {name: file[name] for name in self.arrays}
                num_done = int(file["num_done"])
            for name, array in self.arrays.items():
                array[...] = found[name]
            self.num_done = num_done
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            print(f"warning: {self._path} cannot be read ({error}); measuring from the start", file=sys.stderr)

    def advance(self) -> None:
        """Counts one more part as done; writes the file from time to time."""
        self.num_done += 1
        # Large arrays take long to write; writing takes at most a twentieth of the time.
        if time.monotonic() - self._last_kept >= max(KEEP_EVERY_SECONDS, 20 * self._keep_seconds):
            self.keep()

    def keep(self) -> None:
        """Writes the file if anything is new."""
        if self._path is None or self.num_done == self._num_kept:
            return
        start = time.monotonic()
        with replace_file(self._path) as file:
            np.savez(file, facts=np.array(self._facts), num_done=self.num_done, **self.arrays)
        self._num_kept = self.num_done
        self._last_kept = time.monotonic()
        self._keep_seconds = self._last_kept - start

    def finish(self) -> None:
        """Removes the file."""
        if self._path is not None and os.path.exists(self._path):
            os.remove(self._path)

    def __enter__(self) -> "ResumeFile":
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if kind is not None:
            self.keep()


def fingerprint(*parts: object) -> str:
    """A short hash of weights, arrays and JSON values: it differs if any of them does."""
    digest = hashlib.sha256()
    for part in parts:
        for leaf in jax.tree.leaves(part):
            array = np.asarray(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(str(leaf).encode(errors="backslashreplace") if array.dtype.kind in "OU" else array.tobytes())
    return digest.hexdigest()[:16]
