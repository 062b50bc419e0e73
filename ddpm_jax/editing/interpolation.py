"""Images between two images, or between two noises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.rng import sample_keys, seed_keys
from ddpm_jax.diffusion.samplers import ddim_table, initial_noise
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.editing.latents import Latents, num_steps_of
from ddpm_jax.editing.restarted import encoded, noise_levels, start_at, started
from ddpm_jax.editing.task import Batch, EditedRun, Pass, Task


class Interpolate(Task):
    """Result k of K is at the share k / (K - 1) of the way from the image to its target; a single one is half-way.

    By method "ddim" the DDIM latents of both are mixed on the sphere, by "noised" (Ho et al. 2020, section 4.3) x_t of
    both on the line, at the step of `strength`, and by "noise" two noises on the sphere, without images.
    Differs from Ho et al.: "noised" adds the same noise to both, so that the mixture has the noise level of its step.
    """

    def __init__(self, edited: EditedRun, settings: dict[str, object]):
        run = edited.run
        self.input_shape = self.result_shape = run.image_shape
        self._num_results, self._method = edited.told.num_results, settings["method"]
        self._codec, self._x_0_shape = run.codec, run.codec.x_0_shape(run.image_shape)
        if self._method == "ddim":
            self._latents = Latents(edited, settings)
            self._batch_of = self._latents.batch_of
            self.num_calls = 2 * self._latents.num_calls_there + self._latents.num_calls_back
            self.sampler = "ddim inversion"
            return
        if self._method == "noise":
            schedule = run.process.schedule
            table = ddim_table(schedule, steps=spaced_steps(schedule.num_steps, num_steps_of(run)))
            self.sampler = "ddim"
        else:
            table = run.last_steps(settings["strength"])
            self._levels = noise_levels(run, table)
            self.sampler = f"{run.sampler_name}, strength {settings['strength']:g}"
        self._pass = Pass(edited, table, ("started",), start=started)
        self._batch_of, self.num_calls = self._pass.batch_of, table.num_calls

    def batch_of(self, num_samples: int) -> int:
        return self._batch_of(num_samples)

    def draw(self, batch: Batch, **given) -> np.ndarray:
        place = batch.numbers % self._num_results
        share = place / (self._num_results - 1) if self._num_results > 1 else np.full(len(place), 0.5)
        share = share.reshape((-1,) + (1,) * len(self._x_0_shape)).astype(np.float32)
        # All results of an image have its number, and so the same noise: only the share differs.
        numbers = batch.images_of
        if self._method == "ddim":
            ends = [self._latents.invert(images, numbers, **given) for images in (batch.images, batch.targets)]
            return self._latents.draw(on_sphere(*ends, share), 1.0, 0.0, numbers, **given)
        if self._method == "noise":
            ends = [self._noise(given["seed"], 2 * numbers + end) for end in (0, 1)]
            start = start_at(on_sphere(*ends, share), 1.0, 0.0)
        else:
            images, targets = (
                encoded(self._codec, images, numbers, given["seed"]) for images in (batch.images, batch.targets)
            )
            between = (1 - share) * images + share * targets
            start = start_at(between, *self._levels)
        return self._pass.images(self._pass.x_0(start, numbers, **given))

    def _noise(self, seed: int, numbers: np.ndarray) -> np.ndarray:
        """x_T of samples of these numbers, as `sample` draws them."""
        return np.asarray(_initial_noise(seed_keys(seed).sample, jnp.asarray(numbers), self._x_0_shape))


@functools.partial(jax.jit, static_argnums=2)
def _initial_noise(key: jax.Array, numbers: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return initial_noise(sample_keys(key, numbers), shape)


def on_sphere(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(sin((1 - share) w) a + sin(share w) b) / sin w, with the angle w between a and b, float32 [B, *D].

    On the line where the angle is below 1e-4, because there the two are the same.

    Args:
      share: in [0, 1], broadcasts to [B, *D].
    """
    axes = tuple(range(1, a.ndim))
    a, b, share = (np.asarray(array, np.float64) for array in (a, b, share))
    norm = lambda x: np.sqrt(np.sum(x * x, axis=axes, keepdims=True))  # noqa: E731
    lengths = norm(a) * norm(b)
    cosine = np.sum(a * b, axis=axes, keepdims=True) / np.where(lengths > 0, lengths, 1.0)
    angle = np.arccos(np.clip(cosine, -1, 1))
    tiny = angle < 1e-4
    sine = np.where(tiny, 1.0, np.sin(angle))
    of_a = np.where(tiny, 1 - share, np.sin((1 - share) * angle) / sine)
    of_b = np.where(tiny, share, np.sin(share * angle) / sine)
    return (of_a * a + of_b * b).astype(np.float32)
