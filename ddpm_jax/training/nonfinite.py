"""NaN handling: the error, a record of the step, and the batches that a run leaves out by rewinding.

<workdir>/rewinds.json lists the rewinds. Given that list, the batch of a step is a pure function of (seed, step, data).
"""

import json
import os
from dataclasses import asdict, dataclass, fields

import jax
import numpy as np

from ddpm_jax.runtime.atomic_files import replace_file
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.runtime.json_files import is_count, read_json

REWINDS_FILE, RECORDS_FOLDER = "rewinds.json", "nonfinite"


class NonFiniteError(UserError):
    """A loss, gradient or parameter that is NaN or infinite.

    Args:
      step: the step after which it was found; the update used batch step - 1.
      what: what was found, such as "loss became nan".
    """

    def __init__(self, step: int, what: str):
        super().__init__(f"{what} at step {step}")
        self.step, self.what = step, what

    @property
    def is_of_an_update(self) -> bool:
        """Whether the loss or the gradient of one update is the cause, so that the update can be left out."""
        return self.what.startswith(("loss ", "grad_norm "))


@dataclass(frozen=True)
class Rewind:
    """At step `at` the run returned to the state of step `to`, and there took batch number `batch`, the first one that
    it had not used yet."""

    at: int
    to: int
    batch: int


def _rewind_of(entry: object) -> Rewind:
    """One entry of the file; raises ValueError for anything else."""
    names = [field.name for field in fields(Rewind)]
    if not isinstance(entry, dict) or set(entry) != set(names) or not all(map(is_count, entry.values())):
        raise ValueError(f"an entry must have the whole numbers {names}; got {entry!r:.100}")
    return Rewind(**entry)


class Rewinds:
    """The rewinds of a run, oldest first.

    From step `to` of a rewind on, batches are counted from its `batch`, and the noise comes from another key: the same
    batch with the same noise would give the same loss. If a step is after several rewinds, the newest one applies.
    """

    def __init__(self, workdir: str):
        self._path = os.path.join(workdir, REWINDS_FILE)
        self._rewinds: list[Rewind] = []
        if os.path.exists(self._path):
            try:
                self._rewinds = [_rewind_of(entry) for entry in read_json(self._path, list)]
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{self._path} is damaged ({error}): it lists the batches that the run left out; restore it from a "
                    "copy, or train in another --workdir"
                ) from error

    def __len__(self) -> int:
        return len(self._rewinds)

    def batch_of_step(self, step: int) -> int:
        """The number of the batch that the update from `step` to step + 1 uses."""
        number = self._number(step)
        if not number:
            return step
        rewind = self._rewinds[number - 1]
        return rewind.batch + step - rewind.to

    def key_of_step(self, key: jax.Array, step: int) -> jax.Array:
        """The key of that update; `key` itself until the first rewind."""
        number = self._number(step)
        return jax.random.fold_in(key, np.uint32(2**32 - number)) if number else key

    def add(self, at: int, to: int, write: bool) -> None:
        """Adds a rewind, and stores it on disk before training continues; only the process with `write` writes."""
        self._rewinds.append(Rewind(at, to, self.batch_of_step(at - 1) + 1))
        if write:
            with replace_file(self._path, "w") as file:
                file.write(json.dumps([asdict(rewind) for rewind in self._rewinds]) + "\n")

    def _number(self, step: int) -> int:
        """The number of the rewind that applies to a step, counted from 1; 0 for none."""
        return max((i for i, rewind in enumerate(self._rewinds, start=1) if rewind.to <= step), default=0)


def write_record(
    workdir: str, error: NonFiniteError, policy: str, batch: int, indices: np.ndarray, write: bool
) -> str:
    """Writes <workdir>/nonfinite/step_N.json: the step, what was found, and the images it used; returns the path."""
    path = os.path.join(workdir, RECORDS_FOLDER, f"step_{error.step:08d}.json")
    record = {"step": error.step, "what": error.what, "policy": policy, "batch": batch, "indices": indices.tolist()}
    if write:
        with replace_file(path, "w") as file:
            file.write(json.dumps(record) + "\n")
    return path
