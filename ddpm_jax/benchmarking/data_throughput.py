"""Speed of the data of an experiment, up to the devices, without a network that uses them."""

import time

import jax

from ddpm_jax.experiment.build import Experiment


def data_rate(experiment: Experiment, repeats: int) -> dict[str, int | float]:
    """Loads `repeats` training batches as fast as possible, and returns "images_per_second".

    "first_seconds" is the time to the first batch, in which the data set is listed and, if it fits in memory, decoded;
    "num_images" is the size of the data set.

    Raises:
      UserError: the data are missing, or do not fit the config.
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
