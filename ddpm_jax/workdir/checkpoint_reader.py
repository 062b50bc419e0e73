"""Reads one checkpoint from disk, or the newest one that is readable if some are damaged.

Layout: see `ddpm_jax.workdir.checkpoints`.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from ddpm_jax.runtime.errors import MAX_INT, UserError, arg
from ddpm_jax.runtime.json_files import read_json
from ddpm_jax.workdir.checkpoint_format import migrated
from ddpm_jax.workdir.checkpoint_manifest import MANIFEST, DamagedError, verify
from ddpm_jax.workdir.orbax_side_effects import drop_late_callbacks

_NO_ARRAYS = ("config", "metrics")  # the items that are JSON

# Exceptions of Orbax for truncated, missing or foreign files, found by damaging checkpoints.
_DAMAGE = (ValueError, KeyError, TypeError, OSError)
_MAX_BYTES = 512  # of a message between processes


class CheckpointReader:
    """Reads the checkpoints below one folder; warns of each damaged one only once.

    Args:
      directory: the folder `checkpoints` of a workdir, absolute.
    """

    def __init__(self, directory: str):
        self.directory = directory
        self._warned: set[int] = set()  # steps
        self._noted: set[int] = set()

    def items(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
        """Items of a step by name, on the devices of their targets."""
        self._checked_config(step, tuple(targets))
        return self._restore(step, targets)

    def arrays(self, step: int, item: str) -> Any:
        """The NumPy tree of one item of a step."""
        self._checked_config(step, (item,))
        # NumPy targets with the saved shapes: without them Orbax asks for the devices of the training run.
        # For all items, because Orbax warns about items without a handler.
        items = [path.name for path in (Path(self.directory) / str(step)).iterdir() if path.is_dir()]
        handlers = {name: ocp.StandardCheckpointHandler() for name in {item, *items} - set(_NO_ARRAYS)}
        with self._manager(item_handlers=handlers | {"config": ocp.JsonCheckpointHandler()}) as manager:
            saved = manager.item_metadata(step)[item]
        if saved is None:
            raise FileNotFoundError(f"{item} is missing or has lost its metadata")
        target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), saved.tree)
        return self._restore(step, {item: target})[item]

    def config(self, step: int) -> str:
        """The JSON text of the config of a step."""
        return self._checked_config(step, ())

    def one_of(self, steps: Sequence[int], step: int, read: Callable[[int], Any]) -> Any:
        """`read(step)`; raises UserError if the step is not in `steps`, or is damaged."""
        if step not in steps:
            raise UserError(f"{arg('step')} must be one of {steps}; got {step}")
        try:
            return read(step)
        except UserError:
            raise
        except _DAMAGE as error:
            raise UserError(f"{self._damaged(step, error)}; use another {arg('step')} of {steps}") from error

    def newest(self, steps: Sequence[int], read: Callable[[int], Any]) -> tuple[int, Any]:
        """(step, read(step)) for the newest readable one of the ascending `steps`; warns about each unreadable one.

        Raises:
          UserError: none can be read.
        """
        for step in reversed(steps):
            try:
                return step, read(step)
            except UserError:  # a later format: not damaged, and reading an earlier step would lose work
                raise
            except _DAMAGE as error:
                last = error
                if step not in self._warned:
                    print(f"warning: {self._damaged(step, error)}; trying an earlier one", file=sys.stderr, flush=True)
                self._warned.add(step)
        raise UserError(
            f"no readable checkpoint in {self.directory}: none of {steps} can be read; restore the folder "
            "from a copy, or train in another --workdir"
        ) from last

    def _restore(self, step: int, targets: dict[str, Any]) -> dict[str, Any]:
        drop_late_callbacks()
        # A new manager: one that has saved or read an item with one kind of args refuses another kind.
        with self._manager() as manager:
            args = {name: ocp.args.StandardRestore(tree) for name, tree in targets.items()}
            return dict(manager.restore(step, args=ocp.args.Composite(**args)))

    def _checked_config(self, step: int, items: tuple[str, ...]) -> str:
        """The JSON text of a step's config, after checking it and the files of `items` against the manifest.

        Raises:
          UserError: a format of a later ddpm_jax.
          DamagedError: a file is not what was written, or the config cannot be read: without it a step cannot be
            used.
        """
        folder = Path(self.directory) / str(step)
        if step > MAX_INT:
            raise DamagedError(f"its step is beyond {MAX_INT}")
        compared = _on_the_first_process(lambda: verify(folder, (*items, "config")))
        try:
            item = read_json(folder / "config" / "metadata", dict)
            has_version = "format_version" in item
            config = migrated(item, self._name(step))["config"]
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise DamagedError(f"its config: {error}") from error
        if compared is False and has_version and step not in self._noted:  # earlier versions wrote no manifest
            print(f"note: {self._name(step)} has no {MANIFEST} to verify it by", file=sys.stderr, flush=True)
            self._noted.add(step)
        return config

    def _manager(self, **kwargs: Any) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self.directory, options=ocp.CheckpointManagerOptions(create=False), **kwargs)

    def _damaged(self, step: int, error: Exception) -> str:
        first_line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        return f"{self._name(step)} cannot be read ({first_line})"

    def _name(self, step: int) -> str:
        return f"the checkpoint of step {step} in {self.directory}"


def _on_the_first_process(check: Callable[[], bool]) -> bool | None:
    """`check()` on process 0, None on the others; its error on all, so that all read or all fall back."""
    error, result = None, None
    if jax.process_index() == 0:
        try:
            result = check()
        except (DamagedError, OSError) as raised:
            error = raised
    if jax.process_count() > 1:
        text = np.frombuffer(str(error or "").encode()[:_MAX_BYTES].ljust(_MAX_BYTES), np.uint8)
        text = bytes(multihost_utils.broadcast_one_to_all(text)).decode(errors="replace").strip()
        error = DamagedError(text) if text else None
    if error is not None:
        raise error
    return result
