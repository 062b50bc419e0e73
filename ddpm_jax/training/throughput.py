"""Speed of a run: images per second, share of the hardware's peak, and time spent waiting for data."""

from collections.abc import Callable

from ddpm_jax.data.batch_loader import LoaderCounts


class Throughput:
    """rates(steps, seconds) -> images_per_second, seconds_per_step and, if known, the other rates.

    Args:
      batch_size: images per step, over all devices.
      take_counts: the method of the `BatchLoader`.
      num_processes: number of processes that share the batch.
      step_flops: () -> FLOPs of one update of the whole batch, called at each report; 0 if unknown.
      peak: () -> FLOP/s of all devices, called at each report; 0 if unknown.
    """

    def __init__(
        self,
        batch_size: int,
        *,
        take_counts: Callable[[], LoaderCounts] = LoaderCounts,
        num_processes: int = 1,
        step_flops: Callable[[], float] = lambda: 0.0,
        peak: Callable[[], float] = lambda: 0.0,
    ):
        self._batch_size, self._take_counts, self._num_processes = batch_size, take_counts, num_processes
        self._step_flops, self._peak = step_flops, peak

    def __call__(self, num_steps: int, seconds: float) -> dict[str, float]:
        """The rates over these steps; the loader's rate is that of this process times the number of processes."""
        counts = self._take_counts()
        numbers = {
            "images_per_second": self._batch_size * num_steps / seconds,
            "seconds_per_step": seconds / num_steps,
            "data_wait": min(counts.wait_seconds / seconds, 1.0),
        }
        if counts.load_seconds > 0:
            numbers["loader_images_per_second"] = counts.images * self._num_processes / counts.load_seconds
        if (step_flops := self._step_flops()) and (peak := self._peak()):
            numbers["share_of_peak"] = step_flops * num_steps / seconds / peak
        return numbers
