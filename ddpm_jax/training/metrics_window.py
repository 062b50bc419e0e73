"""The numbers of the steps since the last report: means, largest loss, non-finite values, and spikes."""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, no_type_check

import jax
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.training.nonfinite import NonFiniteError

# A spike is a loss this many standard deviations above the mean of the losses before it.
SPIKE_DEVIATIONS, SPIKE_MEMORY, SPIKE_LEAST = 8.0, 200, 50


@no_type_check
class Binned(NamedTuple):
    """A metric in bins, such as the loss by t; its mean over many steps is the sum of totals over the sum of counts."""

    total: Float[Array, "bins"]
    count: Float[Array, "bins"]


class MetricsWindow:
    """Metrics that are still on the device, one entry per step, until `numbers` fetches them.

    Args:
      skip_limit: steps in a row that the train step may skip because the loss is not finite; one more is an error.
      on_skip: called with the NonFiniteError of each skipped step.
      on_spike: called with (step, loss, mean before, standard deviation before).
    """

    def __init__(
        self,
        *,
        skip_limit: int = 0,
        on_skip: Callable[[NonFiniteError], None] = lambda error: None,
        on_spike: Callable[[int, float, float, float], None] = lambda *numbers: None,
    ):
        self._pending: list[dict] = []
        self._skip_limit, self._on_skip, self._on_spike = skip_limit, on_skip, on_spike
        self._skips_in_a_row = 0
        self._earlier: deque[float] = deque(maxlen=SPIKE_MEMORY)

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, metrics: dict) -> None:
        """Adds the metrics of the next step."""
        self._pending.append(metrics)

    def wait(self, ahead: int) -> None:
        """Blocks until the device is at most `ahead` steps behind."""
        if len(self._pending) > ahead:
            jax.block_until_ready(self._pending[-1 - ahead])

    def numbers(self, step: int) -> dict[str, float]:
        """Means over the steps of the window, of which `step` is the last; empties the window.

        Raises:
          NonFiniteError: a loss or a gradient is not finite and was not skipped.
        """
        fetched, self._pending = jax.device_get(self._pending), []
        used = []
        for number, metrics in enumerate(fetched, start=step - len(fetched) + 1):
            if self._is_finite(number, metrics):
                used.append(metrics)
                self._look_for_spike(number, float(metrics["loss"]))
        numbers = {"skipped_steps": float(len(fetched) - len(used))} if len(used) < len(fetched) else {}
        if not used:
            return numbers
        total = jax.tree.map(lambda *values: np.sum(values, axis=0), *used)
        means = {name: float(value / len(used)) for name, value in total.items() if not isinstance(value, Binned)}
        numbers = means | {"loss_max": float(max(metrics["loss"] for metrics in used))} | numbers
        for name, value in total.items():
            if isinstance(value, Binned):
                numbers |= _means_of_bins(name, value)
        return numbers

    def _is_finite(self, step: int, metrics: dict) -> bool:
        """Whether the update was made; raises NonFiniteError if it was not and may not be skipped."""
        for name in ("loss", "grad_norm"):
            if np.isfinite(metrics[name]):
                continue
            error = NonFiniteError(step, f"{name} became {metrics[name]}")
            self._skips_in_a_row += 1
            if self._skips_in_a_row > self._skip_limit:
                raise error
            self._on_skip(error)
            return False
        self._skips_in_a_row = 0
        return True

    def _look_for_spike(self, step: int, loss: float) -> None:
        if len(self._earlier) >= SPIKE_LEAST:
            mean, deviation = float(np.mean(self._earlier)), float(np.std(self._earlier))
            if loss > mean + SPIKE_DEVIATIONS * deviation:
                self._on_spike(step, loss, mean, deviation)
        self._earlier.append(loss)


def _means_of_bins(name: str, value: Binned) -> dict[str, float]:
    """NAME1of4 and so on, for the bins that are not empty."""
    num_bins = len(value.total)
    return {
        f"{name}{i + 1}of{num_bins}": float(value.total[i] / value.count[i]) for i in range(num_bins) if value.count[i]
    }
