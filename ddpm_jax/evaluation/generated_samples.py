"""Draws the samples of a run for sample metrics, batch by batch, into a file, so that it can resume."""

import os
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.data.image_source import ArraySource
from ddpm_jax.diffusion.rng import check_seed
from ddpm_jax.evaluation.image_sets import ImageSet
from ddpm_jax.experiment.config_json import config_to_json
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.runtime.devices import replicated
from ddpm_jax.runtime.resumable_arrays import ResumableArrays
from ddpm_jax.runtime.resume_file import fingerprint


class GeneratedSamples:
    """Samples 0..N-1 of a run as `images.npy` in a folder of their own.

    Args:
      run: with the sampler to use.
      weights: the name of the run's weights, for the protocol.
      folder: the folder of the evaluation.

    Raises:
      UserError: settings that do not fit the run or its sampler.
    """

    def __init__(self, run: TrainedRun, *, weights: str, num_samples: int, seed: int, mesh: Mesh, folder: str):
        check_seed("--seed", seed)
        self._generator = run.generator(mesh)
        self._params = jax.device_put(run.params, replicated(mesh))
        self._seed, self.num_images, self._folder = seed, num_samples, folder
        self.image_shape = run.image_shape
        self.facts = {
            "name": f"a {run.facts['data']} run",
            "num_images": num_samples,
            "image_shape": list(self.image_shape),
            "step": run.step,
            "weights": weights,
            "sampler": run.sampler_name,
            "num_calls": run.sampler_table.num_calls,
            "seed": seed,
            "settings": run.sampler_settings,
            "batch_size": self._generator.batch_of(num_samples),
            **self._generator.other_networks,
            "fingerprint": fingerprint(run.params, run.codec, config_to_json(run.config)),
        }
        if run.image_task is not None:
            # Some from all over, so that other images under the same name are noticed.
            looked_at = np.unique(np.linspace(0, num_samples - 1, 64).astype(np.int64))
            self.facts["shown_images"] = run.num_shown
            self.facts["shown_fingerprint"] = fingerprint(self._generator.condition_of(looked_at))

    def draw(self, progress: Callable[[str, int, int], Callable[[int], None]], environment: dict) -> ImageSet:
        """Draws the missing samples.

        Args:
          progress: (description, total, done before) -> a function that counts sampler steps.
          environment: further facts that the last digits depend on.
        """
        prefix = os.path.join(self._folder, f"samples_step_{self.facts['step']}")
        rows = {"pictures": (self.image_shape, np.uint8)}
        files = ResumableArrays(prefix, self.facts | environment, rows, self.num_images)
        if not files.complete:
            generator = self._generator
            batch_size = generator.batch_of(self.num_images)
            total = generator.num_batches(self.num_images) * generator.num_rows
            count = progress("sampling", total, files.num_done // batch_size * generator.num_rows)

            def make(first: int) -> dict[str, np.ndarray]:
                images = generator.draw(
                    self._params, seed=self._seed, first=first, num_samples=self.num_images, on_chunk=count
                )
                return {"pictures": images}

            files.fill(make)
        images = files.arrays.get("pictures", np.zeros((0, *self.image_shape), np.uint8))
        self.images_folder = files.folder
        return ImageSet(ArraySource(images), self.num_images, self.facts, {})
