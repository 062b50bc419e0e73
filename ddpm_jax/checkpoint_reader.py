"""One checkpoint read back from disk, and the newest one that can be where some are damaged.

Layout: see `ddpm_jax.checkpoints`.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ddpm_jax.errors import UserError

ARRAYS = ("params", "ema_params", "opt_state")  # and t_history, where the time sampler has one

# What Orbax raises for truncated, missing or foreign files, as found by damaging checkpoints.
_DAMAGE = (ValueError, KeyError, TypeError, OSError)


class CheckpointReader:
    """Reads the checkpoints below one folder; remembers which it has warned of.

    Args:
      directory: the folder `checkpoints` of a workdir, absolute.
    """

    def __init__(self, directory: str):
        self.directory = directory
        self._warned: set[int] = set()

    def items(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
        """Some items of a step, on the devices of their targets, by name."""
        restored = self._restore(step, {name: ocp.args.StandardRestore(tree) for name, tree in targets.items()})
        return {name: restored[name] for name in targets}

    def arrays(self, step: int, item: str) -> Any:
        """The NumPy tree of one item of a step."""
        # NumPy targets of the saved shapes: without them Orbax wants the devices of the training run back.
        # For all items, since Orbax warns of those that it has no handler for.
        handlers = {name: ocp.StandardCheckpointHandler() for name in (*ARRAYS, "t_history")}
        with self._manager(item_handlers=handlers | {"config": ocp.JsonCheckpointHandler()}) as manager:
            saved = manager.item_metadata(step)[item]
        if saved is None:
            raise FileNotFoundError(f"{item} is missing or has lost its metadata")
        return self.items(step, {item: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), saved.tree)})[item]

    def config(self, step: int) -> str:
        """The JSON text of the config of a step."""
        return self._restore(step, {})["config"]["config"]

    def one_of(self, steps: Sequence[int], step: int, read: Callable[[int], Any]) -> Any:
        """`read(step)`; raises UserError where that is none of `steps`, or damaged."""
        if step not in steps:
            raise UserError(f"--step must be one of {steps}; got {step}")
        try:
            return read(step)
        except _DAMAGE as error:
            raise UserError(f"{self._damaged(step, error)}; use another --step of {steps}") from error

    def newest(self, steps: Sequence[int], read: Callable[[int], Any]) -> tuple[int, Any]:
        """(step, read(step)) of the newest of the rising `steps` that can be read, with a warning for each other.

        Raises:
          UserError: none can.
        """
        for step in reversed(steps):
            try:
                return step, read(step)
            except _DAMAGE as error:
                last = error
                if step not in self._warned:
                    print(f"warning: {self._damaged(step, error)}; trying the one before", file=sys.stderr, flush=True)
                self._warned.add(step)
        raise UserError(
            f"no readable checkpoint in {self.directory}: none of {steps} can be read; restore the folder "
            "from a copy, or train in another --workdir"
        ) from last

    def _restore(self, step: int, args: dict) -> dict:
        """Some items of a step, and always its config: a step without one is of no use."""
        _drop_late_callbacks()
        args = args | {"config": ocp.args.JsonRestore()}
        # A manager of its own: one that has saved or read an item with one kind of args refuses another kind.
        with self._manager() as manager:
            items = dict(manager.restore(step, args=ocp.args.Composite(**args)))
        if not isinstance(items["config"]["config"], str):
            raise ValueError("its config is not text")
        return items

    def _manager(self, **kwargs: Any) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self.directory, options=ocp.CheckpointManagerOptions(create=False), **kwargs)

    def _damaged(self, step: int, error: Exception) -> str:
        first_line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        return f"the checkpoint of step {step} in {self.directory} cannot be read ({first_line})"


@functools.cache
def _drop_late_callbacks() -> None:
    """Keeps off the screen what Orbax's other reads say when the first one of a damaged checkpoint has failed."""
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
            previous(unraisable)

    sys.unraisablehook = hook
