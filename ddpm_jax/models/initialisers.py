"""The initialisers of Ho et al.'s code, and how all parameters of a network come from a few long draws.

A draw a tensor, as Flax makes them, is hundreds of small random generators, which XLA takes longer to compile than all
else that a run does before its first step.
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

# Numbers in the first draw, each after which is twice as long, and in the longest, which bounds the memory for them.
_FIRST_DRAW, _LONGEST_DRAW = 2**18, 2**22


class _RandomStream:
    """Uniform numbers in -1..1, cut off in the order in which they are asked for."""

    def __init__(self, key: Key[Array, ""]):
        self._key, self._num_draws = key, 0
        self._numbers, self._taken = jnp.zeros(0), 0

    def take(self, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """The next numbers; a draw too short for them is thrown away."""
        size = math.prod(shape)
        if self._taken + size > self._numbers.size:
            length = max(size, min(_FIRST_DRAW * 2**self._num_draws, _LONGEST_DRAW))
            key = jax.random.fold_in(self._key, self._num_draws)
            self._numbers, self._taken = jax.random.uniform(key, (length,), minval=-1.0), 0
            self._num_draws += 1
        self._taken += size
        return self._numbers[self._taken - size : self._taken].reshape(shape)


_stream: ContextVar[_RandomStream | None] = ContextVar("_stream", default=None)


@contextmanager
def shared_draws(key: Key[Array, ""]) -> Iterator[None]:
    """Within, the initialisers of this file take their numbers from a few long draws of `key`, not of their own keys.

    The distribution is the same, the numbers are others.
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
        numbers = jax.random.uniform(key, shape, minval=-1.0) if reel is None else reel.take(shape)
        return (limit * numbers).astype(dtype)

    return init


INIT = fan_avg_uniform(1.0)
# The original writes scale 0 as 1e-10: "zero" layers start as near-identity branches.
ZERO_INIT = fan_avg_uniform(1e-10)
