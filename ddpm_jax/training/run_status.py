"""The status of a run, read from its workdir; changes nothing and uses no device."""

import os
import time
from collections.abc import Callable
from datetime import datetime

from ddpm_jax.runtime.disk_space import folder_bytes, size_text
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.runtime.json_files import is_count, read_json
from ddpm_jax.runtime.progress import format_duration, format_rate
from ddpm_jax.training.nonfinite import RECORDS_FOLDER, REWINDS_FILE
from ddpm_jax.training.run_log import num_damaged_lines, read_metrics
from ddpm_jax.workdir.class_names import numbered, read_class_names
from ddpm_jax.workdir.lock import holder


def status_lines(workdir: str, clock: Callable[[], float] = time.time) -> list[str]:
    """The status of a run: state, step, speed, time left, losses, checkpoints, trouble.

    Raises:
      UserError: no such folder, or no run in it.
    """
    # null, in place of NaN or infinite numbers, counts as missing here.
    train = _train_fields(workdir)
    lines = [{name: value for name, value in line.items() if value == value} for line in read_metrics(workdir)]
    names = [
        ("workdir", os.path.abspath(workdir)),
        ("state", _state(workdir, lines, train, clock)),
        ("step", _step(lines, train)),
        ("speed", _speed(lines)),
        ("time", _time(lines, train)),
        ("loss", _loss(lines)),
        ("classes", numbered(read_class_names(workdir))),
        ("saved", _checkpoints(workdir)),
        ("trouble", _trouble(workdir)),
    ]
    return [f"{name:<9} {text}" for name, text in names if text]


def _train_fields(workdir: str) -> dict:
    """The group `train` of the run's config."""
    if not os.path.isdir(workdir):
        raise UserError(f"--workdir must be the folder of a training run; there is no {workdir!r}")
    path = os.path.join(workdir, "config.json")
    try:
        train = read_json(path, dict).get("train")
        if not isinstance(train, dict) or not is_count(train.get("num_steps"), least=1):
            raise ValueError("the number of steps is missing or not above 0")
    except FileNotFoundError as error:
        raise UserError(f"--workdir {workdir} holds no training run: it has no config.json") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): the next start of the run writes it anew") from error
    return train


def _state(workdir: str, lines: list[dict], train: dict, clock: Callable[[], float]) -> str:
    by = holder(workdir)
    said = ""
    path = os.path.join(workdir, "metrics.jsonl")
    if lines and os.path.exists(path):
        ago = format_duration(clock() - os.path.getmtime(path))
        said = f", last report {ago} ago"
    if by is not None:
        return f"running: {by}{said}"
    done = bool(lines) and lines[-1]["step"] >= train["num_steps"]
    saved = any(name.isdecimal() for name in _names(os.path.join(workdir, "checkpoints")))
    again = "the same command resumes it" if saved else "nothing was saved, so that the same command starts anew"
    return f"{'finished' if done else f'not running; {again}'}{said}"


def _step(lines: list[dict], train: dict) -> str:
    if not lines:
        return f"none reported yet, of {train['num_steps']:,}"
    step = lines[-1]["step"]
    return f"{step:,} of {train['num_steps']:,} ({step / train['num_steps']:.1%})"


def _speed(lines: list[dict]) -> str:
    last = next((line for line in reversed(lines) if "images_per_second" in line), None)
    if last is None:
        return ""
    parts = [f"{format_rate(last['images_per_second'])} images/s"]
    if "share_of_peak" in last:
        parts.append(f"{last['share_of_peak']:.1%} of the peak measured on these devices")
    if "data_wait" in last:
        parts.append(f"{last['data_wait']:.0%} of the time waiting for data")
    if "loader_images_per_second" in last:
        parts.append(f"data loader alone {format_rate(last['loader_images_per_second'])} images/s")
    return ", ".join(parts)


def _time(lines: list[dict], train: dict) -> str:
    if not lines:
        return ""
    last = lines[-1]
    parts = [f"{format_duration(last['seconds'])} so far"] if "seconds" in last else []
    if "seconds_left" in last:
        parts.append(f"{format_duration(last['seconds_left'])} left")
    if "seconds_to_checkpoint" in last:
        parts.append(f"next checkpoint in {format_duration(last['seconds_to_checkpoint'])}")
    return ", ".join(parts) + (" (as of the last report)" if len(parts) > 1 else "")


def _loss(lines: list[dict]) -> str:
    if not lines:
        return ""
    last = lines[-1]
    parts = [f"{last['loss']:.5f}"] if "loss" in last else []
    quarters = [f"{last[name]:.4f}" for name in (f"loss_t{i}of4" for i in range(1, 5)) if name in last]
    if len(quarters) == 4:
        parts.append(f"by quarter of t {' '.join(quarters)}")
    held_out = [(line["eval_loss"], line["step"]) for line in lines if "eval_loss" in line]
    if held_out:
        best, step = min(held_out)
        parts.append(f"held out {held_out[-1][0]:.5f} (best {best:.5f} at step {step:,})")
    return ", ".join(parts)


def _checkpoints(workdir: str) -> str:
    folder = os.path.join(workdir, "checkpoints")
    steps = sorted(int(name) for name in _names(folder) if name.isdecimal())
    if not steps:
        return "no checkpoint yet"
    newest = os.path.join(folder, str(steps[-1]))
    written = datetime.fromtimestamp(os.path.getmtime(newest)).strftime("%Y-%m-%d %H:%M:%S")
    shown = ", ".join(f"{step:,}" for step in steps)
    return f"checkpoints of step {shown}; the newest from {written}; {size_text(folder_bytes(folder))} in total"


def _trouble(workdir: str) -> str:
    parts = []
    if records := [name for name in _names(os.path.join(workdir, RECORDS_FOLDER)) if name.endswith(".json")]:
        parts.append(f"steps with NaN or infinite values: {len(records)}, listed in {RECORDS_FOLDER}/")
    if REWINDS_FILE in _names(workdir):
        parts.append(f"rewinds, listed in {REWINDS_FILE}")
    if num_damaged := num_damaged_lines(workdir):
        parts.append(f"damaged lines in metrics.jsonl: {num_damaged}")
    if damaged := _names(os.path.join(workdir, "damaged_checkpoints")):
        parts.append(f"damaged checkpoints moved aside: {', '.join(sorted(damaged))}")
    return "; ".join(parts)


def _names(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []
