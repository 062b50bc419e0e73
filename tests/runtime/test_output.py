"""Output that goes away stops nothing."""

import errno
import io
import os
import sys

import pytest

from ddpm_jax.runtime.command_line import CommandParser, run
from ddpm_jax.runtime.output import TolerantStream, tolerant_output


class Broken(io.StringIO):
    """A stream that takes `room` characters."""

    def __init__(self, number, room=5):
        super().__init__()
        self._number, self._room = number, room

    def write(self, text):
        if self.tell() + len(text) > self._room:
            raise OSError(self._number, os.strerror(self._number))
        return super().write(text)


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_what_cannot_be_written_is_dropped_with_one_note(number):
    stream, notes = Broken(number), io.StringIO()
    tolerant = TolerantStream(stream, "standard output", note_on=notes)
    for text in ("four", "more", "and more"):
        print(text, end="", file=tolerant, flush=True)
    tolerant.writelines(["a", "b"])
    assert stream.getvalue() == "four" and tolerant.error.errno == number
    assert notes.getvalue() == (
        f"note: standard output cannot be written ({os.strerror(number)}); nothing more is printed there\n"
    )


def test_a_stream_that_works_is_as_before(capsys):
    before = sys.stdout
    with tolerant_output() as output:
        print("hello")
        print("there", file=sys.stderr)
        assert output.error is None and output.encoding == before.encoding and not output.isatty()
    assert sys.stdout is before and capsys.readouterr() == ("hello\n", "there\n")


@pytest.mark.parametrize(
    ("number", "result", "expected"),
    [(errno.EPIPE, None, 0), (errno.ENOSPC, None, 74), (errno.EIO, 0, 74), (errno.ENOSPC, 130, 130)],
)
def test_the_exit_code_says_whether_output_was_lost(number, result, expected, monkeypatch):
    done = []

    def main(args):
        print("more than it takes")
        done.append("the work after it")
        return result

    monkeypatch.setattr(sys, "stdout", Broken(number))
    parser = CommandParser("sample", "Tests.", "none", compiles=False)
    assert run(main, parser, []) == expected and done == ["the work after it"]
