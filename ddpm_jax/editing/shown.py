"""Edits by a network that was trained for them: each call is shown the image, as in its training (`condition.task`)."""

import numpy as np

from ddpm_jax.editing.known_part import scaled, shown_arrays
from ddpm_jax.editing.task import Batch, EditedRun, Pass, Task
from ddpm_jax.experiment.image_condition import SHOWN


class Restore(Task):
    """Images from their grey copies, from blurred ones or from JPEG files, whichever the network was trained for."""

    def __init__(self, edited: EditedRun, settings: dict[str, object]):
        del settings
        run = edited.run
        self._task, table = run.image_task, run.sampler_table
        self.result_shape = run.image_shape
        self.input_shape = (*run.image_shape[:-1], self._task.num_channels(run.image_shape[-1]))
        self._pass = Pass(edited, table, ("shown",), shown=(SHOWN,))
        self.num_calls = table.num_calls
        self.sampler = f"{run.sampler_name}, by a network trained to {self._task.name}"

    def batch_of(self, num_samples: int) -> int:
        return self._pass.batch_of(num_samples)

    def draw(self, batch: Batch, **given) -> np.ndarray:
        arrays = shown_arrays(self._task, scaled(batch.images))
        return self._pass.images(self._pass.x_0(arrays, batch.numbers, **given))
