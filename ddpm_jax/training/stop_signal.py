"""Ctrl-C and SIGTERM as a request: the loop ends after its step, saves, and leaves."""

import signal
import threading


class StopRequest:
    """While open, the first SIGINT or SIGTERM is noted in `signal_number`; the second acts as usual.

    Outside the main thread (some notebooks) signals cannot be caught, and this does nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.signal_number: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def _note(self, number: int, frame: object) -> None:
        self.signal_number = number
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def __exit__(self, *exception: object) -> None:
        self._give_back()
