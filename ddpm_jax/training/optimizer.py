"""Learning rate, Adam, clipping by the global norm, and the exponential moving averages (EMA)."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from ddpm_jax.runtime.devices import LEAST_SHARDED
from ddpm_jax.runtime.errors import UserError, arg, check_one_of
from ddpm_jax.training.power_averages import PowerDecay


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """The square root of the sum of all squares.

    Small arrays are concatenated before they are summed: two thirds of a U-Net's arrays are biases and scales, and a
    separate sum for each is a program to compile and a kernel to launch. They are replicated, so none is transferred.
    """
    leaves = jax.tree.leaves(tree)
    sums = [jnp.sum(jnp.square(leaf)) for leaf in leaves if leaf.size >= LEAST_SHARDED]
    if small := [jnp.ravel(leaf) for leaf in leaves if leaf.size < LEAST_SHARDED]:
        sums.append(jnp.sum(jnp.square(jnp.concatenate(small))))
    return jnp.sqrt(sum(sums))


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """g -> g * min(1, max_norm/|g|), where |g| is the `global_norm` (Pascanu et al. 2013, algorithm 1)."""

    def clip(updates: PyTree, params: PyTree | None = None) -> PyTree:
        norm = global_norm(updates)
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda g: factor * g, updates)

    return optax.stateless(clip)


StepFn = Callable[[Int[Array, ""]], Float[Array, ""]]


def make_learning_rate(
    learning_rate: float, *, warmup_steps: int = 0, first_step_zero: bool = False, decay_steps: int = 0
) -> StepFn:
    """Update n (from 0) has the rate learning_rate * min((n + 1)/warmup_steps, 1): linear warm-up, then constant.

    Differs: Ho et al.'s code uses n/warmup_steps, so that its first update changes nothing;
    `first_step_zero` gives that.

    Args:
      decay_steps: > 0 multiplies by (1 + cos(pi n/decay_steps))/2, which is 0 from n = decay_steps on. Short runs
        give better samples with it.
    """
    offset = 0 if first_step_zero else 1

    def schedule(n: Int[Array, ""] | int) -> Float[Array, ""]:
        n = jnp.asarray(n, jnp.float32)
        warmup = jnp.minimum((n + offset) / max(warmup_steps, 1), 1.0)
        decay = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(n / decay_steps, 1.0))) if decay_steps else 1.0
        return learning_rate * warmup * decay

    return schedule


def make_optimizer(
    learning_rate: StepFn,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    grad_clip: float = 0.0,
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015) after clipping the gradient to global norm `grad_clip` (0: no clipping).

    Args:
      weight_decay: > 0: each update also subtracts learning_rate * weight_decay * params, of all parameters (AdamW,
        Loshchilov and Hutter 2019, algorithm 2; the factor of the schedule is in the learning rate).
    """
    if weight_decay > 0:
        adam = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    else:
        adam = optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)
    return optax.chain(clip_by_global_norm(grad_clip), adam) if grad_clip > 0 else adam


EMA_STARTS = ("warmup", "constant", "copy_first")


def make_ema_decay(decay: float, *, start: str = "warmup") -> StepFn:
    """The decay of update n (from 0): ema <- decay_n * ema + (1 - decay_n) * params.

    "warmup": min(decay, (1 + n)/(10 + n)), so that a short run's EMA forgets the initial parameters;
    "constant": always `decay`; "copy_first": 0 at the first update, then `decay` (Ho et al. 2020, code).

    Raises:
      UserError: decay outside [0, 1), or an unknown start.
    """
    check_one_of("start", start, EMA_STARTS)
    if not 0 <= decay < 1:
        raise UserError(f"{arg('decay')} must be in [0, 1); got {decay}")

    def ema_decay(n: Int[Array, ""]) -> Float[Array, ""]:
        n = jnp.asarray(n, jnp.float32)
        if start == "warmup":
            return jnp.minimum(decay, (1.0 + n) / (10.0 + n))
        return jnp.where((start == "copy_first") & (n == 0), jnp.float32(0.0), jnp.float32(decay))

    return ema_decay


def ema_name(decay: float) -> str:
    """The name of the average of this decay: the shortest text that reads back as it, such as "0.9999"."""
    return repr(float(decay) + 0.0)  # -0.0 is 0.0


def make_ema_decays(decays: Sequence[float], *, start: str = "warmup") -> dict[str, StepFn]:
    """Name of each average -> its decay at update n, one average per number in `decays`; see `make_ema_decay`.

    Raises:
      UserError: no decay, a duplicate, one outside [0, 1), or an unknown start.

    Example:
      >>> list(make_ema_decays([0.9999, 0.999]))
      ['0.9999', '0.999']
    """
    by_name = {ema_name(decay): make_ema_decay(decay, start=start) for decay in decays}
    if not by_name or len(by_name) < len(decays):
        raise UserError(f"{arg('decays')} must be at least one decay, and all different; got {tuple(decays)}")
    return by_name


def update_averages(
    ema: Mapping[str, PyTree], params: PyTree, step: Int[Array, ""], decays: Mapping[str, StepFn]
) -> dict[str, PyTree]:
    """ema <- decay_n * ema + (1 - decay_n) * params for each average, where n is `step`.

    The average of a `PowerDecay` is updated by ema <- ema + (1 - decay_n) * (params - ema): in a long run 1 - decay_n
    has more digits than decay_n, which is close to 1, can hold.

    Raises:
      UserError: the averages in `ema` are not those in `decays`.
    """
    if ema.keys() != decays.keys():
        raise UserError(f"the averages of the state must be those of the decays, {sorted(decays)}; got {sorted(ema)}")

    def updated(average: PyTree, decay_fn: StepFn) -> PyTree:
        if isinstance(decay_fn, PowerDecay):
            share = decay_fn.share_of_new(step)
            return jax.tree.map(lambda old, new: old + share * (new - old), average, params)
        decay = decay_fn(step)
        return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, average, params)

    return {name: updated(ema[name], decay_fn) for name, decay_fn in decays.items()}
