"""Edits by a network that was trained for them: each call is shown the image, as in its training (`condition.task`)."""

import numpy as np

from ddpm_jax.editing.known_part import scaled, shown_arrays
from ddpm_jax.editing.task import Batch, EditedRun, Pass, Task
from ddpm_jax.experiment.image_condition import LEVEL, SHOWN
from ddpm_jax.experiment.shown_images import shown_at_level


class Restore(Task):
    """Images from their grey copies, from blurred or small ones or from JPEG files, whichever the network was trained
    for. Noise of `sample.augmentation_level` is added to small ones."""

    def __init__(self, edited: EditedRun, settings: dict[str, object]):
        del settings
        run = edited.run
        self._task, table = run.image_task, run.sampler_table
        self.result_shape, (*sizes, channels) = run.image_shape, run.image_shape
        self.input_shape = (*(size // self._task.factor for size in sizes), self._task.num_channels(channels))
        level = run.sampler_settings["augmentation_level"]
        self._level = level if self._task.max_level else None
        shown = (SHOWN,) if self._level is None else (SHOWN, LEVEL)
        self._pass = Pass(edited, table, ("shown",), shown=shown)
        self.num_calls = table.num_calls
        self.sampler = f"{run.sampler_name}, by a network trained to {self._task.name}"

    def batch_of(self, num_samples: int) -> int:
        return self._pass.batch_of(num_samples)

    def draw(self, batch: Batch, **given) -> np.ndarray:
        images = scaled(batch.images)
        if self._level is None:
            arrays = shown_arrays(self._task, images)
        else:
            arrays = shown_at_level(self._task, images, self._level, given["seed"], batch.numbers)
        return self._pass.images(self._pass.x_0(arrays, batch.numbers, **given))
