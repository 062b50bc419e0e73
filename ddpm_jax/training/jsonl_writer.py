"""A JSONL writer that buffers its lines while the disk is full."""

import os
import sys
from pathlib import Path


class JsonlWriter:
    """Appends lines to a file. Each is written completely and at once, so that a reader sees it and a kill loses
    nothing.

    If a line cannot be written, as on a full disk, one warning is printed. That line and the following ones are kept
    in memory and written as soon as possible.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        self._file = open(path, "ab", buffering=0)
        self._waiting: list[str] = []  # lines
        self._warned = False

    def append(self, line: str) -> None:
        """Writes `line`, given without its newline, after the lines that wait."""
        self._waiting.append(line)
        try:
            self._write_waiting()
        except OSError as error:
            if not self._warned:
                self._say(f"cannot be written ({error.strerror}): its lines are kept in memory until it can")
            self._warned = True

    def close(self) -> None:
        """Writes the waiting lines; if that fails, they are lost, with a warning. A second call does nothing."""
        try:
            if not self._file.closed:
                self._write_waiting()
        except OSError as error:
            self._say(f"lacks its last {len(self._waiting)} lines ({error.strerror})")
        finally:
            self._file.close()

    def _write_waiting(self) -> None:
        if not self._waiting:
            return
        text = "".join(f"{line}\n" for line in self._waiting).encode()
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = 0
            while written < len(text):  # a disk that becomes full accepts only the first part
                written += self._file.write(text[written:])
        except OSError:
            os.ftruncate(self._file.fileno(), size)  # part of a line would corrupt the next one
            raise
        self._waiting = []
        if self._warned:
            self._say("can be written again, and is complete")
        self._warned = False

    def _say(self, text: str) -> None:
        print(f"warning: {self._path} {text}", file=sys.stderr, flush=True)
