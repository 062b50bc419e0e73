"""The initialisers of Ho et al.'s code, and a way to initialise a whole network from a few long random draws.

One draw per tensor, as in Flax, means hundreds of small random generators, which take XLA longer to compile than
everything else that a run does before its first step.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

# Length of the first draw (each further one is twice as long) and of the longest, which limits the memory.
_FIRST_DRAW, _LONGEST_DRAW = 2**18, 2**22


class _RandomStream:
    """Uniform numbers in -1..1, handed out in the order of the calls."""

    def __init__(self, key: Key[Array, ""]):
        self._key, self._num_draws = key, 0
        self._numbers, self._taken = jnp.zeros(0, jnp.float32), 0

    def take(self, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """The next numbers; the rest of a draw that is too short is discarded."""
        size = math.prod(shape)
        if self._taken + size > self._numbers.size:
            length = max(size, min(_FIRST_DRAW * 2**self._num_draws, _LONGEST_DRAW))
            key = jax.random.fold_in(self._key, self._num_draws)
            self._numbers, self._taken = jax.random.uniform(key, (length,), jnp.float32, minval=-1.0), 0
            self._num_draws += 1
        self._taken += size
        return self._numbers[self._taken - size : self._taken].reshape(shape)


_stream: ContextVar[_RandomStream | None] = ContextVar("_stream", default=None)


@contextmanager
def shared_draws(key: Key[Array, ""]) -> Iterator[None]:
    """In the block, the initialisers of this file take their numbers from a few long draws of `key`, not their own
    keys.

    The distribution is the same, but the numbers differ.
    """
    token = _stream.set(_RandomStream(key))
    try:
        yield
    finally:
        _stream.reset(token)


def fan_avg_uniform(scale: float) -> nn.initializers.Initializer:
    """U(-l, l) with l = sqrt(3 scale / mean(fan_in, fan_out)): the initialiser of the original network."""

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        *kernel, fan_in, fan_out = shape
        limit = math.sqrt(3 * scale / (math.prod(kernel) * (fan_in + fan_out) / 2))
        reel = _stream.get()
        numbers = jax.random.uniform(key, shape, jnp.float32, minval=-1.0) if reel is None else reel.take(shape)
        return (limit * numbers).astype(dtype)

    return init


INIT = fan_avg_uniform(1.0)
# The original uses 1e-10 for scale 0: blocks with "zero" layers start as near-identities.
ZERO_INIT = fan_avg_uniform(1e-10)
