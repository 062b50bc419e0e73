"""The host loop: takes batches, runs steps, reports numbers, and hands out states for saving and sampling.

Ctrl-C, SIGTERM and SIGHUP are requests: the loop finishes its step, saves and returns.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from ddpm_jax.data.batch import Batch
from ddpm_jax.runtime.compilation import release_unused_memory
from ddpm_jax.runtime.multi_host import MAX_AHEAD, HostMax
from ddpm_jax.training.metrics_window import MetricsWindow
from ddpm_jax.training.nonfinite import NonFiniteError
from ddpm_jax.training.profiler import StepProfiler
from ddpm_jax.training.run_log import Reporter
from ddpm_jax.training.train_state import TrainState
from ddpm_jax.training.train_step import TrainStep


class StopRequest:
    """While open, the first SIGINT, SIGTERM or SIGHUP is recorded in `signal_number`; the second has its usual effect.

    A closed terminal sends SIGHUP; a program that was started to ignore it, as by nohup, still does.

    Outside the main thread (in some notebooks) signals cannot be caught, and this does nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))

    def __init__(self):
        self.signal_number: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            hangup = getattr(signal, "SIGHUP", None)
            ignored = hangup is not None and signal.getsignal(hangup) == signal.SIG_IGN
            caught = [number for number in self.SIGNALS if number != hangup or not ignored]
            self._previous = {number: signal.signal(number, self._note) for number in caught}
        return self

    def _note(self, number: int, frame: object) -> None:
        self.signal_number = number
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def __exit__(self, *exception: object) -> None:
        self._give_back()


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
    batches: Iterator[Batch],
    *,
    key_of_step: Callable[[int], jax.Array],
    mesh: Mesh,
    settings: LoopSettings,
    learning_rate: Callable[[int], jax.Array],
    window: MetricsWindow,
    reporter: Reporter,
    stop: StopRequest,
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
      save: starts saving a state and returns numbers to report (such as the eval loss).
      preview: draws images from a state and returns numbers to report.
      rates: (steps, seconds) since the last report -> numbers to report.

    Raises:
      NonFiniteError: names the step; nothing of that step has been saved.
    """
    step = first_step = int(state.step)
    since, signal_of_all = time.monotonic(), HostMax(mesh)
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
        # Read once per step: a signal after this line ends the loop after a later step, which is saved as well.
        ending = step >= settings.num_steps or signal_of_all.ask(stop.signal_number or 0) > 0
        saving = ending or _due(step, settings.checkpoint_every_steps)
        previewing = _due(step, settings.sample_every_steps) and step < settings.num_steps
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
