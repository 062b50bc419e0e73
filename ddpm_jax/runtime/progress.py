"""Progress of a long loop: a bar on a terminal, an occasional line in a log file."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm


def format_duration(seconds: int | float) -> str:
    """`seconds` in a readable form: `42 s`, `3 min 05 s`, `2 h 07 min`, `3 d 04 h`."""
    whole = max(round(seconds), 0)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (unit, size), (smaller, smaller_size) in zip(units, units[1:], strict=False):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller_size:02d} {smaller}"
    return f"{whole} s"


def format_rate(per_second: int | float) -> str:
    """A rate in three digits: `0.0123`, `12.3`, `1234`."""
    return f"{per_second:.0f}" if per_second >= 100 else f"{per_second:.3g}"


def in_notebook() -> bool:
    """Whether this runs in a Jupyter or Colab kernel."""
    # Looked up, not imported: a command does not need IPython, and importing it is slow.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


class ProgressBar:
    """Counts the items of a loop on stderr: a tqdm bar on a terminal or in a notebook, else a few lines.

    The rate, and the time left, are those after the first update, which often waits for a compilation.

    Args:
      total: number of items in the whole loop.
      description: what happens, such as "sampling".
      unit: the name of one item.
      initial: items that were already done, as after resuming.
      enabled: False prints nothing, as on all processes but the first.
      every_seconds: the period of the lines if there is no bar.
      clock: seconds as a function, for tests.

    Example:
      with ProgressBar(total=1000, description="sampling", unit="image") as bar:
          bar.update(64)
    """

    def __init__(self, total: int, description: str, unit: str = "step", *, initial: int = 0,
                 enabled: bool = True, every_seconds: int | float = 30,
                 clock: Callable[[], int | float] = time.monotonic) -> None:
        self._total, self._description, self._unit = total, description, unit
        self._count = initial
        self._enabled, self._every_seconds, self._clock = enabled, every_seconds, clock
        self._start = self._last_line = clock()
        self._first: tuple[int, int | float] | None = None  # the count after the first update, and its time
        self._bar = None
        if enabled and (sys.stderr.isatty() or in_notebook()):
            # The text bar also in notebooks: the widget needs ipywidgets and is lost when a notebook is saved.
            self._bar = self._new_bar(leave=False)

    def _new_bar(self, leave: bool) -> tqdm:
        return tqdm(total=self._total, initial=self._count, desc=self._description, unit=f" {self._unit}", leave=leave,
                    dynamic_ncols=not in_notebook(), smoothing=0.1)

    def update(self, num_done: int = 1) -> None:
        """Counts `num_done` more items."""
        self._count += num_done
        now = self._clock()
        if self._bar is not None and self._first is None:  # another bar, whose clock starts here
            self._bar.close()
            self._bar = self._new_bar(leave=True)
        elif self._bar is not None:
            self._bar.update(num_done)
        if self._first is None:
            self._first = self._count, now
        if self._enabled and self._bar is None:
            done = self._count >= self._total
            if done or now - self._last_line >= self._every_seconds:
                self._last_line = now
                print(self._line(now), file=sys.stderr, flush=True)

    def _line(self, now: int | float) -> str:
        count, since = self._first
        rate = (self._count - count) / max(now - since, 1e-9)
        width = len(str(self._total))
        parts = [f"{self._description}: {self._count:>{width}}/{self._total} {self._unit}s"]
        if rate > 0:
            parts.append(f"{format_rate(rate)} {self._unit}s/s")
        if self._count >= self._total:
            parts.append(f"took {format_duration(now - self._start)}")
        elif rate > 0:
            parts.append(f"{format_duration((self._total - self._count) / rate)} left")
        else:
            parts.append("time left unknown")
        return ", ".join(parts)

    def write(self, line: str) -> None:
        """Prints a line on stderr without breaking the bar."""
        if self._enabled:
            tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leaves the bar at its current position."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
