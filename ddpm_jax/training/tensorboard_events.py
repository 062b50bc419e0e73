"""The TensorBoard events of a run."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

_FLUSH_SECONDS = 120  # a flush waits for the disk


class TensorboardEvents:
    """Writes scalars and images for TensorBoard, in this thread.

    tensorboardX's own writer uses another thread, which dies when the disk is full; its queue then blocks training for
    ever. Here a warning says that the disk is full, and no more events are written; a run can do without them.

    Args:
      workdir: the folder of the run.
      start_step: the step that the run continues from; TensorBoard hides later steps of earlier files.
      clock: seconds as a function.

    Raises:
      ImportError: tensorboardX is not installed.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int, clock: Callable[[], float] = time.monotonic):
        with _without_torch():
            from tensorboardX import summary
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2

        self._summary, self._proto, self._clock = summary, event_pb2, clock
        # The suffix is needed because file names contain whole seconds: a process that follows at once would overwrite
        # the file of the process before it.
        prefix = os.path.join(os.fspath(workdir), "events")
        self._writer: Any = None
        self._flushed = clock()
        self._guarded(lambda: self._open(EventsWriter, prefix, start_step))

    def _open(self, writer: Callable[[str, str], Any], prefix: str, start_step: int) -> None:
        self._writer = writer(prefix, f".{start_step}")
        if start_step:
            now, step = time.time(), start_step + 1
            self._writer.write_event(self._proto.Event(wall_time=now, step=step, file_version="brain.Event:2"))
            start = self._proto.SessionLog(status=self._proto.SessionLog.START)
            self._writer.write_event(self._proto.Event(wall_time=now, step=step, session_log=start))
        self._writer.flush()

    def scalar(self, name: str, value: float, step: int) -> None:
        """Records one number of a step."""
        if self._writer is not None:
            self._add(self._summary.scalar(name, value), step)

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Records the numbers of a step by name."""
        for name, value in numbers.items():
            self.scalar(name, value, step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """Records a uint8 image [H, W] or [H, W, C] of a step."""
        if self._writer is not None:
            self._add(self._summary.image(name, image, dataformats="HWC" if image.ndim == 3 else "HW"), step)

    def close(self) -> None:
        """Writes all buffered data; a second call does nothing."""
        if self._writer is not None:
            self._guarded(self._writer.close)
            self._writer = None

    def _add(self, summary: Any, step: int) -> None:
        def add() -> None:
            self._writer.write_event(self._proto.Event(wall_time=time.time(), step=step, summary=summary))
            if self._clock() - self._flushed > _FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = self._clock()

        self._guarded(add)

    def _guarded(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except OSError as error:
            self._writer = None
            print(f"warning: no more TensorBoard events, because they cannot be written "
                  f"({error.strerror}); metrics.jsonl has the same numbers", file=sys.stderr, flush=True)


@contextmanager
def _without_torch() -> Iterator[None]:
    """Hides PyTorch from imports in the block: tensorboardX imports it if it is installed, which takes some seconds and
    200 MB, and works without it."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None
    try:
        yield
    finally:
        del sys.modules["torch"]
