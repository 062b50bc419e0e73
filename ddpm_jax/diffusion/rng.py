"""One seed, and the keys that all randomness comes from."""

import enum
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.runtime.errors import UserError, arg


class SeedKeys(NamedTuple):
    """Independent keys of one seed: for the parameters, for training step n, for sample n, for the eval loss."""

    init: jax.Array
    train: jax.Array  # step n uses fold_in(train, n)
    sample: jax.Array  # sample n uses fold_in(sample, n)
    eval: jax.Array  # held-out image i uses fold_in(eval, i)


@enum.unique
class Purpose(enum.IntEnum):
    """What draws from a key beside its steps or samples; a new one takes the next number: old runs keep theirs."""

    CONDITION_DROP = 0  # which images of a training step lose their condition
    EDIT = 1  # what an edit draws for a sample after a row of the sampler's table
    ENCODE = 2  # what a codec draws for an image


def purpose_key(key: Key[Array, ""], purpose: Purpose, n: Int[Array, ""] | int) -> Key[Array, ""]:
    """The n-th key of a purpose, fold_in(fold_in(key, 2^31 + purpose), n): beyond all steps, samples and rewinds."""
    return jax.random.fold_in(jax.random.fold_in(key, 2**31 + purpose), n)


def encoding_keys(keys: Key[Array, "B"]) -> Key[Array, "B"]:
    """What a codec draws from, of the keys of some images."""
    return jax.vmap(lambda key: purpose_key(key, Purpose.ENCODE, 0))(keys)


def check_seed(name: str, seed: int) -> None:
    """Raises UserError unless `seed`, which is the argument `name`, is in 0..2^32-1."""
    if not 0 <= seed < 2**32:
        raise UserError(f"{arg(name)} must be in 0..2^32-1; got {seed}")


def seed_keys(seed: int) -> SeedKeys:
    """The keys of `seed`, a whole number in 0..2^32-1."""
    return SeedKeys(*jax.random.split(jax.random.key(seed), 4))


def sample_keys(key: Key[Array, ""], sample_ids: Int[Array, "B"]) -> Key[Array, "B"]:
    """The key of sample (or image) n is fold_in(key, n): it depends on the seed and n alone."""
    return jax.vmap(lambda n: jax.random.fold_in(key, n))(sample_ids)


def sample_noise(
    keys: Key[Array, "B"], step: Int[Array, ""] | int, shape: tuple[int, ...]
) -> Float[Array, "B *D"]:
    """N(0, I) for every sample, [B, *shape], from fold_in(its key, step)."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape))(keys)
