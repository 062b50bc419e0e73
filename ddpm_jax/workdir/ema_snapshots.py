"""Snapshots of averages of the parameters, from which averages of other lengths are made after the training.

Layout: <workdir>/ema_snapshots/<step>/{NAME/arrays.safetensors, manifest.json}: a file for each average, and the
digests of all of them. No snapshot is deleted. One whose step is after that of a resumed checkpoint is moved to
<workdir>/superseded_ema_snapshots before the first new update: the run writes it again, with the same bits if nothing
has changed, and what belongs to updates that the run no longer contains is never combined with what follows.
"""

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ddpm_jax.runtime import multi_host
from ddpm_jax.runtime.disk_space import MARGIN_BYTES, check_room, full_error, is_full
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.workdir.checkpoint_manifest import MANIFEST, DamagedError, verify, write_manifest
from ddpm_jax.workdir.cleanup import free_name

FOLDER, SUPERSEDED = "ema_snapshots", "superseded_ema_snapshots"
_FILE = "arrays.safetensors"


class EmaSnapshots:
    """The snapshots of one workdir. Those who write must hold its lock, as `Checkpoints(workdir, create=True)` does."""

    def __init__(self, workdir: str | os.PathLike):
        self.directory = os.path.join(os.path.abspath(workdir), FOLDER)
        self.superseded = os.path.join(os.path.abspath(workdir), SUPERSEDED)

    def steps(self) -> list[int]:
        """The steps of the complete snapshots, ascending."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if name.isdecimal())

    def write(self, step: int, averages: Mapping[str, Any]) -> None:
        """Writes the snapshot of a step, completely or not at all; on process 0, with the shards of all processes.

        Args:
          averages: name -> its tree (nested dicts of arrays).

        Raises:
          DiskFullError: no room for it.
        """
        what = f"the EMA snapshot of step {step}"
        self._on_first(lambda: os.makedirs(self.directory, exist_ok=True), what)
        check_room(os.path.dirname(self.directory), snapshot_bytes(averages) + MARGIN_BYTES, what)
        part = Path(self.directory) / f".{step}.part"  # what a killed process leaves of it, `delete_unfinished` deletes
        error = None
        for name, tree in averages.items():
            tensors = {path: _whole(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}
            if multi_host.is_first() and error is None:  # the others only give their shards
                error = _error_of(lambda name=name, tensors=tensors: _write_file(part / name / _FILE, tensors))
        if multi_host.is_first() and error is None:
            error = _error_of(lambda: self._commit(part, step))
        if error is not None:
            shutil.rmtree(part, ignore_errors=True)
        self._raise_on_all(error, what)

    def _on_first(self, write: Callable[[], None], what: str) -> None:
        """`write()` on process 0; all processes must call this."""
        self._raise_on_all(_error_of(write) if multi_host.is_first() else None, what)

    def _raise_on_all(self, error: Exception | None, what: str) -> None:
        """Raises the error of process 0 on all processes: one of them alone would wait for the others."""
        if found := multi_host.broadcast_from_first(0 if error is None else 1 + is_full(error)):
            if found == 2:
                raise full_error(os.path.dirname(self.directory), f"{what} could not be written") from error
            raise error or OSError(f"{what} could not be written by process 0")

    def _commit(self, part: Path, step: int) -> None:
        write_manifest(part)
        path = os.path.join(self.directory, str(step))
        shutil.rmtree(path, ignore_errors=True)
        os.replace(part, path)
        _sync_folder(self.directory)  # so that no checkpoint outlives a power cut without its snapshots

    def move_aside_after(self, step: int) -> None:
        """Moves the snapshots of later steps to `superseded`, on process 0, with a note: the run continues from this.

        None is overwritten there: a second one of a step becomes STEP_1.
        """
        self._on_first(lambda: self._move_aside_after(step), f"{self.superseded}, the folder for later EMA snapshots,")

    def _move_aside_after(self, step: int) -> None:
        later = [saved for saved in self.steps() if saved > step]
        if not later:
            return
        os.makedirs(self.superseded, exist_ok=True)
        for name in map(str, later):
            shutil.move(
                os.path.join(self.directory, name), os.path.join(self.superseded, free_name(self.superseded, name))
            )
        print(
            f"note: moved the EMA snapshots {later}, later than step {step}, to {self.superseded}",
            file=sys.stderr,
            flush=True,
        )

    def read(self, step: int, name: str) -> dict[str, Any]:
        """The NumPy tree of one average of a snapshot, compared with its digest.

        Raises:
          UserError: a file is missing or is not what was written.
        """
        folder = os.path.join(self.directory, str(step))
        try:
            if not verify(folder, (name,)):
                raise DamagedError(f"{MANIFEST} is missing")
            return unflatten_dict(load_file(os.path.join(folder, name, _FILE)), sep="/")
        except (OSError, ValueError, SafetensorError) as error:
            said = str(error).splitlines()[0][:200]
            raise UserError(
                f"the EMA snapshot of step {step} in {self.directory} cannot be read ({said}): restore its folder from "
                "a copy, or move it away, and the other snapshots are used"
            ) from error


def snapshot_bytes(averages: Mapping[str, Any]) -> int:
    """The bytes of a snapshot of these trees of arrays, or of their shapes."""
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(averages))


def _whole(leaf: jax.Array | np.ndarray | np.generic) -> np.ndarray:
    """The whole array on the host of every process; all of them must call this."""
    if getattr(leaf, "is_fully_addressable", True):
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _write_file(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(save({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}))
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: str) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _error_of(write: Callable[[], None]) -> Exception | None:
    """The error of `write()`, to be told to all processes before it is raised."""
    try:
        write()
    except Exception as error:
        return error
    return None


def due_steps(num_snapshots: int, num_steps: int) -> list[int]:
    """The steps of the snapshots: `num_snapshots` of them, evenly spaced, the last at the end.

    Example:
      >>> due_steps(4, 10), due_steps(3, 2)
      ([3, 5, 8, 10], [1, 2])
    """
    return sorted({-(-i * num_steps // num_snapshots) for i in range(1, num_snapshots + 1)})
