"""Samples a cascade for the command: opens its stages, draws them into files, and says what was done."""

import argparse
import os
import shutil
import time

import numpy as np

from ddpm_jax.cascades.cascade import Cascade
from ddpm_jax.cascades.flags import OF_CHECKPOINT
from ddpm_jax.cascades.stage import Stage
from ddpm_jax.codecs.pixels import to_uint8
from ddpm_jax.experiment.image_condition import SHOWN
from ddpm_jax.experiment.open_run import open_run, weights_text
from ddpm_jax.experiment.packaged_runs import output_folder
from ddpm_jax.experiment.sampler_flags import given_sampler_flags
from ddpm_jax.experiment.trained_run import SAMPLE_FIELDS, TrainedRun
from ddpm_jax.experiment.weights_digest import weights_digest
from ddpm_jax.runtime import multi_host
from ddpm_jax.runtime.errors import UserError, arguments_named, check_between, real_number
from ddpm_jax.runtime.image_files import can_be_drawn, grid_of_groups, save_npz, save_picture
from ddpm_jax.runtime.progress import ProgressBar, format_duration, format_rate
from ddpm_jax.runtime.resumable_arrays import ResumableArrays

_NO_INFLUENCE = ("num_grid", "preview_sampler", "num_preview_steps")  # fields of `sample`
_MOST_STAGES = 10


def open_cascade(args: argparse.Namespace) -> Cascade:
    """The cascade of the flags.

    Raises:
      UserError: flags that do not fit a cascade, or stages that do not fit each other.
    """
    names = [name.strip() for name in args.cascade.split(",")]
    if not 2 <= len(names) <= _MOST_STAGES or "" in names:
        raise UserError(
            f"--cascade must be two or more folders of runs, DIR,DIR, the first draws small images; got "
            f"{args.cascade!r}"
        )
    for number in sorted(args.stages):
        if number > len(names):
            raise UserError(f"--stage{number} is of a cascade of more stages; --cascade has {len(names)}")
    if args.step is not None:
        raise UserError("--step is a checkpoint of one run: give --stage1.step=N, --stage2.step=N")
    with arguments_named({"workdir": "--cascade"}.get):
        runs = [_open(name, args, args.stages.get(number, {})) for number, name in enumerate(names, 1)]
    given, settings = given_sampler_flags(args), []
    for number in range(1, len(names) + 1):
        of_all = {name: value for name, value in given.items() if _is_of(name, number)}
        of_stage = {k: v for k, v in args.stages.get(number, {}).items() if k not in OF_CHECKPOINT}
        settings.append(of_all | of_stage)
    with arguments_named({"rounding": "--norounding"}.get):
        return Cascade(
            runs, settings=settings, truncate=args.truncate, rounding=not args.norounding,
            batch_size=args.batch_size, names=names,
        )  # fmt: skip


def _is_of(setting: str, number: int) -> bool:
    """Whether a setting that is given for all stages is one of this stage: only the later ones are shown images, and
    take their classes from the first."""
    return {"augmentation_level": number > 1, "classes": number == 1}.get(setting, True)


def _open(name: str, args: argparse.Namespace, of_stage: dict[str, str]) -> TrainedRun:
    given = {"best": args.best, "weights": args.weights, "ema_std": args.ema_std}
    if "weights" in of_stage:
        given |= {"weights": of_stage["weights"], "ema_std": None}
    if "ema_std" in of_stage:
        given |= {"ema_std": real_number("ema_std", _number(of_stage["ema_std"])), "weights": "ema"}
    if "best" in of_stage:
        if of_stage["best"].lower() not in ("true", "false"):
            raise UserError(f"best of a stage must be true or false; got {of_stage['best']!r}")
        given["best"] = of_stage["best"].lower() == "true"
    if "step" in of_stage:
        if not of_stage["step"].isdecimal():
            raise UserError(f"step of a stage must be the number of a checkpoint; got {of_stage['step']!r}")
        given |= {"step": int(of_stage["step"]), "best": False}
    return open_run(name, **given).with_fields(args.overrides, SAMPLE_FIELDS)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def default_out(args: argparse.Namespace) -> str:
    """Where results go without --out: beside the samples of the last stage."""
    last = args.cascade.split(",")[-1].strip()
    return os.path.join(output_folder(last), "samples", f"cascade_seed_{args.seed}")


