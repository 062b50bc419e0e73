"""Edits by a network that was trained for them: each call is shown the image, as in its training (`condition.task`)."""

import jax
import numpy as np

from ddpm_jax.diffusion.image_conditions import ImageTask
from ddpm_jax.editing.known_part import scaled
from ddpm_jax.editing.task import Arrays, Batch, EditedRun, Pass, Task
from ddpm_jax.experiment.image_condition import entries_of


class Restore(Task):
    """Images from their grey copies, from blurred ones or from JPEG files, whichever the network was trained for."""

    def __init__(self, edited: EditedRun, settings: dict[str, object]):
        del settings
        run = edited.run
        self._task, table = run.image_task, run.sampler_table
        self.result_shape = run.image_shape
        self.input_shape = (*run.image_shape[:-1], self._task.num_channels(run.image_shape[-1]))
        self._pass = Pass(edited, table, ("shown",), shown=("shown",))
        self.num_calls = table.num_calls
        self.sampler = f"{run.sampler_name}, by a network trained to {self._task.name}"

    def batch_of(self, num_samples: int) -> int:
        return self._pass.batch_of(num_samples)

    def draw(self, batch: Batch, **given) -> np.ndarray:
        arrays = shown_arrays(self._task, scaled(batch.images))
        return self._pass.images(self._pass.x_0(arrays, batch.numbers, **given))


def shown_arrays(task: ImageTask, x_0: np.ndarray, known: np.ndarray | None = None) -> Arrays:
    """What the network is shown of images, by entry of its condition.

    Args:
      x_0: [B, H, W, K], K as the task has it.
      known: of a task with a hole, bool [B, H, W, 1].
    """
    if known is None:
        entries = jax.vmap(lambda x_0: entries_of(task.of_given(x_0, None)))(x_0)
    else:
        entries = jax.vmap(lambda x_0, known: entries_of(task.of_given(x_0, known)))(x_0, known)
    return {name: np.asarray(rows) for name, rows in entries.items()}
