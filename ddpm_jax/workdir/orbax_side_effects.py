"""Side effects of Orbax: messages on the screen that are no news, and threads that it leaves behind."""

import functools
import logging
import sys
import threading
import warnings
from typing import Any

from ddpm_jax.runtime.disk_space import is_full

# A save without an eval loss has none, which is no fault; a save waits for the one before by design, however slow the
# disk is.
_NO_NEWS = ("did not provide metrics", "Waiting for previous save to complete")
_THREAD_SECONDS = 10  # for which a thread of a save that failed is waited


@functools.cache
def quiet_orbax() -> None:
    """Keeps off the screen that a save without an eval loss has none, and the tracebacks of a full disk, several a
    tensor: the first is no fault, and the second is raised as one error anyhow."""

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
    """Waits for what Orbax still does in the background after a save failed: it would go on writing."""
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            # Not join: those of Orbax raise the error of the save once more.
            threading.Thread.join(thread, _THREAD_SECONDS)


@functools.cache
def drop_late_callbacks() -> None:
    """Keeps off the screen what Orbax's other reads and writes say when the first one has failed."""
    # Writes that had not begun, found by the garbage collector, often after the one line of the error.
    warnings.filterwarnings("ignore", r"coroutine 'async_(de)?serialize\S*' was never awaited", RuntimeWarning)
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
            previous(unraisable)

    sys.unraisablehook = hook
