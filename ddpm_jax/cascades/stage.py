"""A stage of a cascade: a run with its sampler, and whether it fits the stage before."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.codecs.pixels import to_model_scale
from ddpm_jax.diffusion.image_conditions import ImageTask
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.truncation import Stop, stop_at
from ddpm_jax.experiment.generator import Generator
from ddpm_jax.experiment.run_programs import RunPrograms
from ddpm_jax.experiment.sampler_settings import settings_named
from ddpm_jax.experiment.shown_images import Rows, shown_as_given, shown_at_level, shown_with_missing_noise
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.runtime.devices import replicated
from ddpm_jax.runtime.errors import UserError, arg
from ddpm_jax.workdir.class_names import numbered

_TASK = "super_resolve"


class Classes(NamedTuple):
    """The classes of the samples of a cascade, which are the same in all stages.

    Attributes:
      drawn: of the samples, in turn; () for none.
      num: how many there are; 0 for none.
      names: of the classes 0, 1, ...; () for none.
    """

    drawn: tuple[int, ...] = ()
    num: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
      number: 0 for the first, which draws small images; each other one enlarges those of the one before.
      run: with the sampler and the batch size of the stage.
      programs: what the run keeps compiled.
      mesh: the batch is spread over its devices.
      classes: of its samples, as in the stages before.
      stop: where its sampler stops for the next stage; None: it goes on to x_0.
      rounds: whether x_0 becomes uint8, as in image files; else it is limited to [-1, 1].
      missing: (keep, add) of the noise that the x of the stage before lacks; None: that stage gave x_0.
    """

    number: int
    run: TrainedRun
    programs: RunPrograms = field(repr=False)
    mesh: Mesh = field(repr=False)
    classes: Classes = Classes()
    stop: Stop | None = None
    rounds: bool = True
    missing: tuple[float, float] | None = None

    @functools.cached_property
    def table(self) -> SamplerTable:
        """Of its sampler, until it stops."""
        table = self.run.sampler_table
        return table if self.stop is None else table.rows(0, self.stop.num_rows)

    @property
    def level(self) -> int:
        """The augmentation level of what the network is shown; 0: none."""
        return self.run.sampler_settings["augmentation_level"]

    @property
    def result_shape(self) -> tuple[int, ...]:
        """(H, W, C)."""
        return self.run.image_shape

    @property
    def result_dtype(self) -> type:
        """uint8 for images, float32 for x."""
        return np.uint8 if self.rounds and self.stop is None else np.float32

    @functools.cached_property
    def _task(self) -> ImageTask | None:
        return self.run.image_task

    @functools.cached_property
    def _generator(self) -> Generator:
        run, table = self.run, self.run.sampler_table
        key = ("stage", run.program_facts, table.c_shift is None, table.t.dtype)
        kept = self.programs.generator(key, lambda rows: run.generator(self.mesh)).generator
        told_of = run.condition_of if self.number == 0 else run.given_condition_of
        return kept.with_table(self.table).with_samples(told_of, run.guidance_on(self.mesh), kept.classifier_of)

    def _showing(self, shown: Rows) -> Generator:
        """The generator of a batch that is shown these rows."""
        told = self._generator
        return told.with_samples(lambda ids: {**told.condition_of(ids), **shown}, told.guidance_of, told.classifier_of)

    def shown(self, before: np.ndarray, seed: int, numbers: np.ndarray) -> Rows:
        """What the network is shown of results of the stage before, for the samples of these numbers."""
        task, x = self._task, before
        if x.dtype == np.uint8:
            x = np.asarray(to_model_scale(x))
        if self.missing is not None:
            return shown_with_missing_noise(task, x, self.missing, self.level, seed, numbers, stage=self.number)
        if task.max_level:
            return shown_at_level(task, x, self.level, seed, numbers, stage=self.number)
        return shown_as_given(task, x)

    def draw(
        self,
        before: np.ndarray | None,
        *,
        seed: int,
        first: int,
        num_samples: int,
        on_chunk: Callable[[int], None],
    ) -> np.ndarray:
        """The batch of results that begins with sample `first`, [B, H, W, C]; B is less in the last one.

        Args:
          before: all results of the stage before, [num_samples, h, w, C]; None for the first stage.
          on_chunk: called with numbers of network calls that are done.
        """
        numbers = np.arange(first, first + self.batch_of(num_samples), dtype=np.int32)
        generator, num_used = self._generator, min(num_samples - first, len(numbers))
        if before is not None:
            generator = self._showing(self.shown(before[numbers % num_samples], seed, numbers))
        x = generator.draw_x_0(
            self.programs.params_on(self.mesh, self.run.params),
            seed=seed,
            numbers=numbers,
            num_used=num_used,
            stage=self.number,
            is_first=not first,
            on_chunk=on_chunk,
        )
        if self.result_dtype == np.uint8:
            return generator.images_of(x)[:num_used]
        x = np.asarray(jax.device_put(x, replicated(self.mesh)))[:num_used]
        return x if self.stop is not None else np.clip(x, -1, 1)

    def batch_of(self, num_samples: int) -> int:
        """The batch size for that many samples."""
        return self._generator.batch_of(num_samples)

    def num_batches(self, num_samples: int) -> int:
        """The number of its batches for that many samples."""
        return self._generator.num_batches(num_samples)

    @property
    def other_networks(self) -> dict[str, object]:
        """What a report says of the networks that guide its samples, by setting."""
        return self._generator.other_networks


