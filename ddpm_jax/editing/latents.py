"""Variations of an image: its DDIM latent is mixed with noise and drawn again."""

import math

import numpy as np

from ddpm_jax.diffusion.samplers import ddim_inversion_table, ddim_table
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.editing.restarted import encoded, start_at, started
from ddpm_jax.editing.task import Batch, EditedRun, Pass, Task
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.runtime.errors import UserError, arg

DEFAULT_STEPS = 50
_LEAST_SIGNAL = 0.01  # sqrt(alpha-bar) of the noisiest step: beyond it too little of the image is left to come back


def num_steps_of(run: TrainedRun) -> int:
    """The DDIM steps of an edit: `sample.num_sampler_steps`; where that is 0, DEFAULT_STEPS, or T if that is less.

    Raises:
      UserError: more than T.
    """
    wanted, most = run.sampler_settings["num_sampler_steps"], run.process.schedule.num_steps
    if wanted > most:
        raise UserError(f"{arg('num_sampler_steps')} must be in 1..{most} (T); got {wanted}")
    return wanted or min(DEFAULT_STEPS, most)


class Latents:
    """DDIM from images to latents, and back. x_0_hat is not limited, or the way back would be another one."""

    def __init__(self, edited: EditedRun, settings: dict[str, object]):
        schedule, self._codec = edited.run.process.schedule, edited.run.codec
        visible = int(np.sum(schedule.host_alphas_bar >= _LEAST_SIGNAL**2))
        steps = spaced_steps(visible, min(num_steps_of(edited.run), visible))
        inversion = ddim_inversion_table(schedule, steps=steps, num_fixed_point=settings["num_fixed_point"])
        table = ddim_table(schedule, steps=steps)
        self._back = Pass(edited, table, ("latents",), start=started, self_conditioning=False)
        self._there = self._back.with_table(inversion)
        self.num_calls_there, self.num_calls_back = self._there.num_calls, self._back.num_calls
        self.batch_of = self._back.batch_of

    def invert(self, images: np.ndarray, numbers: np.ndarray, **given) -> np.ndarray:
        """The latents of images, float32 [B, *D]."""
        x_0 = encoded(self._codec, images, numbers, given["seed"])
        return np.asarray(self._there.x_0(start_at(x_0, 1.0, 0.0), numbers, **given))

    def draw(self, latents: np.ndarray, keep: float, add: float, numbers: np.ndarray, **given) -> np.ndarray:
        """The images of keep * latents + add * noise."""
        return self._back.images(self._back.x_0(start_at(latents, keep, add), numbers, **given))


class Variation(Task):
    """cos(a) z + sin(a) noise in place of the latent z of the image, a = strength * 90 degrees.

    Strength 0 gives the image up to the error of the inversion; 1 has nothing of the image.
    """

    def __init__(self, edited: EditedRun, settings: dict[str, object]):
        run = edited.run
        self.input_shape = self.result_shape = run.image_shape
        self._latents = Latents(edited, settings)
        self._angle = settings["strength"] * math.pi / 2
        self.num_calls = self._latents.num_calls_there + self._latents.num_calls_back
        self.sampler = f"ddim inversion, strength {settings['strength']:g}"

    def batch_of(self, num_samples: int) -> int:
        return self._latents.batch_of(num_samples)

    def draw(self, batch: Batch, **given) -> np.ndarray:
        latents = self._latents.invert(batch.images, batch.numbers, **given)
        return self._latents.draw(latents, math.cos(self._angle), math.sin(self._angle), batch.numbers, **given)
