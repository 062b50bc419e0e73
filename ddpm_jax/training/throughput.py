"""How fast a run is: images a second, share of the hardware's peak, and time spent waiting for data."""

from collections.abc import Callable

from ddpm_jax.data.batch_loader import LoaderCounts


class Throughput:
    """rates(steps, seconds) -> images_per_second, seconds_per_step and, where known, the others.

    Args:
      batch_size: images a step, over all devices.
      take_counts: of the `BatchLoader`.
      num_processes: that share the batch.
      step_flops: () -> FLOPs of one update of the whole batch, asked at each report; 0 where that is not known.
      peak: () -> FLOP/s of all devices, asked likewise; 0 where it is not known.
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
        """Of so many steps, which took so long; the loader's are of this process's share, times the processes."""
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
