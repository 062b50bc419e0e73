"""Opens the stages of a cascade from the flags of the command."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass

from ddpm_jax.cascades.cascade import MOST_STAGES, Cascade
from ddpm_jax.cascades.flags import OF_CHECKPOINT
from ddpm_jax.experiment.open_run import open_run, weights_text
from ddpm_jax.experiment.packaged_runs import output_folder
from ddpm_jax.experiment.sampler_flags import given_sampler_flags
from ddpm_jax.experiment.sampler_settings import SAMPLER_SETTINGS
from ddpm_jax.experiment.trained_run import SAMPLE_FIELDS, TrainedRun
from ddpm_jax.runtime.errors import UserError, arguments_named, real_number, whole_number


@dataclass(frozen=True)
class OpenedCascade:
    """A cascade with what is said of it.

    Attributes:
      names: of the folders of the stages.
      weights: which weights of each run are used, in words.
    """

    cascade: Cascade
    names: tuple[str, ...]
    weights: tuple[str, ...]

    def default_out(self, seed: int) -> str:
        """Where results go without --out: beside the samples of the last stage, with what a person would vary."""
        stages = self.cascade.stages
        steps = "_".join(str(stage.run.step) for stage in stages)
        levels = "_".join(str(stage.level) for stage in stages[1:])
        kind = "truncated_" if any(stage.stop for stage in stages) else ""
        name = f"cascade_step_{steps}_{kind}level_{levels}_seed_{seed}"
        return os.path.join(output_folder(self.names[-1]), "samples", name)


def folders_of(text: str) -> list[str]:
    """The folders of --cascade=DIR,DIR.

    Raises:
      UserError: fewer than two, or too many.
    """
    names = [name.strip() for name in text.split(",")]
    if not 2 <= len(names) <= MOST_STAGES or "" in names:
        raise UserError(
            f"--cascade must be 2 to {MOST_STAGES} folders of runs, DIR,DIR, the first draws small images; got {text!r}"
        )
    return names


def open_cascade(args: argparse.Namespace) -> OpenedCascade:
    """The cascade of the flags.

    Raises:
      UserError: flags that do not fit a cascade, or stages that do not fit each other.
    """
    names = folders_of(args.cascade)
    if args.stages and max(args.stages) > len(names):
        raise UserError(f"--stage{max(args.stages)} is of a cascade of more stages; --cascade has {len(names)}")
    if args.step is not None:
        raise UserError("--step is a checkpoint of one run: give --stage1.step=N, --stage2.step=N")
    given, runs, weights, settings = given_sampler_flags(args), [], [], []
    for number, name in enumerate(names, 1):
        of_stage = args.stages.get(number, {})
        try:
            run, text = _open(name, number, args, of_stage)
        except UserError as error:
            error.mark({f"sample.{setting}": setting for setting in of_stage} | {"--workdir": "workdir"})
            error.rename(lambda flag: _typed(flag, number, of_stage) or {"workdir": "--cascade"}.get(flag))  # noqa: B023
            error.begin_with(f"stage {number} ({name}): ")
            raise
        runs.append(run)
        weights.append(text)
        of_all = {setting: value for setting, value in given.items() if _is_of(setting, number)}
        own = {key: value for key, value in of_stage.items() if key in SAMPLER_SETTINGS}
        if "batch_size" in of_stage:
            own["batch_size"] = run.sample_batch_size  # which `_open` has set
        settings.append(of_all | own)
    with arguments_named({"rounding": "--norounding"}.get):
        cascade = Cascade(
            runs,
            settings=settings,
            truncate=args.truncate,
            rounding=not args.norounding,
            batch_size=args.batch_size,
            names=names,
            typed=lambda number, setting: _typed(setting, number + 1, args.stages.get(number + 1, {})),
        )
    return OpenedCascade(cascade, tuple(names), tuple(weights))


def _typed(setting: str, number: int, of_stage: dict[str, str]) -> str | None:
    """How a setting of a stage was typed, if it was for this stage alone."""
    return f"--stage{number}.{setting}" if setting.partition("=")[0] in of_stage else None


def _is_of(setting: str, number: int) -> bool:
    """Whether a setting that is given for all stages is one of this stage: only the later ones are shown images, and
    take their classes from the first."""
    return {"augmentation_level": number > 1, "classes": number == 1}.get(setting, True)


def _open(name: str, number: int, args: argparse.Namespace, of_stage: dict[str, str]) -> tuple[TrainedRun, str]:
    """The run of a stage, with the fields of `sample` that are no settings of the sampler; and its weights in words."""
    own = {key: value for key, value in of_stage.items() if key in OF_CHECKPOINT}
    which = {"weights": args.weights, "ema_std": args.ema_std}
    if {"weights", "ema_std"} & own.keys():
        which = {"weights": own.get("weights", "ema"), "ema_std": _number(own, "ema_std", float, real_number)}
    checkpoint = {"best": args.best}
    if {"step", "best"} & own.keys():
        best = own.get("best", "false").lower()
        if best not in ("true", "false"):
            raise UserError(f"--stage{number}.best must be true or false; got {own['best']!r}")
        checkpoint = {"best": best == "true", "step": _number(own, "step", int, whole_number)}
    run = open_run(name, **which, **checkpoint)
    others = [f"sample.{key}={value}" for key, value in of_stage.items() if key not in (*SAMPLER_SETTINGS, *own)]
    overrides = [one for one in args.overrides if one.partition("=")[0].removeprefix("sample.") not in SAMPLER_SETTINGS]
    return run.with_fields([*overrides, *others], SAMPLE_FIELDS), weights_text(which["weights"], which["ema_std"])


def _number(given: dict[str, str], name: str, kind: type, checked: Callable[[str, object], object]) -> object:
    """A number that was typed; None if it was not."""
    if name not in given:
        return None
    try:
        return kind(given[name])
    except ValueError:
        return checked(name, given[name])  # which says what is wrong
