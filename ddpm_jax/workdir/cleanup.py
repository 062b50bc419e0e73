"""Deletes unfinished files that a killed process left in a workdir, and moves damaged checkpoints aside."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ddpm_jax.runtime import multi_host

# Temporary names of Orbax and of `replace_file`. Only those that training itself writes, because other commands may be
# writing into the workdir at the same time.
_FOLDERS = ("checkpoints/*.orbax-checkpoint-tmp*", "ema_snapshots/.*.part")
_FILES = (".rewinds.json.*.part", "nonfinite/.step_*.part", ".wandb_id.*.part", ".config.json.*.part",
          ".metrics.jsonl.*.part", "checkpoints/*/.manifest.json.*.part",
          "samples/.step_*.part", "samples/.final_*.part", "samples/.denoising.*.part")  # fmt: skip


def delete_unfinished(workdir: str | os.PathLike) -> None:
    """Deletes what is unfinished, on process 0. Call it only under the workdir's lock, while nothing is saved."""
    if not multi_host.is_first():
        return
    for pattern in _FOLDERS:
        for path in Path(workdir).glob(pattern):
            # A thread of a failed save may still be writing; the next start deletes what remains.
            shutil.rmtree(path, ignore_errors=True)
    for pattern in _FILES:
        for path in Path(workdir).glob(pattern):
            path.unlink()


def move_aside(directory: str, steps: Sequence[int]) -> None:
    """Moves damaged checkpoints from the folder `checkpoints` to damaged_checkpoints next to it, with a warning."""
    folder = os.path.join(os.path.dirname(directory), "damaged_checkpoints")
    os.makedirs(folder, exist_ok=True)
    for step in steps:
        shutil.move(os.path.join(directory, str(step)), os.path.join(folder, free_name(folder, str(step))))
    print(f"warning: moved the unreadable {steps} to {folder}", file=sys.stderr, flush=True)


def free_name(folder: str | os.PathLike, name: str) -> str:
    """NAME, or NAME_1, NAME_2, ...: the first that is not taken in the folder."""
    taken, number, free = set(os.listdir(folder)), 0, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
