"""Inpainting and outpainting: a part of the image is known, the rest is drawn."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.codecs.pixels import to_model_scale
from ddpm_jax.diffusion.denoiser import DenoiseFn
from ddpm_jax.diffusion.edits import (
    known_region,
    pixel_measurement,
    posterior_sampling,
    range_null_projection,
    repaint_table,
)
from ddpm_jax.diffusion.image_conditions import ImageTask
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.editing.settings import TRAINED
from ddpm_jax.editing.task import Arrays, Batch, EditedRun, Pass, Task
from ddpm_jax.experiment.image_condition import KNOWN, SHOWN, entries_of


class Inpaint(Task):
    """Draws the hole of each image; the known pixels of the results are those of the image."""

    def __init__(self, edited: EditedRun, settings: dict[str, object]):
        run = edited.run
        self.input_shape = self.result_shape = run.image_shape
        table, method = run.sampler_table, settings["method"]
        if method == "repaint":
            table = repaint_table(
                table,
                run.process,
                jump_length=settings["jump_length"],
                num_resamplings=settings["num_resamplings"],
            )
        self._pass, self._settings, self._task = known_pass(edited, table, method), settings, run.image_task
        self.num_calls = table.num_calls
        self.sampler = f"{run.sampler_name}, {method}"

    def batch_of(self, num_samples: int) -> int:
        return self._pass.batch_of(num_samples)

    def draw(self, batch: Batch, **given) -> np.ndarray:
        return self._filled(batch.images, batch.masks, batch.numbers, **given)

    def _filled(self, images: np.ndarray, masks: np.ndarray, numbers: np.ndarray, **given) -> np.ndarray:
        arrays = {"x_0": scaled(images), "mask": masks, **rates(self._settings, len(images))}
        if self._settings["method"] == TRAINED:
            arrays |= shown_arrays(self._task, arrays["x_0"], masks)
        drawn = self._pass.x_0(arrays, numbers, **given)
        return np.where(masks, images, self._pass.images(drawn))


class Outpaint(Inpaint):
    """Continues each image beyond one side by half its size, which is drawn next to the known half on that side."""

    def __init__(self, edited: EditedRun, settings: dict[str, object]):
        super().__init__(edited, settings)
        self._axis = 1 if settings["side"] in ("left", "right") else 0
        self._after = settings["side"] in ("right", "bottom")
        sizes = list(self.input_shape)
        self._new = sizes[self._axis] // 2
        sizes[self._axis] += self._new
        self.result_shape = tuple(sizes)

    def draw(self, batch: Batch, **given) -> np.ndarray:
        images = batch.images
        axis, new = self._axis + 1, self._new
        size = images.shape[axis]
        part = lambda array, start, stop: array[(slice(None),) * axis + (slice(start, stop),)]  # noqa: E731
        unknown = np.zeros_like(part(images, 0, new))
        known = np.ones((*images.shape[:-1], 1), bool)
        if self._after:
            shown = np.concatenate([part(images, new, size), unknown], axis)
            part(known, size - new, size)[...] = False
            drawn = self._filled(shown, known, batch.numbers, **given)
            return np.concatenate([images, part(drawn, size - new, size)], axis)
        shown = np.concatenate([unknown, part(images, 0, size - new)], axis)
        part(known, 0, new)[...] = False
        drawn = self._filled(shown, known, batch.numbers, **given)
        return np.concatenate([part(drawn, 0, new), images], axis)


def known_pass(edited: EditedRun, table: SamplerTable, method: str, **given: Callable) -> Pass:
    """A pass with arrays "x_0", of which the part in "mask" is known, those of `rates`, and what a network that was
    trained for it is shown."""

    def replaced(arrays: Arrays):
        return known_region(edited.run.process, arrays["x_0"], arrays["mask"])

    def projected(arrays: Arrays):
        pixels = pixel_measurement(arrays["mask"])
        return range_null_projection(pixels, pixels.measure(arrays["x_0"]))

    def fitted(arrays: Arrays, denoise_fn: DenoiseFn) -> DenoiseFn:
        pixels = pixel_measurement(arrays["mask"])
        return posterior_sampling(denoise_fn, pixels.measure, pixels.measure(arrays["x_0"]), zeta=arrays["zeta"])

    if method == "dps":
        return Pass(edited, table, ("known", "dps"), wrap=fitted, **given)
    if method == TRAINED:
        return Pass(edited, table, ("known", TRAINED), project=projected, shown=(SHOWN, KNOWN), **given)
    if method == "ddnm":
        return Pass(edited, table, ("known", "ddnm"), project=projected, **given)
    return Pass(edited, table, ("known", *given), make=replaced, **given)


def rates(settings: dict[str, object], num: int) -> Arrays:
    """The zeta of DPS for each of `num` samples; no array for other methods."""
    return {"zeta": np.full(num, settings["zeta"], np.float32)} if "zeta" in settings else {}


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


def scaled(images: np.ndarray) -> np.ndarray:
    """uint8 images on the scale of the model, float32."""
    return np.asarray(to_model_scale(jnp.asarray(images)))
