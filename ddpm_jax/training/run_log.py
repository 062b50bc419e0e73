"""Reports of a run while it trains: `metrics.jsonl`, TensorBoard events, and lines on the screen."""

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.runtime.atomic_files import replace_file
from ddpm_jax.runtime.json_files import is_count, parse_json
from ddpm_jax.runtime.progress import format_duration, format_rate
from ddpm_jax.training.jsonl_writer import JsonlWriter
from ddpm_jax.training.log_sinks import RunFacts, open_sinks

METRICS_FILE = "metrics.jsonl"
# The first columns of a line on the screen: name in the file -> name and format on the screen.
_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "loss": ("loss", lambda value: f"{value:7.5f}"),
    "learning_rate": ("lr", lambda value: f"{value:.2e}"),
    "grad_norm": ("grad norm", lambda value: f"{value:6.4f}"),
    "images_per_second": ("images/s", lambda value: f"{format_rate(value):>5}"),
}
# Written to the files only, to keep the line short; so are the loss by quarters of t and the samples' means.
_FILE_ONLY = (
    "loss_max", "param_norm", "seconds_per_step", "loader_images_per_second", "share_of_peak", "seconds_left",
    "seconds_to_checkpoint",
)  # fmt: skip
_FILE_ONLY_PREFIXES = ("loss_t", "accuracy_t", "sample_mean_")
LEAST_SHOWN_WAIT = 0.05  # share of the time spent waiting for data; less is not shown


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, int | float]]:
    """The lines of a run's `metrics.jsonl`, with NaN in place of null; empty if there is no such file.

    Damaged lines are left out, and so is a last line that is incomplete because the process ended.
    """
    return _read_lines(Path(workdir) / METRICS_FILE)[0]


def num_damaged_lines(workdir: str | os.PathLike) -> int:
    """The number of lines of a run's `metrics.jsonl` that cannot be read, without an incomplete last line."""
    return _read_lines(Path(workdir) / METRICS_FILE)[1]


def _read_lines(path: Path) -> tuple[list[dict[str, int | float]], int]:
    """The lines, and the number of damaged ones."""
    if not path.is_file():
        return [], 0
    lines, num_damaged = [], 0
    texts = path.read_bytes().split(b"\n")
    for text in texts[:-1]:
        values = _line_of(text)
        if values is None:
            num_damaged += 1
        else:
            lines.append(values)
    last = _line_of(texts[-1])  # without its newline
    return lines + ([] if last is None else [last]), num_damaged


def _line_of(text: bytes) -> dict[str, int | float] | None:
    """The numbers of a line, with NaN in place of null; None if it is not one that a run writes."""
    try:
        values = parse_json(text, dict)
    except ValueError:
        return None
    if not is_count(values.get("step")):
        return None
    numbers = {name: value for name, value in values.items() if value is None or type(value) in (int, float)}
    if not all(value is None or _is_number(value) for value in numbers.values()):
        return None
    return {name: math.nan if value is None else value for name, value in numbers.items()}


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf


