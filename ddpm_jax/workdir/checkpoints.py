"""Checkpoints by Orbax: the trees of a train state, and the config of the step, as separate items.

Layout: <workdir>/checkpoints/<step>/{params,ema_params,opt_state,config}, further items of the state such as ema_0.999,
and manifest.json with the digests of all these files. The newest checkpoints and the best one are kept.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from ddpm_jax.runtime import multi_host
from ddpm_jax.runtime.disk_space import MARGIN_BYTES, check_room, folder_bytes, full_error, is_full, size_text
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.workdir.checkpoint_format import config_item
from ddpm_jax.workdir.checkpoint_manifest import write_manifest
from ddpm_jax.workdir.checkpoint_metrics import BEST_METRIC, damaged_metrics, is_unreadable, move_metrics_aside
from ddpm_jax.workdir.checkpoint_reader import CheckpointReader
from ddpm_jax.workdir.cleanup import delete_unfinished, move_aside
from ddpm_jax.workdir.lock import WorkdirLock, holder
from ddpm_jax.workdir.orbax_side_effects import quiet_orbax, wait_for_threads
from ddpm_jax.workdir.workdir_path import check_workdir


@runtime_checkable
class State(Protocol):
    """A step, and trees of arrays; each tree is one item."""

    step: jax.Array

    def items(self) -> dict[str, Any]:
        """The trees by the names of their items."""

    def with_items(self, step: jax.Array, items: Mapping[str, Any]) -> "State":
        """A copy with another step and other trees."""


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      workdir: contains, or will contain, the folder `checkpoints`.
      keep: the number of newest checkpoints to keep; the one with the lowest eval loss is kept as well.
      create: True for writing: creates the folder if it is missing, locks the workdir until `close`, and deletes
        unfinished files of an earlier process. False for reading, which changes nothing and needs no lock.

    Raises:
      UserError: another run trains in the workdir, its path cannot be used, or, for reading, the metrics of a
        checkpoint are not JSON.
    """

    def __init__(self, workdir: str, *, keep: int = 2, create: bool = False):
        if create:
            check_workdir(workdir)
        # Orbax reports a relative path as an error only later, from its background thread.
        self.directory = os.path.join(os.path.abspath(workdir), "checkpoints")
        self._manager = None
        self._reader = CheckpointReader(self.directory)
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="manifest")
        self._manifest: Future | None = None  # of the latest save
        self._lock = None
        if create:
            os.makedirs(self.directory, exist_ok=True)
            self._lock = WorkdirLock(os.path.dirname(self.directory))  # before anything of another run is deleted
        try:
            self._open(keep, create)
        except BaseException:
            self.close()
            raise

    def _open(self, keep: int, create: bool) -> None:
        if create:
            delete_unfinished(os.path.dirname(self.directory))
        if os.path.isdir(self.directory):
            self._check_kinds(create)
            self._check_metrics(create)
            self._manager = ocp.CheckpointManager(self.directory, options=_options(keep, create))

    def _check_kinds(self, create: bool) -> None:
        """Raises UserError for a checkpoint that is no folder, or a link where old ones will be deleted."""
        for name in sorted(os.listdir(self.directory)):
            path = os.path.join(self.directory, name)
            if not name.isdecimal() or not os.path.lexists(path):  # deleted meanwhile by the run that trains here
                continue
            if not os.path.isdir(path) or (create and os.path.islink(path)):
                what = "a link" if os.path.islink(path) else "no folder"
                raise UserError(f"{path} is {what}: put the folder of the checkpoint there, or move it away")

    def _check_metrics(self, create: bool) -> None:
        """Moves damaged metrics aside if this process may write; else refuses those that Orbax could not read."""
        if create:
            if multi_host.is_first() and (damaged := damaged_metrics(self.directory)):
                move_metrics_aside(self.directory, damaged)
            multi_host.barrier("damaged metrics are moved aside")
            return
        for step, what in damaged_metrics(self.directory).items():
            if is_unreadable(self.directory, step):
                folder = os.path.join(self.directory, str(step), "metrics")
                raise UserError(
                    f"the eval loss of the checkpoint of step {step} is damaged ({what}): delete the folder {folder}, "
                    "which only records which checkpoint is best"
                )

    def steps(self) -> list[int]:
        """The steps that were saved completely, ascending."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def best_step(self) -> int | None:
        """The step with the lowest eval loss, or None if there is no checkpoint.

        Raises:
          UserError: there are checkpoints, but no eval loss was measured.
        """
        if not self.steps():
            return None
        damaged = damaged_metrics(self.directory)
        if damaged:
            step, what = next(iter(damaged.items()))
            raise UserError(
                f"the eval loss of the checkpoint of step {step} is damaged ({what}), so the best is unknown: take the "
                f"newest, or one of {self.steps()}"
            )
        step = self._manager.best_step()
        if step is None or not self._manager.metrics(step):
            raise UserError(
                f"no checkpoint in {self.directory} has an eval loss, so none is the best (data.eval_split was ''): "
                "take the newest, or one of "
                f"{self.steps()}"
            )
        return step

    def save(self, state: State, config_json: str, metrics: dict[str, float] | None = None) -> None:
        """Starts saving `state` under its step, in the background.

        Args:
          config_json: from `experiment.config_json.config_to_json`, stored with the arrays so that they always match.
          metrics: of the step; "eval_loss" determines the best checkpoint.

        Raises:
          UserError: this step or a later one is already saved.
          DiskFullError: there is no room for it, or there was none for the previous one.
        """
        quiet_orbax()
        self._finish()
        self.check_room(state)
        step = int(state.step)
        items = {name: ocp.args.StandardSave(tree) for name, tree in state.items().items()}
        items["config"] = ocp.args.JsonSave(config_item(config_json))
        with self._full_disk_named():
            saved = self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)
        if not saved:
            raise UserError(
                f"step {step} was not saved: {self.directory} holds step {self.steps()[-1]} already; "
                "use a new --workdir"
            )
        if multi_host.is_first():
            self._manifest = self._background.submit(self._write_manifest, step)

    def check_room(self, state: State, snapshot_bytes: int = 0) -> None:
        """Raises DiskFullError if the disk has no room for a checkpoint of `state` (arrays, or their shapes).

        Args:
          snapshot_bytes: of the EMA snapshots to come, for which there must be room as well.
        """
        arrays = jax.tree.leaves(state.items())
        # Compressed arrays are somewhat smaller: random float32 numbers by 8 percent.
        num_bytes = sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in arrays)
        last = self._last()
        if last is not None:
            num_bytes = max(num_bytes, folder_bytes(os.path.join(self.directory, str(last))))
        snapshots = f", with the EMA snapshots to come ({size_text(snapshot_bytes)})," if snapshot_bytes else ""
        check_room(self.directory, num_bytes + snapshot_bytes + MARGIN_BYTES, self._next() + snapshots)

    def _write_manifest(self, step: int) -> None:
        self._manager.wait_until_finished()  # on process 0 only, which commits when all processes are done
        write_manifest(os.path.join(self.directory, str(step)))

    def restore_state(self, abstract: State) -> State | None:
        """The newest readable state, to resume training from; None if nothing was saved.

        Newer checkpoints that cannot be read are moved to <workdir>/damaged_checkpoints, with a warning; their steps
        will be trained and saved again.

        Args:
          abstract: `jax.ShapeDtypeStruct`s with the wanted shardings.

        Raises:
          UserError: there are checkpoints but none can be read.
        """
        targets = abstract.items()

        def read(step: int) -> State:
            arrays = self._reader.items(step, targets)
            return abstract.with_items(jax.device_put(np.int32(step), abstract.step.sharding), arrays)

        if not self.steps():
            return None
        step, state = self._reader.newest(self.steps(), read)
        self._move_aside([later for later in self.steps() if later > step])
        return state

    def restore_params(self, item: str | Callable[[str], str], step: int | None = None) -> tuple[int, dict]:
        """(step, the NumPy tree of one item), for sampling on any number of devices.

        Args:
          item: such as "ema_params" or "params", or a function from the JSON text of the step's config to such a name.
          step: None for the newest readable one.

        Raises:
          UserError: no checkpoint, not that step, or a damaged one.
        """
        def read(step: int) -> dict:
            return self._reader.arrays(step, item(self._reader.config(step)) if callable(item) else item)

        return self._read(step, read)

    def restore_items(self, items: Sequence[str], step: int | None = None) -> tuple[int, dict[str, dict]]:
        """(step, the NumPy trees of several items by name), of a step that has them all; like `restore_params`."""
        return self._read(step, lambda step: {item: self._reader.arrays(step, item) for item in items})

    def restore_config(self, step: int | None = None) -> tuple[int, str]:
        """(step, the JSON text of its config); raises like `restore_params`."""
        return self._read(step, self._reader.config)

    def wait(self) -> None:
        """Blocks until the background save is committed and has its manifest; raises its error if it failed."""
        self._finish()

    def _finish(self) -> None:
        manifest, self._manifest = self._manifest, None
        with self._full_disk_named():
            if self._manager:
                self._manager.wait_until_finished()
            if manifest:
                manifest.result()

    def close(self) -> None:
        """Waits, then releases the threads and the lock."""
        try:
            self._finish()
        finally:
            self._background.shutdown()
            try:
                if self._manager:
                    self._manager.close()
            finally:
                if self._lock:
                    wait_for_threads()
                    delete_unfinished(os.path.dirname(self.directory))
                    self._lock.release()

    @contextmanager
    def _full_disk_named(self) -> Iterator[None]:
        """Turns what Orbax raises on a full disk into a DiskFullError."""
        try:
            yield
        except Exception as error:
            if not is_full(error):
                raise
            raise full_error(self.directory, f"{self._next()} could not be saved") from error

    def _last(self) -> int | None:
        steps = self.steps()
        return steps[-1] if steps else None

    def _next(self) -> str:
        return "the first checkpoint" if self._last() is None else f"the checkpoint after step {self._last()}"

    def _read(self, step: int | None, read: Callable[[int], Any]) -> tuple[int, Any]:
        steps = self.steps()
        if not steps:
            if by := holder(os.path.dirname(self.directory)):
                raise UserError(f"no checkpoint in {self.directory} yet: {by} trains here; wait for its first one")
            raise UserError(f"no checkpoint in {self.directory}: train first, or give another --workdir")
        if step is None:
            return self._reader.newest(steps, read)
        return step, self._reader.one_of(steps, step, read)

    def _move_aside(self, steps: list[int]) -> None:
        """Needed because Orbax would neither replace a checkpoint of these steps nor save one of an earlier step."""
        if not steps:
            return
        if multi_host.is_first():
            move_aside(self.directory, steps)
        multi_host.barrier("damaged checkpoints are moved aside")
        self._manager.reload()


def _options(keep: int, create: bool) -> ocp.CheckpointManagerOptions:
    def lowest(metrics: dict) -> float:
        return metrics[BEST_METRIC]

    return ocp.CheckpointManagerOptions(
        create=create,
        # Not best_fn with max_to_keep: that deletes the newest checkpoint if it is not among the best.
        # Checkpoints without an eval loss are never best: by default BestN keeps all of them, until the disk is full.
        preservation_policy=AnyPreservationPolicy(
            [LatestN(keep), BestN(get_metric_fn=lowest, reverse=True, n=1, keep_checkpoints_without_metrics=False)]
        ),
        best_fn=lowest,
        best_mode="min",
    )
