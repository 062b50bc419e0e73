"""SDEdit: an image is noised up to a middle step and drawn again from there."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.codecs.codec import Codec
from ddpm_jax.codecs.pixels import PixelCodec
from ddpm_jax.diffusion.rng import encoding_keys, sample_keys, seed_keys
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.editing.known_part import known_pass, scaled
from ddpm_jax.editing.task import Arrays, Batch, EditedRun, Pass, Task
from ddpm_jax.experiment.trained_run import TrainedRun


class SDEdit(Task):
    """Meng et al. 2022: draws by the last steps of the sampler, from the noised image; where the mask is 1 the result
    is the image. Strength 0 gives the image."""

    def __init__(self, edited: EditedRun, settings: dict[str, object]):
        run = edited.run
        self.input_shape = self.result_shape = run.image_shape
        self._pass, self.num_calls, self._codec = None, 0, run.codec
        self.sampler = f"{run.sampler_name}, strength {settings['strength']:g}"
        if settings["strength"]:
            table = run.last_steps(settings["strength"])
            self._levels = noise_levels(run, table)
            if type(run.codec) is PixelCodec:
                self._pass = known_pass(edited, table, "replacement", start=started)
            else:  # whose x_0 has no pixels to keep
                self._pass = Pass(edited, table, ("started",), start=started)
            self.num_calls = table.num_calls

    def batch_of(self, num_samples: int) -> int:
        return num_samples if self._pass is None else self._pass.batch_of(num_samples)

    def draw(self, batch: Batch, **given) -> np.ndarray:
        if self._pass is None:
            return batch.images
        x_0 = encoded(self._codec, batch.images, batch.numbers, given["seed"])
        arrays = start_at(x_0, *self._levels)
        if type(self._codec) is PixelCodec:
            arrays |= {"x_0": x_0, "mask": batch.masks}
        drawn = self._pass.images(self._pass.x_0(arrays, batch.numbers, **given))
        return np.where(batch.masks, batch.images, drawn)


def encoded(codec: Codec, images: np.ndarray, numbers: np.ndarray, seed: int) -> np.ndarray:
    """x_0 of uint8 images, float32 [B, *D]; the noise of a codec depends on the seed and the number of each."""
    if type(codec) is PixelCodec:
        return scaled(images)  # operation by operation: compiled as one, the last bits are others
    return np.asarray(_encoded(codec, images, seed_keys(seed).sample, numbers))


@jax.jit
def _encoded(codec: Codec, images: jax.Array, key: jax.Array, numbers: jax.Array) -> jax.Array:
    return codec.encode(images, encoding_keys(sample_keys(key, numbers)))


def noise_levels(run: TrainedRun, table: SamplerTable) -> tuple[float, float]:
    """sqrt(alpha-bar) and sqrt(1 - alpha-bar) at the first step of a table."""
    signal, noise = run.process.levels(jnp.asarray(table.t)[:1], ndim=1)
    return float(signal[0]), float(noise[0])


def start_at(start: np.ndarray, keep: float, add: float) -> Arrays:
    """The arrays of `started`, for a batch that begins at keep * start + add * noise."""
    column = (len(start),) + (1,) * (start.ndim - 1)
    return {"start": start, "keep": np.full(column, keep, np.float32), "add": np.full(column, add, np.float32)}


def started(arrays: Arrays, noise):
    """The start of a pass, of N(0, I) and the arrays of `start_at`."""
    return arrays["keep"] * arrays["start"] + arrays["add"] * noise
