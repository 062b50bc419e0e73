"""How fast a config's data come to the devices, without a network that takes them."""

import time

import jax
from ml_collections import ConfigDict

from ddpm_jax.data import BatchLoader
from ddpm_jax.experiment import data_factory
from ddpm_jax.experiment.config_checks import fields_named
from ddpm_jax.runtime.devices import make_mesh, put_batch


def data_rate(config: ConfigDict, repeats: int) -> dict[str, int | float]:
    """Of `repeats` batches of training, taken as fast as they come: "pictures_per_second".

    "first_seconds" go by until the first, for which the set is listed and, where it fits memory, decoded;
    "num_pictures" are in the set.

    Raises:
      UserError: the data are not there, or do not fit the config.
    """
    train = config.train
    with fields_named("train", {"fsdp": "mesh.fsdp"}):
        mesh = make_mesh(train.num_devices, config.mesh.fsdp)
    since = time.perf_counter()
    source = data_factory.build_source(config, config.data.split)
    with BatchLoader(
        source,
        batch_size=train.batch_size,
        seed=train.seed,
        first_step=0,
        labelled=config.model.num_classes > 0,
        transform=lambda batch: put_batch(batch, mesh),
    ) as batches:
        jax.block_until_ready(next(batches))
        first = time.perf_counter()
        for _ in range(repeats):
            jax.block_until_ready(next(batches))
        seconds = time.perf_counter() - first
    return {
        "num_pictures": len(source),
        "first_seconds": first - since,
        "pictures_per_second": repeats * train.batch_size / seconds,
    }
