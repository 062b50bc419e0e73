"""How fast the data of an experiment come to the devices, without a network that takes them."""

import time

import jax

from ddpm_jax.experiment.build import Experiment


def data_rate(experiment: Experiment, repeats: int) -> dict[str, int | float]:
    """Of `repeats` batches of training, taken as fast as they come: "images_per_second".

    "first_seconds" go by until the first, for which the set is listed and, where it fits memory, decoded;
    "num_images" are in the set.

    Raises:
      UserError: the data are not there, or do not fit the config.
    """
    since = time.perf_counter()
    source = experiment.source()
    with experiment.batches(source) as batches:
        jax.block_until_ready(next(batches))
        first = time.perf_counter()
        for _ in range(repeats):
            jax.block_until_ready(next(batches))
        seconds = time.perf_counter() - first
    return {
        "num_images": len(source),
        "first_seconds": first - since,
        "images_per_second": repeats * experiment.batch_size / seconds,
    }
