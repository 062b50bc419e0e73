"""How fast a run is: images a second, share of the hardware's peak, and time spent waiting for data."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ddpm_jax.data.loader import LoaderCounts

_SIDES = {"cpu": 1024, "gpu": 8192, "tpu": 8192}  # of the square matrices whose product is timed


def measured_peak(dtype: DTypeLike, num_devices: int) -> float:
    """FLOP/s of matrix products in `dtype`, measured on one device, times the number of devices; 0 without room for it.

    On CPU the virtual devices of a process share its cores, and one of them may use all.
    """
    backend = jax.default_backend()
    side = _SIDES.get(backend, 4096)
    seconds = []
    try:
        matrix = jnp.ones((side, side), dtype)
        product = jax.jit(lambda a, b: a @ b)
        jax.block_until_ready(product(matrix, matrix))
        for _ in range(5):
            since = time.perf_counter()
            jax.block_until_ready(product(matrix, matrix))
            seconds.append(time.perf_counter() - since)
    except jax.errors.JaxRuntimeError:  # the run fills its device: a figure is not worth its end
        return 0.0
    count = jax.process_count() if backend == "cpu" else num_devices
    return 2.0 * side**3 / float(np.min(seconds)) * count


class Rates:
    """rates(steps, seconds) -> images_per_second, seconds_per_step and, where known, the others.

    Args:
      batch_size: pictures a step, over all devices.
      take_counts: of the `BatchLoader`.
      num_processes: that share the batch.
      step_flops: of one update of the whole batch; 0 where it is not known.
      peak: FLOP/s of all devices; measured when it is first needed.
    """

    def __init__(
        self,
        batch_size: int,
        *,
        take_counts: Callable[[], LoaderCounts] = LoaderCounts,
        num_processes: int = 1,
        step_flops: float = 0.0,
        peak: Callable[[], float] = lambda: 0.0,
    ):
        self._batch_size, self._take_counts, self._num_processes = batch_size, take_counts, num_processes
        self._step_flops, self._measure_peak, self._peak = step_flops, peak, None

    def __call__(self, num_steps: int, seconds: float) -> dict[str, float]:
        """Of so many steps, which took so long; the loader's are of this process's share, times the processes."""
        counts = self._take_counts()
        numbers = {
            "images_per_second": self._batch_size * num_steps / seconds,
            "seconds_per_step": seconds / num_steps,
            "data_wait": min(counts.wait_seconds / seconds, 1.0),
        }
        if counts.load_seconds > 0:
            numbers["loader_images_per_second"] = counts.images * self._num_processes / counts.load_seconds
        if self._step_flops:
            if self._peak is None:
                self._peak = self._measure_peak()
            if self._peak:
                numbers["share_of_peak"] = self._step_flops * num_steps / seconds / self._peak
        return numbers
