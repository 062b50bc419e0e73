"""Checkpoints by Orbax: parameters, EMA, optimiser state and config of a step as separate items.

Layout: <workdir>/checkpoints/<step>/{params,ema_params,opt_state,config}, and t_history where the time sampler
has one; beside them manifest.json, the digests of all these files. The newest and the best are kept.
"""

import functools
import glob
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from ddpm_jax.checkpoint_format import config_item
from ddpm_jax.checkpoint_manifest import write_manifest
from ddpm_jax.checkpoint_reader import ARRAYS, CheckpointReader
from ddpm_jax.errors import UserError
from ddpm_jax.training.state import TrainState

BEST_METRIC = "eval_loss"


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      workdir: holds, or will hold, the folder `checkpoints`.
      keep: the number of newest checkpoints that stay; the one with the lowest eval loss stays too.
      create: make the folder where it is missing; False for reading.
    """

    def __init__(self, workdir: str, *, keep: int = 2, create: bool = False):
        # Orbax reports a relative path only later, from its background thread.
        self.directory = os.path.join(os.path.abspath(workdir), "checkpoints")
        self._manager = None
        self._reader = CheckpointReader(self.directory)
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="manifest")
        self._manifest: Future | None = None  # of the last save
        if create or os.path.isdir(self.directory):
            self._check_metrics()
            self._manager = ocp.CheckpointManager(self.directory, options=_options(keep, create))

    def steps(self) -> list[int]:
        """The steps that were saved completely, rising."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def best_step(self) -> int | None:
        """The step with the lowest eval loss, or None where there is no checkpoint.

        Raises:
          UserError: there are checkpoints, but no eval loss was measured.
        """
        if not self.steps():
            return None
        step = self._manager.best_step()
        if step is None or not self._manager.metrics(step):
            raise UserError(
                f"no checkpoint in {self.directory} has an eval loss to be the best by (data.eval_split was ''): "
                "take the newest, or one of "
                f"{self.steps()}"
            )
        return step

    def save(self, state: TrainState, config_json: str, metrics: dict[str, float] | None = None) -> None:
        """Starts saving `state` under its step, in the background.

        Args:
          config_json: of `configuration.config_to_json`, kept with the arrays so that no flag can mismatch.
          metrics: of the step; "eval_loss" decides which is best.

        Raises:
          UserError: this step or a later one is there already.
        """
        _drop_metrics_warning()
        self.wait()
        step = int(state.step)
        items = {name: ocp.args.StandardSave(getattr(state, name)) for name in _arrays_of(state)}
        items["config"] = ocp.args.JsonSave(config_item(config_json))
        if not self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics):
            raise UserError(
                f"step {step} was not saved: {self.directory} holds step {self.steps()[-1]} already; "
                "use a new --workdir"
            )
        if jax.process_index() == 0:
            self._manifest = self._background.submit(self._write_manifest, step)

    def _write_manifest(self, step: int) -> None:
        self._manager.wait_until_finished()  # on process 0 alone: it commits when all processes are done
        write_manifest(os.path.join(self.directory, str(step)))

    def restore_state(self, abstract: TrainState) -> TrainState | None:
        """The newest readable state, or None where nothing was saved, for training on from there.

        Newer checkpoints that cannot be read are moved into <workdir>/damaged_checkpoints, with a warning: their
        steps will be taken and saved again.

        Args:
          abstract: `jax.ShapeDtypeStruct`s with the shardings wanted.

        Raises:
          UserError: checkpoints are there but none can be read.
        """
        targets = {name: getattr(abstract, name) for name in _arrays_of(abstract)}

        def read(step: int) -> TrainState:
            arrays = self._reader.items(step, targets)
            return TrainState(step=jax.device_put(np.int32(step), abstract.step.sharding), **arrays)

        if not self.steps():
            return None
        step, state = self._reader.newest(self.steps(), read)
        self._move_aside([later for later in self.steps() if later > step])
        return state

    def restore_params(self, item: str, step: int | None = None) -> tuple[int, dict]:
        """(step, the NumPy tree of one item), for sampling on any number of devices.

        Args:
          item: "ema_params" or "params".
          step: None for the newest readable one.

        Raises:
          UserError: no checkpoint, not that step, or a damaged one.
        """
        return self._read(step, lambda step: self._reader.arrays(step, item))

    def restore_config(self, step: int | None = None) -> tuple[int, str]:
        """(step, the JSON text of its config); raises like `restore_params`."""
        return self._read(step, self._reader.config)

    def wait(self) -> None:
        """Blocks until the save in the background is committed and has its manifest; raises what went wrong."""
        if self._manager:
            self._manager.wait_until_finished()
        if self._manifest:
            manifest, self._manifest = self._manifest, None
            manifest.result()

    def close(self) -> None:
        """Waits, then releases the threads."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            if self._manager:
                self._manager.close()

    def _read(self, step: int | None, read: Callable[[int], Any]) -> tuple[int, Any]:
        steps = self.steps()
        if not steps:
            raise UserError(f"no checkpoint in {self.directory}: train first, or give another --workdir")
        if step is None:
            return self._reader.newest(steps, read)
        return step, self._reader.one_of(steps, step, read)

    def _move_aside(self, steps: list[int]) -> None:
        """Orbax would neither replace a checkpoint of these steps nor save one of an earlier step."""
        if not steps:
            return
        folder = os.path.join(os.path.dirname(self.directory), "damaged_checkpoints")
        if jax.process_index() == 0:
            os.makedirs(folder, exist_ok=True)
            for step in steps:
                taken = sum(name.split("_")[0] == str(step) for name in os.listdir(folder))
                name = f"{step}_{taken}" if taken else str(step)
                shutil.move(os.path.join(self.directory, str(step)), os.path.join(folder, name))
            print(f"warning: moved the unreadable {steps} to {folder}", file=sys.stderr, flush=True)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("ddpm_jax: damaged checkpoints are moved aside")
        self._manager.reload()

    def _check_metrics(self) -> None:
        """Raises UserError for metrics that are no JSON: Orbax would not open the folder at all."""
        for path in sorted(glob.glob(os.path.join(self.directory, "*", "metrics", "metrics"))):
            try:
                with open(path, encoding="utf-8") as file:
                    json.load(file)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{path} is damaged ({error}): delete the folder {os.path.dirname(path)}, which only says "
                    "which checkpoint is best"
                ) from error


def _arrays_of(state: TrainState) -> tuple[str, ...]:
    return ARRAYS if state.t_history is None else (*ARRAYS, "t_history")


@functools.cache
def _drop_metrics_warning() -> None:
    """Keeps off the screen that a save without an eval loss has none: Orbax says so at each."""
    logging.getLogger("absl").addFilter(lambda record: "did not provide metrics" not in record.getMessage())


def _options(keep: int, create: bool) -> ocp.CheckpointManagerOptions:
    def lowest(metrics: dict) -> float:
        return metrics[BEST_METRIC]

    return ocp.CheckpointManagerOptions(
        create=create,
        # Not best_fn with max_to_keep: that deletes the newest checkpoint where it is not among the best.
        # Those without an eval loss are no best ones: by default BestN keeps them all, until the disk is full.
        preservation_policy=AnyPreservationPolicy(
            [LatestN(keep), BestN(get_metric_fn=lowest, reverse=True, n=1, keep_checkpoints_without_metrics=False)]
        ),
        best_fn=lowest,
        best_mode="min",
        cleanup_tmp_directories=create,
    )