class Reporter:
    """Writes the numbers and images of a run into its workdir, and a line per report on the screen.

    Each line of `metrics.jsonl` is one strict JSON object: `step`, `seconds` (of training, summed over
    all resumes) and the values by name; NaN and infinities, which JSON lacks, are null.

    Args:
      workdir: the folder of the run; created if it is missing.
      enabled: False makes every method do nothing, as on every process but the first.
      start_step: the step that the run continues from. What an earlier process wrote about later steps
        is removed, because those steps are taken again.
      num_steps: the last step of the run, for the time left; None: the time left is not reported.
      checkpoint_every_steps: for the time to the next checkpoint; 0: that time is not reported.
      wandb_project, config: the project of Weights & Biases, which then also gets the numbers, and the config to show.
      print_line: prints one line; `print` by default.
      clock: seconds as a function, for tests.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        enabled: bool = True,
        *,
        start_step: int = 0,
        num_steps: int | None = None,
        checkpoint_every_steps: int = 0,
        wandb_project: str = "",
        config: Mapping[str, Any] | None = None,
        print_line: Callable[[str], None] | None = None,
        clock: Callable[[], int | float] = time.monotonic,
    ) -> None:
        self._enabled, self._num_steps, self._clock = enabled, num_steps, clock
        self._checkpoint_every_steps = checkpoint_every_steps
        self._print_line = print_line or (lambda line: print(line, flush=True))
        self._path = Path(workdir) / METRICS_FILE
        self._wandb_project, self._config = wandb_project, config or {}
        if enabled:
            self._open(start_step)

    def _open(self, start_step: int) -> None:
        if num_damaged := num_damaged_lines(self._path.parent):
            lines = "line is" if num_damaged == 1 else "lines are"
            self.note(f"note: {self._path}: {num_damaged} damaged {lines} left out, and kept in metrics.jsonl.damaged")
        kept = _forget_later_steps(self._path, start_step)
        self._start = self._clock() - kept  # training time continues from its earlier value
        self._recent: deque[tuple[int, float]] = deque(maxlen=20)  # (steps, seconds of their updates) of reports
        self._pauses: deque[float] = deque(maxlen=20)  # seconds at checkpoints
        self._last = (start_step, self._clock())
        self._file = JsonlWriter(self._path)
        facts = RunFacts(str(self._path.parent), start_step, self._wandb_project, self._config, self.note)
        self._sinks = open_sinks(facts)

    def rewind(self, step: int) -> None:
        """Removes what was reported about later steps, which are about to be taken again."""
        if self._enabled:
            self._close_files()
            self._open(step)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Records scalar `values` (numbers, NumPy or JAX scalars) at `step`, everywhere.

        The names `loss`, `learning_rate`, `grad_norm` and `images_per_second` have columns on the screen. Others follow
        under their own name, except those that are written to the files only.
        """
        if not self._enabled:
            return
        numbers = {name: float(value) for name, value in values.items()}
        now = self._clock()
        numbers |= self._times_left(int(step), now, numbers.get("seconds_per_step"))
        line = {"step": int(step), "seconds": round(now - self._start, 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._file.append(json.dumps(line, allow_nan=False))
        for sink in self._sinks:
            sink.numbers(int(step), numbers)
        self._print_line(self._screen_line(int(step), numbers))

    def _times_left(self, step: int, now: int | float, seconds_per_step: float | None) -> dict[str, float]:
        """Seconds to the end and to the next checkpoint, at the recent speed of the updates.

        Seconds between the updates, such as those of the held-out loss, are added once per checkpoint to come. Nothing
        is known after the first report, whose steps include the compilation: it has no seconds_per_step.
        """
        (last_step, last_time), self._last = self._last, (step, now)
        if seconds_per_step is None or not self._num_steps or step <= last_step:
            return {}
        num_steps, every = step - last_step, self._checkpoint_every_steps
        self._recent.append((num_steps, num_steps * seconds_per_step))
        if every and step % every == 0:
            self._pauses.append(max(now - last_time - num_steps * seconds_per_step, 0.0))
        left = self._num_steps - step
        if left <= 0:
            return {}
        a_step = sum(seconds for _, seconds in self._recent) / sum(number for number, _ in self._recent)
        to_come = self._num_steps // every - step // every if every else 0
        pauses = sum(self._pauses) / len(self._pauses) * to_come if self._pauses else 0.0
        times = {"seconds_left": left * a_step + pauses}
        if every:
            times["seconds_to_checkpoint"] = min(every - step % every, left) * a_step
        return times

    def _screen_line(self, step: int, numbers: Mapping[str, int | float]) -> str:
        """One aligned line: step, loss, learning rate, gradient norm, images/s, other values, time left."""
        width = len(str(self._num_steps)) if self._num_steps else 7
        parts = [f"step {step:>{width}}" + (f"/{self._num_steps}" if self._num_steps else "")]
        for name, (label, shown) in _COLUMNS.items():
            if name in numbers:
                parts.append(f"{label} {shown(numbers[name])}")
        for name, value in numbers.items():
            if name == "data_wait":
                if value >= LEAST_SHOWN_WAIT:
                    parts.append(f"waiting for data {value:.0%}")
            elif name not in (*_COLUMNS, *_FILE_ONLY) and not name.startswith(_FILE_ONLY_PREFIXES):
                parts.append(f"{name.replace('_', ' ')} {value:.5f}")
        if "seconds_left" in numbers:
            parts.append(f"{format_duration(numbers['seconds_left'])} left")
        return "  ".join(parts)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Passes a uint8 image [H, W] or [H, W, C] to the sinks."""
        if self._enabled:
            for sink in self._sinks:
                sink.image(name, np.asarray(image), int(step))

    def note(self, text: str) -> None:
        """Prints one line on the screen."""
        if self._enabled:
            self._print_line(text)

    def close(self) -> None:
        """Writes all buffered data; a second call does nothing."""
        if self._enabled:
            self._close_files()
            self._enabled = False

    def _close_files(self) -> None:
        self._file.close()
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _forget_later_steps(path: Path, step: int) -> int | float:
    """Drops the lines of `path` after `step` and incomplete lines; returns the seconds of the last line kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        return 0
    text = path.read_bytes()
    kept, damaged, seconds = [], [], 0
    for line in text.split(b"\n"):
        values = _line_of(line)
        if values is None:
            damaged += [line] if line else []
        elif values["step"] <= step:
            kept.append(line)
            seconds = values.get("seconds", 0)
    rest = b"".join(line + b"\n" for line in kept)
    if rest != text:  # else the file keeps its date, which says when the run last reported
        if damaged:
            with open(path.with_name(f"{path.name}.damaged"), "ab") as file:
                file.write(b"".join(line + b"\n" for line in damaged))
        with replace_file(path) as file:
            file.write(rest)
    return seconds if seconds == seconds else 0
