"""Additional targets of a run's numbers and images: TensorBoard, and Weights & Biases if requested."""

import importlib
import importlib.util
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ddpm_jax.runtime.atomic_files import replace_file
from ddpm_jax.runtime.errors import UserError, arg
from ddpm_jax.training.tensorboard_events import TensorboardEvents


@runtime_checkable
class Sink(Protocol):
    """Receives numbers and images of steps."""

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Receives scalars by name."""

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Receives a uint8 image [H, W] or [H, W, C]."""

    def close(self) -> None:
        """Writes all buffered data."""


class WandbSink:
    """A run of Weights & Biases with the name of the workdir, which resumes where an earlier process stopped.

    Rows there cannot be removed: after a rewind, Weights & Biases ignores the steps that it already has.

    Raises:
      UserError: wandb is not installed.
    """

    def __init__(self, project: str, workdir: str, config: Mapping[str, Any]):
        check_wandb(project)
        wandb = importlib.import_module("wandb")
        name = os.path.basename(os.path.abspath(workdir))
        self._image = wandb.Image
        self._run = wandb.init(
            project=project, name=name, id=_wandb_id(workdir), resume="allow", dir=workdir, config=dict(config)
        )

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs one row of the run."""
        self._run.log(dict(numbers), step=step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Logs an image with the numbers of the step."""
        self._run.log({name: self._image(image)}, step=step)

    def close(self) -> None:
        """Uploads the remaining data."""
        self._run.finish()


def _wandb_id(workdir: str) -> str:
    """A random id, kept in <workdir>/wandb_id, because names of workdirs are not unique."""
    path = Path(workdir) / "wandb_id"
    if not path.exists():
        with replace_file(path, "w") as file:
            file.write(uuid.uuid4().hex)
    return path.read_text(encoding="utf-8").strip()


@dataclass(frozen=True)
class RunFacts:
    """What a sink may need to know of a run when it is opened.

    Attributes:
      workdir: folder of the run.
      start_step: the step that the run continues from.
      wandb_project: the project of Weights & Biases; empty: none.
      config: the fields of the config by name.
      note: prints a line.
    """

    workdir: str
    start_step: int
    wandb_project: str
    config: Mapping[str, Any]
    note: Callable[[str], None]


def _tensorboard(facts: RunFacts) -> Sink | None:
    try:
        return TensorboardEvents(facts.workdir, facts.start_step)
    except ImportError:
        facts.note("no TensorBoard events, because tensorboardX is not installed: pip install tensorboardX")
        return None


def _wandb(facts: RunFacts) -> Sink | None:
    return WandbSink(facts.wandb_project, facts.workdir, facts.config) if facts.wandb_project else None


# Each opens a sink for a run, or returns None; called on the first process, at the start and after a rewind.
SINKS: list[Callable[[RunFacts], Sink | None]] = [_tensorboard, _wandb]


def open_sinks(facts: RunFacts) -> list[Sink]:
    """All sinks of the table that a run has."""
    return [sink for open_sink in SINKS if (sink := open_sink(facts)) is not None]


def check_wandb(project: str) -> None:
    """Raises UserError if `project` is not empty and wandb is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError(f"{arg('project')}={project!r} needs wandb: pip install wandb, or leave it empty")
