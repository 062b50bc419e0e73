"""One training run at a time in a workdir: a second is refused, a killed one leaves no lock."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from ddpm_jax import train as train_command
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.workdir import lock as workdir_lock
from ddpm_jax.workdir.checkpoints import Checkpoints
from ddpm_jax.workdir.lock import LOCK_FILE, WorkdirLock

pytest.importorskip("fcntl")

HOLD = """
import sys
from ddpm_jax.workdir.lock import WorkdirLock
lock = WorkdirLock(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


@pytest.fixture
def holder(own_run):
    """A process that holds the lock of `own_run` until its input ends."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(own_run)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate(timeout=60)


def test_a_second_run_is_refused(holder, own_run, tiny_flags, sample_main, tmp_path, capsys):
    before = sorted(own_run.rglob("*"))
    argv = [*tiny_flags, "--config.train.num_steps=10", f"--workdir={own_run}"]
    assert train_command.main(argv) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(
        rf"error: --workdir {own_run} is in use: process {holder.pid} on {socket.gethostname()}, since "
        r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d, trains in it; wait until it ends, stop it, or give another "
        r"folder\n",
        err,
    )
    assert sorted(own_run.rglob("*")) == before
    # Reading needs no lock.
    argv_sample = [f"--workdir={own_run}", "--num_samples=2", f"--out={tmp_path}/x", "--nocompilation_cache"]
    assert sample_main(argv_sample) == 0
    assert Checkpoints(str(own_run)).steps() == [2, 4, 6, 8]
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=60)
    assert (own_run / LOCK_FILE).exists()  # but nobody holds it
    capsys.readouterr()
    assert train_command.main(argv) == 0
    assert not (own_run / LOCK_FILE).exists()


def test_a_lock_given_back_is_free(holder, own_run):
    holder.communicate(timeout=60)
    assert holder.returncode == 0 and not (own_run / LOCK_FILE).exists()
    lock = WorkdirLock(own_run)
    assert json.loads((own_run / LOCK_FILE).read_text())["pid"] == os.getpid()
    with pytest.raises(UserError, match=rf"is in use: process {os.getpid()} on "):
        WorkdirLock(own_run)
    lock.release()
    lock.release()
    WorkdirLock(own_run).release()


def test_the_lock_of_a_file_that_was_deleted_is_none(tmp_path, monkeypatch):
    """The holder deletes the file between our opening and our locking: we must not hold what nobody else can see."""
    holding = WorkdirLock(tmp_path)
    real, calls = workdir_lock._lock, []

    def lock(file):
        if not calls:
            holding.release()
        calls.append(file)
        real(file)

    monkeypatch.setattr(workdir_lock, "_lock", lock)
    second = WorkdirLock(tmp_path)
    assert len(calls) == 2
    monkeypatch.undo()
    with pytest.raises(UserError, match="is in use"):
        WorkdirLock(tmp_path)
    second.release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks(number, own_run, tiny_flags, monkeypatch, capsys):
    def lock(file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(workdir_lock, "_lock", lock)
    assert train_command.main([*tiny_flags, f"--workdir={own_run}"]) == 0
    assert capsys.readouterr().err == (
        f"note: {own_run} cannot be locked ({os.strerror(number)}): make sure that no second run trains in it\n"
    )


def test_a_holder_that_has_not_said_who_it_is(tmp_path):
    lock = WorkdirLock(tmp_path)
    (tmp_path / LOCK_FILE).write_bytes(b"")
    with pytest.raises(UserError, match="is in use: another run trains in it; wait"):
        WorkdirLock(tmp_path)
    lock.release()


def test_a_run_that_cannot_be_opened_leaves_no_lock(own_run):
    (own_run / "damaged_checkpoints").write_text("")  # a file where a folder is needed
    (own_run / "checkpoints" / "8" / "metrics" / "metrics").write_text('{"eval')
    with pytest.raises(OSError):
        Checkpoints(str(own_run), create=True)
    assert not (own_run / LOCK_FILE).exists()


@pytest.mark.parametrize(
    "make, what",
    [
        (lambda path, target: path.symlink_to(target), "it is a link"),
        (lambda path, target: path.mkdir(), "Is a directory"),
        (lambda path, target: os.mkfifo(path), "it is no regular file"),
    ],
    ids=["link", "folder", "pipe"],
)
def test_a_lock_that_is_no_file_is_refused_and_nothing_is_written(make, what, tmp_path):
    target = tmp_path / "others"
    target.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    make(run / LOCK_FILE, target)
    with pytest.raises(UserError) as error:
        WorkdirLock(run)
    remedy = "make sure that no run trains there, and delete it"
    assert str(error.value) == f"{run / LOCK_FILE} cannot be opened ({what}): {remedy}"
    assert target.read_text() == "mine"
    assert workdir_lock.holder(run) in (None, "another run")  # --status reads it without hanging


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"host": "evil\x1b[2J\nhost"}, "another run"),
        ({"pid": 10**20}, "another run"),
        ({"pid": -1}, "another run"),
        ({"pid": 2**40}, None),  # no process has such a number
        ({"since": 5}, "another run"),
        ({"started": 1}, None),  # another process has the number now
        ({"host": "another"}, "process {pid} on another, since now"),
        ({}, "process {pid} on {host}, since now"),
    ],
)
def test_what_the_file_may_say(changes, expected, tmp_path):
    pid, host = os.getpid(), socket.gethostname()
    text = {"host": host, "pid": pid, "since": "now", "started": workdir_lock._started(pid)} | changes
    (tmp_path / LOCK_FILE).write_text(json.dumps(text))
    found = workdir_lock.holder(tmp_path)
    assert found == (expected and expected.format(pid=pid, host=host))


@pytest.mark.parametrize("text", [b"", b"[" * 5000, b"\xff", b"{}", b"[1]", b"x" * 20_000])
def test_a_damaged_lock(text, tmp_path):
    (tmp_path / LOCK_FILE).write_bytes(text)
    assert workdir_lock.holder(tmp_path) == "another run"