def first_stage(run: TrainedRun, settings: Mapping[str, object], mesh: Mesh, batch_size: int | None) -> Stage:
    """The stage that draws small images.

    Raises:
      UserError: a run that cannot be one.
    """
    _check_pixels(run)
    if run.image_task is not None:
        raise UserError(
            f"the first stage of a cascade must draw images from nothing; this run has condition.task="
            f"{run.image_task.name!r}: begin with a run without a task, or enlarge images by python -m ddpm_jax.edit"
        )
    with _named(settings, batch_size):
        with_sampler = run.with_sampler(settings, batch_size=batch_size, num_devices=mesh.size)
        return _checked(Stage(0, with_sampler, run.programs, mesh, _classes_of(with_sampler)))


def next_stage(before: Stage, run: TrainedRun, settings: Mapping[str, object], batch_size: int | None) -> Stage:
    """The stage that enlarges the results of another one.

    Raises:
      UserError: a run that cannot be one, or that does not fit the one before.
    """
    _check_pixels(run)
    task, mesh = run.image_task, before.mesh
    if task is None or task.name != _TASK:
        got = "no task" if task is None else f"condition.task={task.name!r}"
        raise UserError(f"each stage after the first must be a run of condition.task={_TASK!r}; this one has {got}")
    height, width, channels = run.image_shape
    wanted = (height // task.factor, width // task.factor, channels)
    if before.result_shape != wanted:
        raise UserError(
            f"it enlarges images of shape {list(wanted)}, by condition.factor={task.factor}; the stage before draws "
            f"{list(before.result_shape)}"
        )
    if "classes" in settings:
        raise UserError(f"{arg('classes')} are those of the first stage, for all stages: leave them out here")
    with _named(settings, batch_size):
        with_sampler = run.with_sampler(settings, batch_size=batch_size, num_devices=mesh.size)
        of_run = _classes_of(with_sampler)
        if of_run.num:
            _check_same_classes(before.classes, of_run)
            given = {**settings, "classes": before.classes.drawn}
            with_sampler = run.with_sampler(given, batch_size=batch_size, num_devices=mesh.size)
        return _checked(Stage(before.number + 1, with_sampler, run.programs, mesh, before.classes))


def _check_pixels(run: TrainedRun) -> None:
    run.check_images("cascades are of images")
    run.check_pixels("the stages of a cascade exchange pixels")


def _named(settings: Mapping[str, object], batch_size: int | None) -> AbstractContextManager[None]:
    return settings_named([*settings, *(["batch_size"] if batch_size is not None else [])])


def _checked(stage: Stage) -> Stage:
    stage.batch_of(1)  # reads the networks that guide, and checks all settings
    return stage


def _classes_of(run: TrainedRun) -> Classes:
    """Those that the network is told, or that a classifier guides to."""
    return Classes(run.drawn_classes, run.num_classes, run.names_of_classes()) if run.num_classes else Classes()


def _check_same_classes(before: Classes, own: Classes) -> None:
    if not before.num:
        raise UserError("it is told the class of an image, and the stages before draw images without classes")
    if before.num != own.num:
        raise UserError(f"it has {own.num} classes, and the stages before have {before.num}")
    if before.names and own.names and before.names != own.names:
        raise UserError(f"it has the classes {numbered(own.names)}; the stages before have {numbered(before.names)}")


def stop_for(before: Stage, stage: Stage) -> Stop:
    """Where the sampler of a stage stops for the level of the next one.

    Raises:
      UserError: it has no step there.
    """
    return stop_at(before.run.sampler_table, before.run.process, stage.run.image_task.alphas_bar[stage.level])


def truncated(before: Stage, stage: Stage, stop: Stop) -> tuple[Stage, Stage]:
    """Both stages, where the sampler of the first stops, and the second adds the missing noise."""
    return dataclasses.replace(before, stop=stop), dataclasses.replace(stage, missing=(stop.keep, stop.add))
