"""How the t of each training image is drawn: uniformly, stratified, or by the size of the loss."""

from collections.abc import Callable
from typing import NamedTuple, no_type_check

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from ddpm_jax.runtime.errors import check_one_of

TIMESTEP_SAMPLERS = ("uniform", "stratified", "loss_second_moment")
HISTORY = 10  # losses remembered per t
UNIFORM_PART = 0.001  # share of the probability that is spread evenly over all t


class TimestepSampler(NamedTuple):
    """A sampler of t as pure functions of its history, which is None if nothing is remembered."""

    init: Callable[[], PyTree]  # () -> history
    # (history, key, B) -> t int32 [B] and weights float32 [B], 1/(T p_t): the mean of weight * loss has the
    # expectation of the mean loss over uniform t.
    sample: Callable[[PyTree, Key[Array, ""], int], tuple[Int[Array, "B"], Float[Array, "B"]]]
    update: Callable[[PyTree, Int[Array, "B"], Float[Array, "B"]], PyTree]  # (history, t, losses) -> history
    num_steps: int  # T


# A pytree's leaves may be shapes or shardings, so its fields are not checked in tests.
@no_type_check
@flax.struct.dataclass
class LossHistory:
    """The last losses of every t."""

    losses: Float[Array, "T history"]  # a ring buffer: the n-th loss of t is at n % HISTORY
    counts: Int[Array, "T"]  # number of losses of t; beyond HISTORY only modulo HISTORY


def make_timestep_sampler(name: str, num_steps: int) -> TimestepSampler:
    """The sampler of t on 0..T-1.

    "uniform": independent and uniform (Ho et al. 2020, algorithm 1). "stratified": image i of B is uniform on the
    i-th of B equal parts of 0..T-1, so that every batch covers all steps. "loss_second_moment": p_t
    proportional to sqrt(E[L_t^2]) over the last 10 losses of each t, once every t has 10; uniform until then
    (Nichol and Dhariwal 2021, equation 18).

    Args:
      num_steps: T.

    Raises:
      UserError: an unknown name.
    """
    check_one_of("name", name, TIMESTEP_SAMPLERS)
    if name == "loss_second_moment":
        return _loss_second_moment(num_steps)

    def sample(history: None, key: Key[Array, ""], batch_size: int) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
        if name == "uniform":
            t = jax.random.randint(key, (batch_size,), 0, num_steps, jnp.int32)
        else:
            part = (jnp.arange(batch_size) + jax.random.uniform(key, (batch_size,), jnp.float32)) / batch_size
            t = jnp.minimum((part * num_steps).astype(jnp.int32), num_steps - 1)
        return t, jnp.ones((batch_size,), jnp.float32)

    return TimestepSampler(lambda: None, sample, lambda history, t, losses: history, num_steps)


def _loss_second_moment(num_steps: int) -> TimestepSampler:
    def init() -> LossHistory:
        return LossHistory(jnp.zeros((num_steps, HISTORY), jnp.float32), jnp.zeros((num_steps,), jnp.int32))

    def sample(history: LossHistory, key: Key[Array, ""], batch_size: int):
        size = jnp.sqrt(jnp.mean(history.losses**2, axis=1))
        # If all losses are 0, the weights would be 0/0: uniform then.
        known = jnp.all(history.counts >= HISTORY) & (jnp.sum(size) > 0)
        p = jnp.where(known, size / jnp.where(known, jnp.sum(size), 1.0), 1 / num_steps)
        p = (1 - UNIFORM_PART) * p + UNIFORM_PART / num_steps
        t = jax.random.choice(key, num_steps, (batch_size,), p=p).astype(jnp.int32)
        return t, 1 / (num_steps * p[t])

    def update(history: LossHistory, t: Int[Array, "B"], losses: Float[Array, "B"]) -> LossHistory:
        # As if images came one by one; if a t comes more than HISTORY times, the last losses are kept.
        same = t[:, None] == t[None, :]
        earlier = jnp.sum(jnp.tril(same, -1), axis=1)  # earlier ones of the same t in this batch
        later = jnp.sum(same, axis=1) - 1 - earlier
        slot = (history.counts[t] + earlier) % HISTORY
        row = jnp.where(later < HISTORY, t, num_steps)  # an index past the end is dropped
        counts = history.counts.at[t].add(1)
        # Kept small, because 2^31 updates of one t would overflow.
        counts = jnp.where(counts >= 2 * HISTORY, counts % HISTORY + HISTORY, counts)
        return LossHistory(history.losses.at[row, slot].set(losses, mode="drop"), counts)

    return TimestepSampler(init, sample, update, num_steps)
