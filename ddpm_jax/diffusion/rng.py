"""The keys for all random numbers, derived from one seed."""

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.runtime.errors import UserError, arg, whole_number


class SeedKeys(NamedTuple):
    """Independent keys from one seed: for the parameters, for training, for samples, and for the eval loss."""

    init: jax.Array
    train: jax.Array  # step n uses fold_in(train, n)
    sample: jax.Array  # sample n uses fold_in(sample, n)
    eval: jax.Array  # held-out image i uses fold_in(eval, i)


@enum.unique
class Purpose(enum.IntEnum):
    """Further uses of a key besides steps or samples. A new use gets the next number, so old runs do not change."""

    CONDITION_DROP = 0  # which images of a training step lose their condition
    EDIT = 1  # noise of an edit, for a sample after a row of the sampler's table
    ENCODE = 2  # noise of a codec, for an image
    SELF_CONDITIONING = 3  # whether a training step has an estimate; of the key of a part: dropout of its first call
    RISE = 4  # noise by which x_s rises to an earlier step, for a sample after a row of the sampler's table
    TASK = 5  # what an image-conditional network is shown of an image
    STAGE = 6  # the key of all samples of a further stage of a cascade


def purpose_key(key: Key[Array, ""], purpose: Purpose, n: Int[Array, ""] | int) -> Key[Array, ""]:
    """The n-th key of a purpose, fold_in(fold_in(key, 2^31 + purpose), n): beyond all steps, samples and rewinds."""
    return jax.random.fold_in(jax.random.fold_in(key, 2**31 + purpose), n)


def encoding_keys(keys: Key[Array, "B"]) -> Key[Array, "B"]:
    """The keys for a codec, from the keys of the images."""
    return jax.vmap(lambda key: purpose_key(key, Purpose.ENCODE, 0))(keys)


def check_seed(name: str, seed: int) -> None:
    """Raises UserError unless `seed`, which is the argument `name`, is in 0..2^32-1."""
    if not 0 <= seed < 2**32:
        raise UserError(f"{arg(name)} must be in 0..2^32-1; got {seed}")


def seed_keys(seed: int) -> SeedKeys:
    """The keys of `seed`, a whole number in 0..2^32-1; raises UserError for another."""
    if not isinstance(seed, jax.core.Tracer):
        check_seed("seed", whole_number("seed", seed))
    return SeedKeys(*jax.random.split(jax.random.key(seed), 4))


def stage_key(seed: int, stage: int) -> Key[Array, ""]:
    """The key of the samples of a stage of a cascade; that of stage 0, the first, is `seed_keys(seed).sample`."""
    key = seed_keys(seed).sample
    return purpose_key(key, Purpose.STAGE, stage) if stage else key


def sample_keys(key: Key[Array, ""], sample_ids: Int[Array, "B"]) -> Key[Array, "B"]:
    """The key of sample (or image) n is fold_in(key, n), which depends only on the seed and on n."""
    return jax.vmap(lambda n: jax.random.fold_in(key, n))(sample_ids)


def sample_noise(
    keys: Key[Array, "B"], step: Int[Array, ""] | int, shape: tuple[int, ...]
) -> Float[Array, "B *D"]:
    """N(0, I) for every sample, [B, *shape], from fold_in(its key, step)."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape, jnp.float32))(keys)
