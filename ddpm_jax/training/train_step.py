"""The pure train step: uint8 images in, the next state and a few numbers out."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from ddpm_jax.data.batch import Batch, to_model_scale
from ddpm_jax.data.condition import Condition, ConditionSpec, drop, has_null, mirror
from ddpm_jax.diffusion.losses import LossFn
from ddpm_jax.diffusion.rng import Purpose, purpose_key
from ddpm_jax.diffusion.timestep_samplers import TimestepSampler, make_timestep_sampler
from ddpm_jax.runtime.errors import UserError, arg
from ddpm_jax.training.optimizer import StepFn, clip_by_global_norm, global_norm
from ddpm_jax.training.train_state import TrainState

NUM_T_BINS = 4

Metrics = dict[str, Array]

TrainStep = Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]


def _random_flip(
    key: Key[Array, ""], x_0: Float[Array, "B H W C"], spec: ConditionSpec, condition: Condition
) -> tuple[Float[Array, "B H W C"], Condition]:
    """Mirrors each image left-right with probability 1/2, and what of its condition lies over its pixels."""
    flip = jax.random.bernoulli(key, 0.5, (x_0.shape[0], 1, 1, 1))
    return jnp.where(flip, x_0[:, :, ::-1, :], x_0), mirror(spec, condition, flip)


def _split_batch(array: Array, num_parts: int) -> Array:
    """[B, ...] -> [num_parts, B/num_parts, ...]; part p is every num_parts-th row, so that a batch that is
    spread over devices stays spread over them in every part."""
    return array.reshape(-1, num_parts, *array.shape[1:]).swapaxes(0, 1)


def _t_bins(
    losses: Float[Array, "B"], weights: Float[Array, "B"], t: Int[Array, "B"], num_steps: int
) -> Metrics:
    """Sums of the loss and of the weights in quarters of 0..T-1; the host divides sums over many steps."""
    # Sums, not products of matrices: a TPU rounds what goes into those to bfloat16.
    which = jax.nn.one_hot(t * NUM_T_BINS // num_steps, NUM_T_BINS)  # [B, 4]
    return {
        "t_bin_sum": jnp.sum((weights * losses)[:, None] * which, axis=0),
        "t_bin_count": jnp.sum(weights[:, None] * which, axis=0),
    }


def _make_gradient(
    model: nn.Module, loss_fn: LossFn, num_parts: int, clip_each_part: float
) -> Callable[..., tuple[PyTree, dict[str, Float[Array, "B"]]]]:
    """(params, key of the dropout, x_0, t, weights, eps, condition) -> (the gradient, the losses [B] by name).

    The batch is taken in `num_parts` parts, one after another; see `make_train_step`.
    """

    def part_loss(
        params: PyTree, key: Key[Array, ""], x_0: Array, t: Array, weights: Array, eps: Array, condition: Condition
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, "B"]]]:
        def model_fn(x_t: Array, t: Array) -> Array:
            return model.apply({"params": params}, x_t, t, condition, train=True, rngs={"dropout": key})

        losses = loss_fn(model_fn, x_0=x_0, t=t, eps=eps)
        return jnp.mean(weights * losses["loss"]), losses

    def part_gradient(params: PyTree, *part: PyTree) -> tuple[PyTree, dict[str, Float[Array, "B"]]]:
        grads, losses = jax.grad(part_loss, has_aux=True)(params, *part)
        if clip_each_part > 0:
            clip = clip_by_global_norm(clip_each_part)
            grads, _ = clip.update(grads, clip.init(params))
        return grads, losses

    def gradient(params: PyTree, key: Key[Array, ""], *batch: PyTree) -> tuple[PyTree, dict[str, Float[Array, "B"]]]:
        if num_parts == 1:
            return part_gradient(params, key, *batch)

        def add_part(total: PyTree, part: tuple) -> tuple[PyTree, dict[str, Float[Array, "B"]]]:
            grads, losses = part_gradient(params, *part)
            return jax.tree.map(jnp.add, total, grads), losses

        keys = jax.random.split(key, num_parts)
        parts = (keys, *jax.tree.map(lambda array: _split_batch(array, num_parts), batch))
        total, losses = jax.lax.scan(add_part, jax.tree.map(jnp.zeros_like, params), parts)
        # Back to the batch's own order, undoing _split_batch.
        losses = jax.tree.map(lambda part: part.swapaxes(0, 1).reshape(-1), losses)
        return jax.tree.map(lambda g: g / num_parts, total), losses

    return gradient


def make_train_step(
    model: nn.Module,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: StepFn,
    time_sampler: TimestepSampler | None = None,
    spec: ConditionSpec | None = None,
    drop_rate: float = 0.0,
    flip: bool = False,
    num_parts: int = 1,
    clip_each_part: float = 0.0,
    skip_nonfinite: bool = False,
) -> TrainStep:
    """train_step(state, batch, key_train) -> (state, metrics) (Ho et al. 2020, algorithm 1).

    The batch is a `Batch`: images, uint8 [B, H, W, C], and their condition.

    Step n draws flips, t, eps and dropout from fold_in(key_train, n) for the whole batch at once, so that the
    result does not depend on how many devices share the batch or into how many parts it is cut (dropout
    alone has a key a part). Not jitted: the caller jits it with shardings and donates the state.

    Args:
      model: called as model.apply({"params": p}, x_t, t, train=True, rngs={"dropout": key}), with the condition
        after t.
      loss_fn: of `diffusion.losses.make_loss_fn`; its process says what T is.
      ema_decay: update number -> the decay.
      time_sampler: of t on 0..T-1; None for the uniform one. Its history is in the state.
      spec: what is known of the condition's entries; {} for none.
      drop_rate: probability with which an image's whole condition is replaced by its null, for classifier-free
        guidance (Ho and Salimans 2022, algorithm 1).
      flip: mirror each image with probability 1/2, and what of its condition lies over its pixels.
      num_parts: gradient accumulation: the batch is taken in this many equal parts, one after another, and
        their gradients are averaged.
      clip_each_part: > 0 clips each part's own gradient to this global norm before averaging (what Ho et
        al.'s code does on each replica).
      skip_nonfinite: where the loss or the gradient is not finite, only the step is counted: parameters, EMA,
        optimiser and history stay as they were.

    Metrics: loss and its parts, grad_norm (of the averaged gradient, before the optimiser's clip), param_norm (of the
    new parameters), t_bin_sum and t_bin_count [4]. Where t is not uniform, all but the norms are weighted so that they
    estimate the mean over uniform t.

    Raises:
      UserError: a time sampler of another T, a drop_rate outside [0, 1), or one for a condition without a null.
    """
    num_steps = loss_fn.process.num_steps
    time_sampler = time_sampler or make_timestep_sampler("uniform", num_steps)
    if time_sampler.num_steps != num_steps:
        raise UserError(
            f"{arg('time_sampler')} must be of the {num_steps} steps of the loss's process; "
            f"got one of {time_sampler.num_steps}"
        )

    spec = spec or {}
    if not 0 <= drop_rate < 1:
        raise UserError(f"{arg('drop_rate')} must be in [0, 1); got {drop_rate}")
    if drop_rate and not has_null(spec):
        raise UserError(f"{arg('drop_rate')}={drop_rate} is for a condition with a null; got {sorted(spec)}")

    gradient = _make_gradient(model, loss_fn, num_parts, clip_each_part)

    def train_step(
        state: TrainState, batch: Batch, key_train: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key_train, state.step)
        key_flip, key_t, key_eps, key_dropout = jax.random.split(key, 4)
        x_0, condition = to_model_scale(batch.image), batch.condition
        if flip:
            x_0, condition = _random_flip(key_flip, x_0, spec, condition)
        if drop_rate:
            key_drop = purpose_key(key_train, Purpose.CONDITION_DROP, state.step)
            condition = drop(spec, condition, jax.random.bernoulli(key_drop, drop_rate, (x_0.shape[0],)))
        t, weights = time_sampler.sample(state.t_history, key_t, x_0.shape[0])
        eps = jax.random.normal(key_eps, x_0.shape)

        grads, losses = gradient(state.params, key_dropout, x_0, t, weights, eps, condition)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(state.step)
        ema_params = jax.tree.map(lambda ema, new: decay * ema + (1.0 - decay) * new, state.ema_params, params)
        metrics = {
            **{name: jnp.mean(weights * part) for name, part in losses.items()},
            "grad_norm": global_norm(grads),
            "param_norm": global_norm(params),
            **_t_bins(losses["loss"], weights, t, num_steps),
        }
        t_history = time_sampler.update(state.t_history, t, losses["loss"])
        new = TrainState(state.step + 1, params, ema_params, opt_state, t_history)
        if skip_nonfinite:
            is_finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            new = jax.tree.map(lambda now, before: jnp.where(is_finite, now, before), new, state)
            new = new.replace(step=state.step + 1)
        return new, metrics

    return train_step
