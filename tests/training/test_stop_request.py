"""Signals that stop a run: noted once, answered at once, and then as usual."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from ddpm_jax.training import stop_request
from ddpm_jax.training.stop_request import StopRequest


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_closed_terminal_is_a_request_unless_it_is_ignored():
    for handler, noted in ((signal.SIG_DFL, signal.SIGHUP), (signal.SIG_IGN, None)):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            with StopRequest() as stop:
                signal.raise_signal(signal.SIGHUP)
                assert stop.signal_number == noted
            assert signal.getsignal(signal.SIGHUP) == handler
        finally:
            signal.signal(signal.SIGHUP, before)


def test_first_signal_is_noted_and_the_second_acts():
    # Set here: a shell starts its background jobs with SIGINT ignored.
    before, started_with = signal.default_int_handler, signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.signal_number == signal.SIGINT and signal.getsignal(signal.SIGINT) is before
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, started_with)


# The main thread sees signals only between two of its own instructions: here it is in C for long, as in a compiler.
BLOCKED = """
import hashlib
from ddpm_jax.training import stop_request
stop_request._AT_ONCE_SECONDS = 0
with stop_request.StopRequest():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**28)
"""


@pytest.mark.processes
def test_signals_are_answered_while_the_main_thread_waits():
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    line = process.stderr.readline()
    assert line.startswith("SIGINT: stopping after this step, then the held-out loss and a checkpoint; a second")
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "SIGINT again: ending without saving\n"
    assert process.wait(timeout=15) == 130


def test_a_program_that_goes_on_after_two_signals_is_not_ended(monkeypatch):
    """As in an interactive session: the second signal is a KeyboardInterrupt, and the session stays."""
    ended = []
    monkeypatch.setattr(stop_request, "_AT_ONCE_SECONDS", 0.2)
    monkeypatch.setattr(stop_request.os, "_exit", ended.append)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stop.signal_number == signal.SIGINT
    for thread in threading.enumerate():  # a timer that were still alive would have acted by the end of this
        if isinstance(thread, threading.Timer):
            thread.join()
    assert ended == []


def test_another_listener_stays(capfd):
    """A notebook's event loop hears signals by the same means."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing)
    try:
        with StopRequest():
            pass
        assert signal.set_wakeup_fd(before) == writing
    finally:
        signal.set_wakeup_fd(-1)
        os.close(reading)
        os.close(writing)
    with StopRequest():
        pass
    assert signal.set_wakeup_fd(-1) == -1
