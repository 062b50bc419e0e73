"""One seed, and the keys that all randomness comes from."""

from typing import NamedTuple

import jax


class SeedKeys(NamedTuple):
    """Independent keys of one seed: for the parameters, for training step n, for sample n, for the eval loss."""

    init: jax.Array
    train: jax.Array  # step n uses fold_in(train, n)
    sample: jax.Array  # sample n uses fold_in(sample, n)
    eval: jax.Array  # held-out image i uses fold_in(eval, i)


def seed_keys(seed: int) -> SeedKeys:
    """The keys of `seed`, a whole number in 0..2^32-1."""
    return SeedKeys(*jax.random.split(jax.random.key(seed), 4))
