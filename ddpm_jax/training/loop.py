"""The host loop: takes batches, runs steps, reports numbers, and hands out states for saving and sampling.

After a `StopRequest` it finishes its step, saves and returns.
"""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from ddpm_jax.data.batch import Batch
from ddpm_jax.runtime.compilation import release_unused_memory
from ddpm_jax.runtime.multi_host import MAX_AHEAD, HostMax
from ddpm_jax.runtime.progress import format_duration, format_rate
from ddpm_jax.training.metrics_window import MetricsWindow
from ddpm_jax.training.nonfinite import NonFiniteError
from ddpm_jax.training.profiler import StepProfiler
from ddpm_jax.training.run_log import Reporter
from ddpm_jax.training.stop_request import StopRequest
from ddpm_jax.training.train_state import TrainState
from ddpm_jax.training.train_step import TrainStep


@dataclass(frozen=True)
class LoopSettings:
    """Periods and sizes of the loop; a period of 0 means never."""

    num_steps: int
    batch_size: int
    log_every_steps: int
    checkpoint_every_steps: int
    sample_every_steps: int
    snapshot_steps: Collection[int] = ()  # those with a snapshot of the averages


class EarlySpeed:
    """Says how long the run will take, some seconds after the compilation, so that nobody waits for the first report.

    Args:
      note: prints a line.
      clock: seconds as a function, for tests.
    """

    AFTER_SECONDS = 10

    def __init__(
        self,
        note: Callable[[str], None],
        settings: LoopSettings,
        first_step: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._note, self._settings, self._clock = note, settings, clock
        # The host is MAX_AHEAD steps ahead of the devices, and the first step includes its compilation.
        self._first, self._since, self._over = first_step + 1 + MAX_AHEAD, 0.0, False

    def after(self, step: int) -> None:
        """To be called after each step."""
        if self._over or step < self._first:
            return
        if step == self._first:
            self._since = self._clock()
        elif (seconds := self._clock() - self._since) >= self.AFTER_SECONDS:
            self._over = True
            a_step, left = seconds / (step - self._first), self._settings.num_steps - step
            if left <= 0:
                return
            self._note(
                f"          about {format_rate(a_step)} s per step, {format_rate(self._settings.batch_size / a_step)} "
                f"images/s: {format_duration(left * a_step)} for the other {left} steps"
            )

    def cancel(self) -> None:
        """The first report says it."""
        self._over = True


def run_loop(
    state: TrainState,
    train_step: TrainStep,
    batches: Iterator[Batch],
    *,
    key_of_step: Callable[[int], jax.Array],
    mesh: Mesh,
    settings: LoopSettings,
    learning_rate: Callable[[int], jax.Array],
    window: MetricsWindow,
    reporter: Reporter,
    stop: StopRequest,
    snapshot: Callable[[TrainState], None],
    save: Callable[[TrainState], dict[str, float]],
    preview: Callable[[TrainState], dict[str, float]],
    rates: Callable[[int, float], dict[str, float]],
    profiler: StepProfiler,
) -> TrainState:
    """Trains from state.step to settings.num_steps, or until `stop`; returns the last state, which has been saved.

    Args:
      train_step: jitted; donates its state.
      batches: on the devices: the batch of step state.step, of the next step, and so on.
      key_of_step: step -> the key of the update that starts from it.
      snapshot: writes averages of a state; before `save` at the same step, so that a checkpoint has its snapshots.
      save: starts saving a state and returns numbers to report (such as the eval loss).
      preview: draws images from a state and returns numbers to report.
      rates: (steps, seconds) since the last report -> numbers to report.

    Raises:
      NonFiniteError: names the step; nothing of that step has been saved.
    """
    step = first_step = int(state.step)
    since, signal_of_all = time.monotonic(), HostMax(mesh)
    early_speed = EarlySpeed(reporter.note, settings, first_step)
    ending = step >= settings.num_steps
    while not ending:
        profiler.before(step)
        state, metrics = train_step(state, next(batches), key_of_step(step))
        if step == first_step:  # the first step includes its compilation
            release_unused_memory()
        step += 1
        profiler.after(step, metrics)
        window.add(metrics)
        window.wait(MAX_AHEAD)
        early_speed.after(step)
        # Read once per step: a signal after this line ends the loop after a later step, which is saved as well.
        ending = step >= settings.num_steps or signal_of_all.ask(stop.signal_number or 0) > 0
        saving = ending or _due(step, settings.checkpoint_every_steps)
        previewing = _due(step, settings.sample_every_steps) and step < settings.num_steps
        if step in settings.snapshot_steps:
            window.wait(0)
            before = time.monotonic()
            snapshot(state)
            since += time.monotonic() - before  # the rates are those of the updates alone
        if saving or previewing or _due(step, settings.log_every_steps):
            is_first, num_steps = step == first_step + len(window), len(window)
            numbers = window.numbers(step)
            numbers["learning_rate"] = float(learning_rate(step - 1))
            measured = rates(num_steps, time.monotonic() - since)
            if not is_first:  # the first rates would include compilation
                numbers |= measured
            if saving:
                _check_finite(state, step)
                numbers |= save(state)
            if previewing:
                numbers |= preview(state)
            reporter.log(step, numbers)
            early_speed.cancel()
            since = time.monotonic()
    return state


def _due(step: int, period: int) -> bool:
    return period > 0 and step % period == 0


@jax.jit
def _all_finite(tree: PyTree) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _check_finite(state: TrainState, step: int) -> None:
    """Raises NonFiniteError if the parameters after `step` are not finite; its loss, before the update, was finite."""
    averages = {f"ema/{name}": tree for name, tree in state.ema.items()}
    for name, tree in {"params": state.params, **averages}.items():
        if not _all_finite(tree):
            raise NonFiniteError(step, f"{name} became NaN or infinite")
