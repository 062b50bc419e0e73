"""Prepares batches ahead of time in one background thread."""

import queue
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ddpm_jax.data.condition import ConditionSpec
from ddpm_jax.data.image_source import ImageSource, check_columns, load_rows
from ddpm_jax.data.shuffling import batch_indices
from ddpm_jax.runtime.errors import UserError, arg


@dataclass(frozen=True)
class LoaderCounts:
    """The work of a loader since the last call of `take_counts`."""

    images: int = 0  # loaded by this process
    load_seconds: float = 0.0  # time to load them: images / load_seconds is the loader's own speed
    wait_seconds: float = 0.0  # time that `next` waited for a batch


class BatchLoader:
    """Infinite iterator over this process's share of batch first_step, first_step + 1, ....

    Process p of P gets rows [p * B/P, (p + 1) * B/P) of the global batch: contiguous blocks, so that the
    blocks concatenated in process order are the same global batch, in the same order, for every P. The step is the only
    state to save: a loader that starts at step k gives the same batches as any other from batch k on.

    An error while loading is raised, unchanged, by the `next` that would have returned that batch; earlier
    batches still arrive. `close` (or leaving the `with` block, or the end of the program) stops the
    thread; after it, `next` raises StopIteration.

    Args:
        source: where the images come from.
        batch_size: B, images in the global batch, a multiple of process_count.
        seed, first_step: see `batch_indices`.
        process_index, process_count: p in 0..P-1, and P.
        num_prefetch: batches to keep ready, at least 1.
        spec: the columns of the source that the network gets as its condition.
        transform: applied to every batch in the background thread, such as the copy to the devices, which then
            overlaps with the training. num_prefetch + 1 of its results exist in addition to those in use.
        batch_of_step: step -> the number of its batch, for a run that has left some batches out.
        clock: seconds as a function, for tests.

    Yields:
        `Batch` of B/P images, or the result of `transform` for it.

    Raises:
        UserError: process_count does not divide batch_size, or the source is empty.

    Example:
        >>> from ddpm_jax.data import make_source
        >>> digits = make_source(name="digits", image_size=(8, 8), num_channels=1)
        >>> with BatchLoader(digits, batch_size=32, seed=0, first_step=0) as loader:
        ...     next(loader).image.shape
        (32, 8, 8, 1)
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        batch_size: int,
        seed: int,
        first_step: int,
        process_index: int = 0,
        process_count: int = 1,
        num_prefetch: int = 2,
        spec: ConditionSpec | None = None,
        transform: Callable[[Any], Any] | None = None,
        batch_of_step: Callable[[int], int] = lambda step: step,
        clock: Callable[[], float] = time.perf_counter,
    ):
        if batch_size < 1 or batch_size % process_count:
            raise UserError(
                f"{arg('batch_size')} must be a positive multiple of the number of processes, "
                f"{process_count}; got {batch_size}"
            )
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index must be in 0..{process_count - 1}; got {process_index}")
        if num_prefetch < 1:
            raise ValueError(f"num_prefetch must be at least 1; got {num_prefetch}")
        if first_step < 0:
            raise ValueError(f"first_step must be at least 0; got {first_step}")
        if not len(source):
            raise UserError(f"{arg('source')} holds no images")
        share = batch_size // process_count
        rows = slice(process_index * share, (process_index + 1) * share)

        spec = spec or {}
        check_columns(source, spec)

        tally = self._tally = _Tally()
        self._clock = clock

        def load_step(step: int) -> Any:
            since = clock()
            number = batch_of_step(step)
            indices = batch_indices(seed=seed, step=number, batch_size=batch_size, num_examples=len(source))
            batch = load_rows(source, indices[rows], spec)
            batch = batch if transform is None else transform(batch)
            tally.add(images=share, load_seconds=clock() - since)
            return batch

        self._ready: queue.Queue = queue.Queue(maxsize=num_prefetch)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        # The thread has no reference to self: a loader that is dropped without `close` is collected, and
        # the finaliser (which also runs when the interpreter exits) ends the thread.
        thread = threading.Thread(
            target=_fill,
            args=(load_step, first_step, self._ready, self._stop),
            name="ddpm_jax-batches",
            daemon=True,
        )
        self._close = weakref.finalize(self, _end, thread, self._ready, self._stop)
        thread.start()

    def __iter__(self) -> "BatchLoader":
        return self

    def __next__(self) -> Any:
        if self._error is None and not self._stop.is_set():
            since = self._clock()
            batch, self._error = self._ready.get()
            self._tally.add(wait_seconds=self._clock() - since)
            if self._error is None and batch is not None:
                return batch
        if self._error is not None:
            raise self._error
        raise StopIteration

    def take_counts(self) -> LoaderCounts:
        """The counts since the last call (or the start); may be called from any thread at any time."""
        return self._tally.take()

    def close(self) -> None:
        """Stops the background thread and waits for it. May be called twice."""
        self._close()

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Tally:
    """Counts that two threads update."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = LoaderCounts()

    def add(self, images: int = 0, load_seconds: float = 0.0, wait_seconds: float = 0.0) -> None:
        with self._lock:
            so_far = self._counts
            self._counts = LoaderCounts(
                so_far.images + images, so_far.load_seconds + load_seconds, so_far.wait_seconds + wait_seconds
            )

    def take(self) -> LoaderCounts:
        with self._lock:
            counts, self._counts = self._counts, LoaderCounts()
        return counts


def _fill(load_step, step: int, ready: queue.Queue, stop: threading.Event) -> None:
    """Puts (batch, None) for step, step + 1, ..., or (None, error) after an error, until `stop` is set."""
    while not stop.is_set():
        try:
            item = (load_step(step), None)
        except BaseException as error:  # any exception: otherwise the consumer would wait for ever
            item = (None, error)
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)  # wakes up regularly to check `stop`
                break
            except queue.Full:
                continue
        if item[1] is not None:
            return
        step += 1


def _end(thread: threading.Thread, ready: queue.Queue, stop: threading.Event) -> None:
    stop.set()
    # A load that hangs (on a network disk) must not delay the exit; the thread is a daemon.
    if thread is not threading.current_thread():
        thread.join(timeout=5.0)
    while True:  # drops the batches, then wakes a consumer that waits in another thread
        try:
            ready.get_nowait()
        except queue.Empty:
            break
    try:
        ready.put_nowait((None, None))
    except queue.Full:  # a last batch of a thread that hung, which wakes the consumer as well
        pass