def run_cascade(cascade: Cascade, args: argparse.Namespace, out: str, max_grid: int) -> None:
    """Draws all stages and writes OUT.npz, OUT_stage_K.npz and OUT.png; an interrupted run continues.

    Args:
      max_grid: samples in the picture.
    """
    num_samples, seed = args.num_samples, args.seed
    check_between("--num_samples", num_samples, 1)
    is_first = multi_host.is_first()
    names = [name.strip() for name in args.cascade.split(",")]
    if is_first:
        print(f"{num_samples} samples of a cascade of {len(names)} stages, seed {seed}")
        for number, (stage, name) in enumerate(zip(cascade.stages, names, strict=True)):
            print(_about(stage, name, args.stages.get(number + 1, {}), args))
    results: list[np.ndarray] = []
    folders, facts = [], []
    for number, stage in enumerate(cascade.stages):
        facts.append(_facts(stage, num_samples))
        rows = {"images": (stage.result_shape, stage.result_dtype)}
        files = ResumableArrays(f"{out}.partial_stage_{number + 1}", {"seed": seed, "stages": facts}, rows, num_samples)
        folders.append(files.folder)
        _fill(files, stage, results[-1] if results else None, num_samples, seed)
        images = files.arrays.get("images")
        results.append(multi_host.array_of_first(images, (num_samples, *stage.result_shape), stage.result_dtype))
    if is_first:
        _write(cascade, results, seed, out, max_grid)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _fill(files: ResumableArrays, stage: Stage, before: np.ndarray | None, num_samples: int, seed: int) -> None:
    is_first, name = multi_host.is_first(), f"stage {stage.number + 1}"
    num_done, calls = files.num_done, stage.table.num_calls
    if num_done and is_first:
        print(f"{name}: {num_done} of {num_samples} results are there already")
    total = stage.num_batches(num_samples) * calls
    begun = time.monotonic()
    done = -(-num_done // stage.batch_of(num_samples)) * calls
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


def _about(stage: Stage, name: str, of_stage: dict[str, str], args: argparse.Namespace) -> str:
    """One line on a stage."""
    run, (height, width, _) = stage.run, stage.result_shape
    weights = weights_text(of_stage.get("weights", args.weights), args.ema_std)
    if "ema_std" in of_stage:
        weights = f"ema_std={of_stage['ema_std']}"
    calls, most = stage.table.num_calls, run.sampler_table.num_calls
    walked = f"{calls} network calls" if calls == most else f"{calls} of {most} network calls"
    level = f", augmentation level {stage.level}" if stage.number and run.image_task.max_level else ""
    guidance = run.sampler_settings["guidance_scale"]
    guided = f", guidance scale {guidance:g}" if guidance != 1 else ""
    return (
        f"stage {stage.number + 1}: {name}, {height}x{width}, step {run.step} ({weights} weights), {run.sampler_name} "
        f"with {walked}{guided}{level}"
    )


def _facts(stage: Stage, num_samples: int) -> dict[str, object]:
    """All that the results of a stage depend on, besides the seed and the stages before, as JSON."""
    run = stage.run
    return {
        "step": run.step,
        "weights": weights_digest(run.params),
        "process": run.facts,
        "sampler": {name: value for name, value in run.sampler_settings.items() if name not in _NO_INFLUENCE},
        "num_calls": stage.table.num_calls,
        "missing": None if stage.missing is None else list(stage.missing),
        "rounds": stage.rounds,
        "classes": list(stage.classes),
        "batch_size": stage.batch_of(num_samples),
        **stage.other_networks,
    }


def _write(cascade: Cascade, results: list[np.ndarray], seed: int, out: str, max_grid: int) -> None:
    images, labels = results[-1], cascade.labels(len(results[-1]))
    condition = {} if labels is None else {"label": labels}
    there = any(os.path.exists(out + ending) for ending in (".npz", ".png"))
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
