"""Checkpoints by Orbax: parameters, EMA, optimiser state and config of a step as separate items.

Layout: <workdir>/checkpoints/<step>/{params,ema_params,opt_state,config}. The newest and the best are kept.
"""

import logging
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from ddpm_jax.errors import UserError
from ddpm_jax.training.state import TrainState

ARRAYS = ("params", "ema_params", "opt_state")
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
        if create or os.path.isdir(self.directory):
            self._manager = ocp.CheckpointManager(self.directory, options=_options(keep, create))

    def steps(self) -> list[int]:
        """The steps that were saved completely, rising."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def best_step(self) -> int | None:
        """The step with the lowest eval loss, or None where none was measured."""
        return self._manager.best_step() if self._manager and self.steps() else None

    def save(self, state: TrainState, config_json: str, metrics: dict[str, float] | None = None) -> None:
        """Starts saving `state` under its step, in the background; a step that is already there stays.

        Args:
          config_json: of `configuration.config_to_json`, kept with the arrays so that no flag can mismatch.
          metrics: of the step; "eval_loss" decides which is best.
        """
        step = int(state.step)
        if step in self.steps():
            return
        items = {name: ocp.args.StandardSave(getattr(state, name)) for name in ARRAYS}
        items["config"] = ocp.args.JsonSave({"config": config_json})
        if not self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics):
            raise UserError(
                f"step {step} was not saved: {self.directory} holds the later step {self.steps()[-1]}; "
                "use a new --workdir"
            )

    def restore_state(self, abstract: TrainState) -> TrainState | None:
        """The newest readable state, or None where nothing was saved.

        Args:
          abstract: `jax.ShapeDtypeStruct`s with the shardings wanted.

        Raises:
          UserError: checkpoints are there but none can be read.
        """
        targets = {name: getattr(abstract, name) for name in ARRAYS}

        def read(step: int) -> TrainState:
            items = self._restore(step, {n: ocp.args.StandardRestore(target) for n, target in targets.items()})
            sharding = abstract.step.sharding
            return TrainState(step=jax.device_put(np.int32(step), sharding), **items)

        return self._newest_readable(read)[1] if self.steps() else None

    def restore_params(self, item: str, step: int | None = None) -> tuple[int, dict]:
        """(step, the NumPy tree of one item), for sampling on any number of devices.

        Args:
          item: "ema_params" or "params".
          step: None for the newest readable one.

        Raises:
          UserError: no checkpoint, not that step, or a damaged one.
        """
        return self._read(step, lambda step: self._restore(step, {item: ocp.args.StandardRestore()})[item])

    def restore_config(self, step: int | None = None) -> tuple[int, str]:
        """(step, the JSON text of its config); raises like `restore_params`."""
        step, item = self._read(step, lambda step: self._restore(step, {"config": ocp.args.JsonRestore()})["config"])
        return step, item["config"]

    def wait(self) -> None:
        """Blocks until the save in the background is committed; raises what went wrong in it."""
        if self._manager:
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases Orbax's threads."""
        if self._manager:
            self._manager.close()

    def _read(self, step: int | None, read: Callable[[int], Any]) -> tuple[int, Any]:
        steps = self.steps()
        if not steps:
            raise UserError(f"no checkpoint in {self.directory}: train first, or give another --workdir")
        if step is None:
            return self._newest_readable(read)
        if step not in steps:
            raise UserError(f"--step must be one of {steps}; got {step}")
        try:
            return step, read(step)
        except _DAMAGE as error:
            raise UserError(f"{self._damaged(step, error)}; use another --step of {steps}") from error

    def _newest_readable(self, read: Callable[[int], Any]) -> tuple[int, Any]:
        for step in reversed(self.steps()):
            try:
                return step, read(step)
            except _DAMAGE as error:
                logging.warning("%s; trying the one before", self._damaged(step, error))
        raise UserError(f"no readable checkpoint in {self.directory}: all of {self.steps()} are damaged")

    def _restore(self, step: int, args: dict) -> dict:
        # A manager of its own: one that has saved or read an item with one kind of args refuses another kind.
        with ocp.CheckpointManager(self.directory, options=ocp.CheckpointManagerOptions(create=False)) as manager:
            return dict(manager.restore(step, args=ocp.args.Composite(**args)))

    def _damaged(self, step: int, error: Exception) -> str:
        first_line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        return f"the checkpoint of step {step} in {self.directory} cannot be read ({first_line})"


# What Orbax raises for truncated, missing or foreign files, as found by damaging checkpoints.
_DAMAGE = (ValueError, KeyError, FileNotFoundError, OSError)


def _options(keep: int, create: bool) -> ocp.CheckpointManagerOptions:
    def lowest(metrics: dict) -> float:
        return metrics[BEST_METRIC]

    return ocp.CheckpointManagerOptions(
        create=create,
        # Not best_fn with max_to_keep: that deletes the newest checkpoint where it is not among the best.
        preservation_policy=AnyPreservationPolicy([LatestN(keep), BestN(get_metric_fn=lowest, reverse=True, n=1)]),
        best_fn=lowest,
        best_mode="min",
        cleanup_tmp_directories=create,
    )
