"""Samples a cascade for the command: draws the stages into files, and says what was done."""

import glob
import os
import time

import jax
import numpy as np

from ddpm_jax.cascades.cascade import Cascade
from ddpm_jax.cascades.opening import OpenedCascade
from ddpm_jax.cascades.stage import Stage
from ddpm_jax.codecs.pixels import to_uint8
from ddpm_jax.experiment.config_json import config_to_json
from ddpm_jax.experiment.guidance_text import guidance_text
from ddpm_jax.experiment.image_condition import SHOWN
from ddpm_jax.runtime import multi_host
from ddpm_jax.runtime.image_files import can_be_drawn, grid_of_groups, save_npz, save_picture
from ddpm_jax.runtime.progress import ProgressBar, format_duration, format_rate
from ddpm_jax.runtime.resumable_arrays import ResumableArrays, remove_unused
from ddpm_jax.runtime.resume_file import fingerprint


def endings(num_stages: int) -> list[str]:
    """What the names of the files of a cascade have after PATH."""
    return [".npz", ".png", *(f"_stage_{number}.npz" for number in range(1, num_stages))]


def run_cascade(opened: OpenedCascade, *, num_samples: int, seed: int, out: str, max_grid: int) -> None:
    """Draws all stages and writes OUT.npz, OUT_stage_K.npz and OUT.png; an interrupted run continues.

    Args:
      max_grid: samples in the picture.
    """
    stages, is_first = opened.cascade.stages, multi_host.is_first()
    if is_first:
        print(f"{num_samples} samples of a cascade of {len(stages)} stages, seed {seed}")
        for stage, name, weights in zip(stages, opened.names, opened.weights, strict=True):
            print(_about(stage, name, weights), flush=True)
        for note in opened.cascade.notes:
            print(f"note: {note}", flush=True)
    environment = {"num_devices": stages[0].mesh.size, "jax": jax.__version__, "backend": jax.default_backend()}
    results: list[np.ndarray] = []
    facts, kept = [], []
    for number, stage in enumerate(stages, 1):
        facts.append(_facts(stage, num_samples))
        files = ResumableArrays(
            f"{out}.partial_stage_{number}",
            {"seed": seed, "stages": facts, **environment},
            {"images": (stage.result_shape, stage.result_dtype)},
            num_samples,
        )
        kept.append(files)  # and with them their locks
        _fill(files, stage, results[-1] if results else None, num_samples, seed)
        images = files.arrays.get("images")
        if number < len(stages):
            images = multi_host.array_of_first(images, (num_samples, *stage.result_shape), stage.result_dtype)
        results.append(images)
    if is_first:
        _write(opened.cascade, results, seed, out, max_grid)
        for files in kept:
            files.remove()
        for folder in glob.glob(f"{glob.escape(out)}.partial_stage_*"):  # of other settings, which ended early
            remove_unused(folder)


def _fill(files: ResumableArrays, stage: Stage, before: np.ndarray | None, num_samples: int, seed: int) -> None:
    is_first, name = multi_host.is_first(), f"stage {stage.number + 1}"
    num_done, calls = files.num_done, stage.table.num_calls
    if num_done and is_first:
        print(f"{name}: {num_done} of {num_samples} results are there already")
    begun = time.monotonic()
    done = -(-num_done // stage.batch_of(num_samples)) * calls
    total = stage.num_batches(num_samples) * calls
    with ProgressBar(total, name, initial=done, enabled=is_first and not files.complete) as bar:
        files.fill(
            lambda first: {
                "images": stage.draw(before, seed=seed, first=first, num_samples=num_samples, on_chunk=bar.update)
            }
        )
    seconds, drawn = time.monotonic() - begun, num_samples - num_done
    if drawn and is_first:
        rate = format_rate(drawn / max(seconds, 1e-9))
        print(f"{name}: {drawn} samples in {format_duration(seconds)}, compilation included; {rate} a second")


def _about(stage: Stage, name: str, weights: str) -> str:
    """One line on a stage, and one on its weights if they were reconstructed."""
    run, (height, width, _) = stage.run, stage.result_shape
    calls, most = stage.table.num_calls, run.sampler_table.num_calls
    walked = f"{calls} network calls" if calls == most else f"{calls} of {most} network calls"
    level = f", augmentation level {stage.level}" if stage.number and run.image_task.max_level else ""
    guided = guidance_text(run.sampler_settings)
    about = (
        f"stage {stage.number + 1}: {name}, {height}x{width}, step {run.step} ({weights} weights), {run.sampler_name} "
        f"with {walked}{', ' if guided else ''}{guided}{level}"
    )
    return about if run.post_hoc is None else f"{about}\n{run.post_hoc}"


def _facts(stage: Stage, num_samples: int) -> dict[str, object]:
    """All that the results of a stage depend on, besides the seed, the stages before and the machine, as JSON."""
    run = stage.run
    return {
        "fingerprint": fingerprint(run.params, run.codec, config_to_json(run.config)),
        "num_calls": stage.table.num_calls,
        "missing": None if stage.missing is None else list(stage.missing),
        "rounds": stage.rounds,
        "batch_size": stage.batch_of(num_samples),
        **stage.other_networks,
    }


def _write(cascade: Cascade, results: list[np.ndarray], seed: int, out: str, max_grid: int) -> None:
    images, labels = results[-1], cascade.labels(len(results[-1]))
    condition = {} if labels is None else {"label": labels}
    there = any(os.path.exists(out + ending) for ending in endings(len(results)))
    written = [f"{out}.npz ({images.dtype} {list(images.shape)} as arr_0{', classes as arr_1' if condition else ''})"]
    for number, small in enumerate(results[:-1], 1):
        save_npz(f"{out}_stage_{number}.npz", small, condition)
        written.append(f"{out}_stage_{number}.npz")
    save_npz(f"{out}.npz", images, condition)
    if can_be_drawn(images):
        save_picture(f"{out}.png", cascade_picture(cascade, [one[:max_grid] for one in results], seed))
        written.append(f"{out}.png")
    print(f"wrote {', '.join(written[:-1])} and {written[-1]}{', in place of what was there' if there else ''}")


def cascade_picture(cascade: Cascade, results: list[np.ndarray], seed: int) -> np.ndarray:
    """The samples of each stage side by side, the small ones enlarged by repetition, and before the last of them what
    its network was shown.

    Args:
      results: of each stage, samples 0, 1, ..., [N, h, w, C] each.

    Returns:
      uint8 [height, width] or [height, width, 3].
    """
    last = cascade.stages[-1]
    numbers = np.arange(len(results[-1]), dtype=np.int32)
    parts = {}
    for number, small in enumerate(results[:-1], 1):
        small = small if small.dtype == np.uint8 else np.asarray(to_uint8(small))
        factor = last.result_shape[0] // small.shape[1]
        parts[f"stage {number}"] = small.repeat(factor, 1).repeat(factor, 2)
    parts["shown"] = np.asarray(to_uint8(last.shown(results[-2], seed, numbers)[SHOWN]))
    return grid_of_groups({**parts, f"stage {len(results)}": results[-1]})
