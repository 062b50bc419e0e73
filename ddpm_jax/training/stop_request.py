"""Signals that stop a run are requests: the loop finishes its step, saves and returns."""

import os
import signal
import sys
import threading

from ddpm_jax.runtime.progress import in_notebook

_AT_ONCE_SECONDS = 5  # after a second signal, for the main thread to end by itself


class StopRequest:
    """While open, the first SIGINT, SIGTERM or SIGHUP is recorded in `signal_number`; the second has its usual effect.

    Both are answered on stderr at once, even while the main thread waits for the compiler, in which it sees no signal.
    A closed terminal sends SIGHUP; a program that was started to ignore it, as by nohup, still does.

    Outside the main thread (in some notebooks) signals cannot be caught, and this does nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))

    def __init__(self):
        self.signal_number: int | None = None
        self._previous: dict[int, object] = {}
        self._echo: _Echo | None = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            hangup = getattr(signal, "SIGHUP", None)
            ignored = hangup is not None and signal.getsignal(hangup) == signal.SIG_IGN
            caught = [number for number in self.SIGNALS if number != hangup or not ignored]
            self._previous = {number: signal.signal(number, self._note) for number in caught}
            self._echo = _Echo.open(caught)
        return self

    def _note(self, number: int, frame: object) -> None:
        self.signal_number = number
        self._give_back()
        # Signals that came while the main thread was in C arrive as one: the second has its usual effect now.
        if self._echo is not None and self._echo.came_back() > 1:
            signal.raise_signal(number)

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def __exit__(self, *exception: object) -> None:
        self._give_back()
        if self._echo is not None:
            self._echo.close()
            self._echo = None


class _Echo:
    """A thread that hears of signals as they arrive, through `signal.set_wakeup_fd`."""

    def __init__(self, numbers: list[int], reading: int, writing: int):
        self._numbers, self._reading, self._writing = set(numbers), reading, writing
        self._forced_end: threading.Timer | None = None
        self._closed = False
        self._heard = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, name="ddpm_jax-signals", daemon=True).start()

    @classmethod
    def open(cls, numbers: list[int]) -> "_Echo | None":
        """None where another part of the program, such as the event loop of a notebook, hears the signals."""
        if not hasattr(os, "set_blocking") or in_notebook():  # Windows; a notebook's kernel must not be ended
            return None
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        if before != -1:
            signal.set_wakeup_fd(before, warn_on_full_buffer=False)
            os.close(reading)
            os.close(writing)
            return None
        return cls(numbers, reading, writing)

    def _listen(self) -> None:
        with open(self._reading, "rb", buffering=0) as file:
            while number := file.read(1):
                if number[0] not in self._numbers:
                    continue
                with self._lock:
                    self._heard += 1
                    heard = self._heard
                name = signal.Signals(number[0]).name
                if heard == 1:
                    self._say(
                        f"{name}: stopping after this step, then the held-out loss and a checkpoint; a second one ends "
                        "the run at once, without saving"
                    )
                else:
                    self._say(f"{name} again: ending without saving")
                    self._end_by_force(128 + number[0])

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def came_back(self) -> int:
        """To be called by the main thread, which is alive: no forced end. Returns how many signals were heard."""
        with self._lock:
            if self._forced_end is not None:
                self._forced_end.cancel()
            return self._heard

    def _end_by_force(self, exit_code: int) -> None:
        """Ends the process, unless the main thread comes back in time: it may belong to more than this run."""
        with self._lock:
            if not self._closed and self._forced_end is None:
                self._forced_end = threading.Timer(_AT_ONCE_SECONDS, os._exit, [exit_code])
                self._forced_end.daemon = True
                self._forced_end.start()

    def close(self) -> None:
        """Ends the thread, and a forced end that has not come yet."""
        with self._lock:
            self._closed = True
            if self._forced_end is not None:
                self._forced_end.cancel()
        signal.set_wakeup_fd(-1)
        os.close(self._writing)
