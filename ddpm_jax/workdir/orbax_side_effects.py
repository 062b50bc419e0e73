"""Side effects of Orbax: irrelevant messages on the screen, and threads that it leaves behind."""

import functools
import logging
import sys
import threading
import warnings
from typing import Any

from ddpm_jax.runtime.disk_space import is_full

# A save without an eval loss has no metrics, which is normal; a save waits for the previous one by design, however slow
# the disk is.
_NO_NEWS = ("did not provide metrics", "Waiting for previous save to complete")
_THREAD_SECONDS = 10  # how long to wait for a thread of a failed save


@functools.cache
def quiet_orbax() -> None:
    """Hides two kinds of messages: that a save has no eval loss, which is normal, and the tracebacks of a full disk,
    several per tensor, which is raised as one error anyway."""

    def is_news(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        at_exit = isinstance(error, RuntimeError) and "new futures after shutdown" in str(error)
        full = error is not None and is_full(error)
        said = record.getMessage()
        return not (full or at_exit or any(text in said for text in _NO_NEWS))

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(is_news)
    drop_late_callbacks()


def wait_for_threads() -> None:
    """Waits for the background threads of Orbax after a failed save, which would otherwise continue writing."""
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            # Not join: the threads of Orbax would raise the error of the save again.
            threading.Thread.join(thread, _THREAD_SECONDS)


@functools.cache
def drop_late_callbacks() -> None:
    """Hides the messages of Orbax's other reads and writes after the first one has failed."""
    # Writes that had not begun; the garbage collector reports them, often after the one-line error.
    warnings.filterwarnings("ignore", r"coroutine 'async_(de)?serialize\S*' was never awaited", RuntimeWarning)
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
            previous(unraisable)

    sys.unraisablehook = hook
