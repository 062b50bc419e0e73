"""The interface of one edit of one run, and the pass through a sampler that all of them are made of."""

import abc
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.diffusion.denoiser import DenoiseFn, ProjectFn
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.sampling_loop import EditFn
from ddpm_jax.editing.condition import Told
from ddpm_jax.experiment.edit import Edit
from ddpm_jax.experiment.generator import Generator
from ddpm_jax.experiment.run_programs import Arrays, RunPrograms
from ddpm_jax.experiment.trained_run import TrainedRun


@dataclass(frozen=True)
class Batch:
    """The inputs of the results of a batch.

    Attributes:
      images: uint8 [B, *input_shape].
      masks: bool [B, H, W, 1], True = known; all True where the edit takes no mask.
      targets: uint8 [B, *input_shape], for `interpolate`.
      images_of: the number of the image of each result, int32 [B].
      numbers: of the results, int32 [B], which their noise is drawn from.
    """

    images: np.ndarray
    masks: np.ndarray
    targets: np.ndarray
    images_of: np.ndarray
    numbers: np.ndarray


@dataclass(frozen=True)
class EditedRun:
    """A run with its sampler, what its network is told of results, and where they are drawn.

    Attributes:
      programs: what `Pass` keeps of the run.
    """

    run: TrainedRun
    told: Told
    mesh: Mesh
    programs: RunPrograms


class Pass:
    """Draws batches by one or more tables of a sampler, with arrays for each sample.

    Args:
      name: of the functions below: with the same name they are the same for all edits of the run.
      make, project, wrap, start: see `experiment.edit.Edit`.
      shown: names of the arrays that are entries of the network's condition.
      self_conditioning: see `TrainedRun.generator`.
    """

    def __init__(
        self,
        edited: EditedRun,
        table: SamplerTable,
        name: tuple,
        *,
        make: Callable[[Arrays], EditFn] | None = None,
        project: Callable[[Arrays], ProjectFn] | None = None,
        wrap: Callable[[Arrays, DenoiseFn], DenoiseFn] | None = None,
        start: Callable[[Arrays, jax.Array], jax.Array] | None = None,
        shown: tuple[str, ...] = (),
        self_conditioning: bool = True,
    ):
        run, mesh = edited.run, edited.mesh
        key = (name, self_conditioning, run.program_facts, table.c_shift is None, table.t.dtype)

        def make_generator(rows: Arrays) -> Generator:
            edit = Edit(lambda ids: rows, make, project, start, wrap)
            return run.generator(mesh, edit, table=table, self_conditioning=self_conditioning)

        generator, self._rows = edited.programs.generator(key, make_generator)
        told_of, *guidance = edited.told.functions(run, generator)
        rows = self._rows

        def condition_of(ids: np.ndarray) -> Arrays:
            return {**told_of(ids), **{entry: rows[entry] for entry in shown}}

        self._generator = generator.with_table(table).with_samples(condition_of, *guidance)
        self._params = edited.programs.params_on(mesh, run.params)
        self._is_first = True

    @property
    def num_calls(self) -> int:
        """Network calls of a sample."""
        return self._generator.num_rows

    def batch_of(self, num_samples: int) -> int:
        """The batch size for that many samples."""
        return self._generator.batch_of(num_samples)

    def with_table(self, table: SamplerTable) -> "Pass":
        """A pass through another table by the same programs."""
        other = object.__new__(Pass)
        other.__dict__.update(self.__dict__)
        other._generator = self._generator.with_table(table)
        return other

    def x_0(
        self, arrays: Arrays, numbers: np.ndarray, *, seed: int, num_used: int, on_chunk: Callable[[int], None]
    ) -> jax.Array:
        """The result for samples of these numbers, float32 [B, *D] on the devices."""
        self._rows.clear()
        self._rows.update(arrays)
        is_first, self._is_first = self._is_first, False
        return self._generator.draw_x_0(
            self._params, seed=seed, numbers=numbers, num_used=num_used, is_first=is_first, on_chunk=on_chunk
        )

    def images(self, x_0: jax.Array) -> np.ndarray:
        """uint8 [B, H, W, C]."""
        return self._generator.images_of(x_0)


class Task(abc.ABC):
    """One edit of one run with its settings.

    Attributes:
      input_shape: (H, W, C) of the images that it takes.
      result_shape: of those that it gives.
      num_calls: network calls for one result.
      sampler: what is said of the sampler at the start.
    """

    input_shape: tuple[int, int, int]
    result_shape: tuple[int, int, int]
    num_calls: int
    sampler: str

    @abc.abstractmethod
    def batch_of(self, num_samples: int) -> int:
        """The batch size for that many results."""

    @abc.abstractmethod
    def draw(self, batch: Batch, *, seed: int, num_used: int, on_chunk: Callable[[int], None]) -> np.ndarray:
        """The results of a batch, uint8 [B, *result_shape].

        Args:
          num_used: the first so many are wanted; the others fill the batch.
          on_chunk: called with numbers of network calls that are done.
        """
