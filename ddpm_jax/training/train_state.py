"""The train state, the learning rate, the optimiser and the EMA of the parameters."""

from collections.abc import Callable
from typing import no_type_check

import flax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from ddpm_jax.runtime.errors import UserError, check_one_of
from ddpm_jax.training.global_norm import clip_by_global_norm

StepFn = Callable[[Int[Array, ""]], Float[Array, ""]]


# A pytree's leaves may be shapes or shardings, so its fields are not checked in tests.
@no_type_check
@flax.struct.dataclass
class TrainState:
    """All that changes in training. Randomness and batches are functions of (seed, step): no key is kept."""

    step: Int[Array, ""]  # the number of updates made
    params: PyTree
    ema_params: PyTree
    opt_state: PyTree
    t_history: PyTree = None  # of the time sampler; None where it remembers nothing


def init_state(
    params: PyTree, optimizer: optax.GradientTransformation, t_history: PyTree = None
) -> TrainState:
    """Step 0; the EMA starts at the parameters, the time sampler at `t_history`."""
    # A copy, so that a step may donate both without donating one buffer twice.
    ema_params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, optimizer.init(params), t_history)


def make_learning_rate(
    learning_rate: float, *, warmup_steps: int = 0, first_step_zero: bool = False, decay_steps: int = 0
) -> StepFn:
    """Update n (from 0) takes learning_rate * min((n + 1)/warmup_steps, 1), constant from there.

    Differs: Ho et al.'s code takes n/warmup_steps, so that its first update changes nothing;
    `first_step_zero` gives that.

    Args:
      decay_steps: > 0 multiplies by (1 + cos(pi n/decay_steps))/2, which is 0 from n = decay_steps on: for
        short runs, whose last samples are better for it.
    """
    offset = 0 if first_step_zero else 1

    def schedule(n: Int[Array, ""] | int) -> Float[Array, ""]:
        warmup = jnp.minimum((n + offset) / max(warmup_steps, 1), 1.0)
        decay = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(n / decay_steps, 1.0))) if decay_steps else 1.0
        return learning_rate * warmup * decay

    return schedule


def make_optimizer(
    learning_rate: StepFn, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, grad_clip: float = 0.0
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015) after clipping the gradient to global norm `grad_clip` (0: no clipping)."""
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
    check_one_of("optim.ema_start", start, EMA_STARTS)
    if not 0 <= decay < 1:
        raise UserError(f"optim.ema_decay must be in [0, 1); got {decay}")

    def ema_decay(n: Int[Array, ""]) -> Float[Array, ""]:
        if start == "warmup":
            return jnp.minimum(decay, (1.0 + n) / (10.0 + n))
        return jnp.where((start == "copy_first") & (n == 0), 0.0, decay)

    return ema_decay
