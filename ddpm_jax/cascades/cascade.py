"""A cascade: a run that draws small images, and runs of super-resolution that enlarge them, stage after stage.

Ho et al. 2021, "Cascaded diffusion models for high fidelity image generation".
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from ddpm_jax.cascades.stage import Stage, first_stage, next_stage, stop_for, truncated
from ddpm_jax.diffusion.rng import check_seed
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.runtime import multi_host
from ddpm_jax.runtime.devices import make_mesh
from ddpm_jax.runtime.errors import UserError, arg, check_between, whole_number
from ddpm_jax.runtime.progress import ProgressBar

MOST_STAGES = 8


class Cascade:
    """The stages of a cascade, checked against each other.

    Args:
      runs: two or more.
      settings: of the sampler of each stage, of `SAMPLER_SETTINGS`, and its batch_size; an empty mapping for the run's
        own.
      truncate: the sampler before each stage with an augmentation level above 0 stops at the noise of that level
        (truncated conditioning augmentation); else it goes on to x_0, which gets new noise of that level.
      rounding: x_0 becomes uint8 between stages.
      batch_size: images per batch of every stage; None: that of each run.
      names: of the runs, for messages; None: their numbers alone.
      typed: (number of a stage, setting) -> how a person typed that setting; None: its name.

    Raises:
      UserError: stages that do not fit each other, or settings that do not fit a stage; the message names it.
    """

    def __init__(
        self,
        runs: Sequence[TrainedRun],
        *,
        settings: Sequence[Mapping[str, object]] | None = None,
        truncate: bool = False,
        rounding: bool = True,
        batch_size: int | None = None,
        names: Sequence[str] | None = None,
        typed: Callable[[int, str], str | None] = lambda number, setting: None,
    ):
        runs, settings = _checked_stages(runs, settings)
        for name, value in (("truncate", truncate), ("rounding", rounding)):
            if not isinstance(value, bool):
                raise UserError(f"{arg(name)} must be True or False; got {value!r:.60}")
        if truncate and not rounding:
            raise UserError(
                f"{arg('rounding')} has no effect with {arg('truncate')}, where no x_0 is exchanged: leave it out"
            )
        self._names = [f" ({name})" for name in names] if names is not None else [""] * len(runs)
        self._typed = typed
        stages: list[Stage] = []
        for number, (run, given) in enumerate(zip(runs, settings, strict=True)):
            given = dict(given)
            own_batch = given.pop("batch_size", batch_size)
            with self._stage_named(number):
                if number == 0:
                    stages.append(first_stage(run, given, make_mesh(), own_batch))
                else:
                    stages.append(next_stage(stages[-1], run, given, own_batch))
        if truncate and not any(stage.level for stage in stages):
            raise UserError(
                f"{arg('truncate')} needs an {arg('augmentation_level')} above 0, at which the stage before stops"
            )
        for number, (before, stage) in enumerate(itertools.pairwise(stages)):
            if truncate and stage.level:
                with self._stage_named(number):
                    stop = stop_for(before, stage)
                stages[number], stages[number + 1] = truncated(stages[number], stage, stop)
            elif not rounding:
                stages[number] = dataclasses.replace(stages[number], rounds=False)
        self.stages = tuple(stages)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of how the stages fit each other."""
        notes = []
        for before, stage in itertools.pairwise(self.stages):
            wanted = stage.run.image_task.factor * stage.run.area_factor
            if before.run.area_factor != wanted:
                notes.append(
                    f"stage {stage.number} was trained with data.area_factor={before.run.area_factor}, and {wanted} "
                    f"gives the small images of stage {stage.number + 1}: they were made small by another filter"
                )
        return tuple(notes)

    @contextmanager
    def _stage_named(self, number: int) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            error.rename(lambda setting: self._typed(number, setting))
            error.begin_with(f"stage {number + 1}{self._names[number]}: ")
            raise

    def labels(self, num_samples: int) -> np.ndarray | None:
        """The classes of samples 0, 1, ..., int32 [N]; None for samples without classes."""
        drawn = np.asarray(self.stages[0].classes.drawn, np.int32)
        return drawn[np.arange(num_samples) % len(drawn)] if len(drawn) else None


def _checked_stages(runs: object, settings: object) -> tuple[list[TrainedRun], list[Mapping[str, object]]]:
    runs = list(runs) if isinstance(runs, Sequence) else [runs]
    if not 2 <= len(runs) <= MOST_STAGES or not all(isinstance(run, TrainedRun) for run in runs):
        raise UserError(f"{arg('runs')} must be a list of 2 to {MOST_STAGES} runs, from dj.open_run; got {runs!r:.80}")
    settings = [{}] * len(runs) if settings is None else settings
    is_list = isinstance(settings, Sequence) and not isinstance(settings, str)
    if not is_list or not all(isinstance(one, Mapping) for one in settings) or len(settings) != len(runs):
        raise UserError(
            f"{arg('settings')} must be a list of {len(runs)} mappings, one for each stage; got {settings!r:.80}"
        )
    return runs, list(settings)


def sample_cascade(
    runs: Sequence[TrainedRun],
    num_samples: int = 64,
    *,
    seed: int = 0,
    settings: Sequence[Mapping[str, object]] | None = None,
    truncate: bool = False,
    rounding: bool = True,
    batch_size: int | None = None,
    progress: bool = True,
) -> list[np.ndarray]:
    """New images of a cascade, those of `python -m ddpm_jax.sample --cascade` with the same settings.

    Image n of each stage depends on the seed and n alone, whatever the batch size and the number of devices.

    Args:
      runs: the first draws small images, each other one was trained with condition.task=super_resolve for images of
        the size of the one before.
      settings: of each stage, by name, as `TrainedRun.sample` takes them: [{"num_sampler_steps": 50},
        {"augmentation_level": 100}].
      truncate, rounding, batch_size: see `Cascade`.
      progress: shows how far it is on stderr.

    Returns:
      The results of each stage, [num_samples, H, W, C]: uint8 images, or float32 x between stages if they exchange x_s
      (truncate) or x_0 that is not rounded. The last are always images.

    Raises:
      UserError: what does not fit, by argument and stage.

    Example:
      import ddpm_jax as dj

      base, large = dj.open_run("runs/7"), dj.open_run("runs/7to28")
      small, images = dj.sample_cascade([base, large], 16, settings=[{}, {"augmentation_level": 50}])
    """
    num_samples, seed = whole_number("num_samples", num_samples), whole_number("seed", seed)
    check_between("num_samples", num_samples, 1)
    check_seed("seed", seed)
    cascade = Cascade(runs, settings=settings, truncate=truncate, rounding=rounding, batch_size=batch_size)
    results: list[np.ndarray] = []
    for number, stage in enumerate(cascade.stages):
        before = results[-1] if results else None
        total = stage.num_batches(num_samples) * stage.table.num_calls
        with ProgressBar(total, f"stage {number + 1}", enabled=progress and multi_host.is_first()) as bar:
            results.append(np.concatenate(list(batches(stage, before, num_samples, seed, bar.update))))
    return results


def batches(
    stage: Stage, before: np.ndarray | None, num_samples: int, seed: int, on_chunk: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """The results of a stage, batch by batch."""
    for first in range(0, num_samples, stage.batch_of(num_samples)):
        yield stage.draw(before, seed=seed, first=first, num_samples=num_samples, on_chunk=on_chunk)
