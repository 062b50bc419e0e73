"""The pure train step: uint8 images in, the next state and a few numbers out."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree, UInt8

from ddpm_jax.data.batch import Batch
from ddpm_jax.data.condition import Condition, ConditionSpec, drop, has_null, mirror
from ddpm_jax.diffusion.rng import Purpose, purpose_key
from ddpm_jax.runtime.errors import UserError, arg, check_between
from ddpm_jax.training.objective import Losses, Objective
from ddpm_jax.training.optimizer import StepFn, clip_by_global_norm, global_norm, update_averages
from ddpm_jax.training.train_state import TrainState

Metrics = dict[str, PyTree]

TrainStep = Callable[..., tuple[TrainState, Metrics]]  # of (state, batch, key_train, optionally frozen)


def _random_flip(
    key: Key[Array, ""], image: UInt8[Array, "B H W C"], spec: ConditionSpec, condition: Condition
) -> tuple[UInt8[Array, "B H W C"], Condition]:
    """Mirrors each image left-right with probability 1/2, together with the spatial entries of its condition."""
    flip = jax.random.bernoulli(key, jnp.float32(0.5), (image.shape[0], 1, 1, 1))
    return jnp.where(flip, image[:, :, ::-1, :], image), mirror(spec, condition, flip[:, 0, 0, 0])


def _split_batch(array: Array, num_parts: int) -> Array:
    """[B, ...] -> [num_parts, B/num_parts, ...]. Part p has every num_parts-th row, so that every part of a batch that
    is split over devices is split over them as well."""
    return array.reshape(-1, num_parts, *array.shape[1:]).swapaxes(0, 1)


_OWN_METRICS = ("grad_norm", "param_norm")


def _check_losses(losses: Losses, weights: Array) -> None:
    """Raises ValueError unless an objective gives one number per image, under names that are not taken."""
    shapes = {"the weights": weights.shape, **{f"losses[{name!r}]": loss.shape for name, loss in losses.items()}}
    wrong = {name: shape for name, shape in shapes.items() if shape != weights.shape[:1] or len(shape) != 1}
    if wrong or "loss" not in losses or set(_OWN_METRICS) & set(losses):
        raise ValueError(
            f"an objective must give losses [B] by name, 'loss' among them and none of {_OWN_METRICS}, and weights "
            f"[B]; got {shapes}"
        )


def _make_gradient(objective: Objective, num_parts: int, clip_each_part: float) -> Callable[..., tuple[PyTree, ...]]:
    """(params, key, frozen, extra, weights, drawn) -> the gradient, the losses [B] by name, and the objective's other
    results for each part, [num_parts, ...].

    The batch is processed in `num_parts` parts, one after another; see `make_train_step`.
    """

    def part_loss(
        params: PyTree, key: Key[Array, ""], frozen: PyTree, extra: PyTree, weights: Array, drawn: PyTree
    ) -> tuple[Float[Array, ""], tuple[Losses, PyTree]]:
        losses, of_part = objective.losses(params, frozen, drawn, key, extra)
        _check_losses(losses, weights)
        return jnp.mean(weights * losses["loss"]), (losses, of_part)

    def part_gradient(params: PyTree, *part: PyTree) -> tuple[PyTree, tuple[Losses, PyTree]]:
        grads, found = jax.grad(part_loss, has_aux=True)(params, *part)
        if clip_each_part > 0:
            clip = clip_by_global_norm(clip_each_part)
            grads, _ = clip.update(grads, clip.init(params))
        return grads, found

    def gradient(
        params: PyTree, key: Key[Array, ""], frozen: PyTree, extra: PyTree, *batch: PyTree
    ) -> tuple[PyTree, Losses, PyTree]:
        if num_parts == 1:
            grads, (losses, of_part) = part_gradient(params, key, frozen, extra, *batch)
            return grads, losses, jax.tree.map(lambda array: array[None], of_part)

        def add_part(total: PyTree, part: tuple) -> tuple[PyTree, tuple[Losses, PyTree]]:
            key, *rows = part
            grads, found = part_gradient(params, key, frozen, extra, *rows)
            return jax.tree.map(jnp.add, total, grads), found

        keys = jax.random.split(key, num_parts)
        parts = (keys, *jax.tree.map(lambda array: _split_batch(array, num_parts), batch))
        total, (losses, of_parts) = jax.lax.scan(add_part, jax.tree.map(jnp.zeros_like, params), parts)
        # Back to the order of the batch, undoing _split_batch.
        losses = jax.tree.map(lambda part: part.swapaxes(0, 1).reshape(-1), losses)
        return jax.tree.map(lambda g: g / num_parts, total), losses, of_parts

    return gradient


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    ema_decays: Mapping[str, StepFn],
    spec: ConditionSpec | None = None,
    drop_rate: float = 0.0,
    flip: bool = False,
    num_parts: int = 1,
    clip_each_part: float = 0.0,
    skip_nonfinite: bool = False,
) -> TrainStep:
    """train_step(state, batch, key_train, frozen = objective.frozen) -> (state, metrics).

    The batch is a `Batch`: images, uint8 [B, H, W, C], and their condition. `frozen` holds the arrays that the
    objective does not train. Pass it if it is not empty, else its arrays become constants of the jitted program.

    Step n draws all random numbers from fold_in(key_train, n) for the whole batch at once, so that the result does not
    depend on how many devices share the batch or into how many parts it is split. The only exception is what a network
    draws itself (dropout), which has one key per part. Not jitted: the caller jits it with shardings and donates the
    state.

    Args:
      objective: such as `DiffusionObjective`.
      ema_decays: name of each average -> (update number -> its decay).
      spec: the entries of the condition; {} for none.
      drop_rate: probability with which the whole condition of an image is replaced by its null, for classifier-free
        guidance (Ho and Salimans 2022, algorithm 1).
      flip: mirror each image with probability 1/2, together with the spatial entries of its condition.
      num_parts: gradient accumulation: the batch is processed in this many equal parts, one after another, and
        their gradients are averaged.
      clip_each_part: > 0 clips each part's own gradient to this global norm before averaging (as Ho et al.'s code
        does on each replica).
      skip_nonfinite: if the loss or the gradient is not finite, only the step counter changes: parameters, EMA,
        optimiser and history stay as they were.

    Metrics: loss and its parts, grad_norm (of the averaged gradient, before the optimiser's clip), param_norm (of the
    new parameters), and those of the objective. The losses are means with the objective's weights: if t is not drawn
    uniformly, they estimate the mean over uniform t.

    Raises:
      UserError: a drop_rate outside [0, 1), or one for a condition without a null; num_parts below 1. During tracing:
        a batch whose condition lacks an entry of `spec`.
    """
    spec = spec or {}
    if not 0 <= drop_rate < 1:
        raise UserError(f"{arg('drop_rate')} must be in [0, 1); got {drop_rate}")
    if drop_rate and not has_null(spec):
        raise UserError(f"{arg('drop_rate')}={drop_rate} is for a condition with a null; got {sorted(spec)}")

    check_between("num_parts", num_parts, 1)
    gradient = _make_gradient(objective, num_parts, clip_each_part)

    def augmented(batch: Batch, key: Key[Array, ""], key_drop: Key[Array, ""]) -> Batch:
        image, condition = batch
        if missing := sorted(set(spec) - set(condition)):
            raise UserError(f"the condition of a batch must have the entries of {arg('spec')}; it lacks {missing}")
        if flip:
            image, condition = _random_flip(key, image, spec, condition)
        if drop_rate:
            condition = drop(spec, condition, jax.random.bernoulli(key_drop, jnp.float32(drop_rate), (len(image),)))
        return Batch(image, condition)

    def train_step(
        state: TrainState, batch: Batch, key_train: Key[Array, ""], frozen: PyTree = objective.frozen
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key_train, state.step)
        key_flip, _, _, key_losses = jax.random.split(key, 4)
        batch = augmented(batch, key_flip, purpose_key(key_train, Purpose.CONDITION_DROP, state.step))
        drawn, weights = objective.draw(frozen, batch, key, state.extra)

        grads, losses, of_parts = gradient(state.params, key_losses, frozen, state.extra, weights, drawn)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = update_averages(state.ema, params, state.step, ema_decays)
        extra, of_objective = objective.update(state.extra, drawn, weights, losses, of_parts)
        if taken := sorted({*losses, *_OWN_METRICS} & set(of_objective)):
            raise ValueError(f"metrics of an objective must not have the names of losses and norms; got {taken}")
        metrics = {
            **{name: jnp.mean(weights * part) for name, part in losses.items()},
            "grad_norm": global_norm(grads),
            "param_norm": global_norm(params),
            **of_objective,
        }
        new = state.replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state, extra=extra)
        if skip_nonfinite:
            is_finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            new = jax.tree.map(lambda now, before: jnp.where(is_finite, now, before), new, state)
            new = new.replace(step=state.step + 1)
        return new, metrics

    return train_step
