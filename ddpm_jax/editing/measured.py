"""Colourisation and super-resolution: a linear measurement of the image is known, such as its grey values."""

import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.denoiser import DenoiseFn
from ddpm_jax.diffusion.edits import (
    Measurement,
    average_measurement,
    block_average,
    channel_measurement,
    ilvr,
    posterior_sampling,
    range_null_projection,
)
from ddpm_jax.diffusion.image_conditions.levels import LUMA
from ddpm_jax.editing.known_part import rates, scaled
from ddpm_jax.editing.task import Arrays, Batch, EditedRun, Pass, Task
from ddpm_jax.runtime.errors import UserError, arg


class _Measured(Task):
    def __init__(self, edited: EditedRun, settings: dict[str, object], measurement: Measurement):
        run, self._settings = edited.run, settings
        self.result_shape = run.image_shape
        table, process = run.sampler_table, run.process
        name = (type(self).__name__, settings["method"], settings.get("factor"))

        def project(arrays: Arrays):
            return range_null_projection(measurement, arrays["y"])

        def project_x_0(arrays: Arrays):
            """Of samplers whose last row does not return x_0_hat, the result is projected, too."""
            project_fn = project(arrays)
            return lambda x_s, denoised, row, keys: jnp.where(row.s < 0, project_fn(x_s, row.t), x_s)

        def coarse(arrays: Arrays):
            reference = measurement.pseudo_inverse(arrays["y"])
            return ilvr(process, reference, block_average(settings["factor"]))

        def fitted(arrays: Arrays, denoise_fn: DenoiseFn) -> DenoiseFn:
            return posterior_sampling(denoise_fn, measurement.measure, arrays["y"], zeta=arrays["zeta"])

        if settings["method"] == "dps":
            self._pass = Pass(edited, table, name, wrap=fitted)
        elif settings["method"] == "ilvr":
            self._pass = Pass(edited, table, name, make=coarse)
        else:
            self._pass = Pass(edited, table, name, make=project_x_0, project=project)
        self.num_calls = table.num_calls
        self.sampler = f"{run.sampler_name}, {settings['method']}"

    def batch_of(self, num_samples: int) -> int:
        return self._pass.batch_of(num_samples)

    def draw(self, batch: Batch, **given) -> np.ndarray:
        arrays = {"y": scaled(batch.images), **rates(self._settings, len(batch.images))}
        return self._pass.images(self._pass.x_0(arrays, batch.numbers, **given))


class Colourise(_Measured):
    """Colours for grey images. The luma of each result is the grey value, up to rounding and the range 0..255, and near
    it by DPS."""

    def __init__(self, edited: EditedRun, settings: dict[str, object]):
        *sizes, channels = edited.run.image_shape
        if channels != 3:
            raise UserError(
                f"{arg('what=colourise')} needs a network for colour images; the images of this run have {channels} "
                f"channel{'s' * (channels != 1)}"
            )
        super().__init__(edited, settings, channel_measurement(np.array([LUMA])))
        self.input_shape = (*sizes, 1)


class SuperResolve(_Measured):
    """Large images whose means over blocks of `factor` x `factor` pixels are the small image; by DPS near it."""

    def __init__(self, edited: EditedRun, settings: dict[str, object]):
        height, width, channels = edited.run.image_shape
        factor = settings["factor"]
        if height % factor or width % factor:
            raise UserError(
                f"{arg('factor')} must divide the size of the run's images, {height} x {width}; got {factor}"
            )
        super().__init__(edited, settings, average_measurement(factor))
        self.input_shape = (height // factor, width // factor, channels)
