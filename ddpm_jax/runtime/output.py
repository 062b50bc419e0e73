"""Standard output and error that may go away: a closed pipe, a closed terminal, a full disk. Work goes on without."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any


class TolerantStream:
    """A text stream whose writes never raise: after the first that fails, the rest is dropped.

    Attributes:
      error: of the first write that failed; None if all went well.
    """

    def __init__(self, stream: IO[str], name: str, note_on: IO[str] | None = None):
        self._stream, self._name, self._note_on = stream, name, note_on
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Writes to the stream; len(text) in any case."""
        if self.error is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._fail(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Writes each line."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flushes the stream."""
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.error = error
        # What is still in the buffer would raise at the end of the program; a stream without a file has none.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            number, null = self._stream.fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
        if self._note_on is not None:
            print(f"note: {self._name} cannot be written ({error.strerror}); nothing more is printed there",
                  file=self._note_on, flush=True)  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def tolerant_output() -> Iterator[TolerantStream]:
    """While open, sys.stdout and sys.stderr are TolerantStreams; the value is that of stdout."""
    out, err = sys.stdout, sys.stderr
    # Python has None for a stream that was closed when it started, and prints nothing there.
    tolerant_err = TolerantStream(err if err is not None else io.StringIO(), "standard error")
    tolerant_out = TolerantStream(out if out is not None else io.StringIO(), "standard output", note_on=tolerant_err)
    sys.stdout, sys.stderr = tolerant_out, tolerant_err
    try:
        yield tolerant_out
    finally:
        tolerant_out.flush()
        tolerant_err.flush()
        sys.stdout, sys.stderr = out, err
