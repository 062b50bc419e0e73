"""The host loop: batches in, steps taken, numbers reported, states handed out for saving and for pictures."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from ddpm_jax.devices import put_batch
from ddpm_jax.errors import UserError
from ddpm_jax.hosts import MAX_AHEAD, Vote
from ddpm_jax.training.report import Reporter
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import NUM_T_BINS, TrainStep
from ddpm_jax.training.stop import StopRequest


class NonFiniteError(UserError):
    """A loss, gradient or parameter that is NaN or infinite."""


@dataclass(frozen=True)
class LoopSettings:
    """Periods and sizes of the loop; a period of 0 means never."""

    num_steps: int
    batch_size: int
    log_every_steps: int
    checkpoint_every_steps: int
    sample_every_steps: int


def run_loop(
    state: TrainState,
    train_step: TrainStep,
    batches: Iterator[np.ndarray | tuple[np.ndarray, np.ndarray]],
    *,
    key_train: jax.Array,
    mesh: Mesh,
    settings: LoopSettings,
    learning_rate: Callable[[int], jax.Array],
    reporter: Reporter,
    stop: StopRequest,
    save: Callable[[TrainState], dict[str, float]],
    preview: Callable[[TrainState], None],
) -> TrainState:
    """Trains from state.step to settings.num_steps, or until `stop`; returns the last state, which is saved.

    Args:
      train_step: jitted; donates its state.
      batches: this process's rows of the batch of step state.step, of the next one, and so on: images, or images
        and labels.
      save: starts saving a state and returns numbers to report (such as the eval loss).
      preview: draws pictures of a state.

    Raises:
      NonFiniteError: names the step, before anything of it is saved.
    """
    step = first_step = int(state.step)
    pending: list[dict] = []  # metrics still on the device, one entry a step
    since, vote = time.monotonic(), Vote(mesh)
    ending = step >= settings.num_steps
    while not ending:
        state, metrics = train_step(state, put_batch(next(batches), mesh), key_train)
        step += 1
        pending.append(metrics)
        if len(pending) > MAX_AHEAD:
            jax.block_until_ready(pending[-1 - MAX_AHEAD])
        # Read once a step: a signal that comes after this line ends the loop after a later step, saved too.
        ending = step >= settings.num_steps or vote.ask(stop.signal_number or 0) > 0
        saving = ending or _due(step, settings.checkpoint_every_steps)
        previewing = _due(step, settings.sample_every_steps) and step < settings.num_steps
        if saving or previewing or _due(step, settings.log_every_steps):
            numbers = _summary(pending, step)
            numbers["learning_rate"] = float(learning_rate(step - 1))
            numbers["images_per_second"] = settings.batch_size * len(pending) / (time.monotonic() - since)
            if step == first_step + len(pending):
                del numbers["images_per_second"]  # the first figure would be the compiler's, not the step's
            if saving:
                _check_finite(state, step)
                numbers |= save(state)
            reporter.log(step, numbers)
            if previewing:
                preview(state)
            pending, since = [], time.monotonic()
    return state


def _due(step: int, period: int) -> bool:
    return period > 0 and step % period == 0


@jax.jit
def _all_finite(tree: PyTree) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _check_finite(state: TrainState, step: int) -> None:
    """The loss of `step` was finite before its update; the parameters after it may not be."""
    for name in ("params", "ema_params"):
        if not _all_finite(getattr(state, name)):
            raise NonFiniteError(f"{name} became NaN or infinite at step {step}")


def _summary(pending: list[dict], step: int) -> dict[str, float]:
    """Means over the steps that `pending` holds, the last of which is `step`; refuses what is not finite."""
    fetched = jax.device_get(pending)
    for number, metrics in enumerate(fetched, start=step - len(fetched) + 1):
        for name in ("loss", "grad_norm"):
            if not np.isfinite(metrics[name]):
                raise NonFiniteError(f"{name} became {metrics[name]} at step {number}")
    total = jax.tree.map(lambda *values: np.sum(values, axis=0), *fetched)
    numbers = {name: float(value / len(fetched)) for name, value in total.items() if not name.startswith("t_bin")}
    for i in range(NUM_T_BINS):
        if total["t_bin_count"][i]:
            numbers[f"loss_t{i + 1}of{NUM_T_BINS}"] = float(total["t_bin_sum"][i] / total["t_bin_count"][i])
    return numbers
