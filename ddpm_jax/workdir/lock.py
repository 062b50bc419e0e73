"""A lock that allows only one training run at a time in a workdir."""

import datetime
import errno
import json
import os
import socket
import sys
from pathlib import Path
from typing import IO

from ddpm_jax.runtime import multi_host
from ddpm_jax.runtime.errors import UserError

LOCK_FILE = "train.lock"
_UNNAMED = "another run"  # a holder that has not written its name yet
_HELD = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)


class WorkdirLock:
    """Holds <workdir>/train.lock until `release`; the operating system releases it when the process ends.

    So a killed run leaves nothing that must be cleaned up: the file may remain, but its lock does not. If several
    processes share a run, process 0 holds the lock.

    Limits: `flock` works between the processes of one machine. On NFS it works between machines if the server and the
    mount support locks, and otherwise fails or is local to a machine; object stores mounted as folders mostly have no
    locks. If the file system or the operating system refuses locks, a note says so, and the user must make sure that no
    two runs train in one workdir.

    Args:
      workdir: an existing folder.

    Raises:
      UserError: another run trains in it.
    """

    def __init__(self, workdir: str | os.PathLike):
        self._path = os.path.join(workdir, LOCK_FILE)
        self._file: IO[bytes] | None = None
        holder = self._acquire() if multi_host.is_first() else None
        # All processes or none: one that continued would wait for ever for the others.
        if multi_host.broadcast_from_first(holder is not None):
            raise UserError(
                f"--workdir {os.fspath(workdir)} is in use: {holder or 'another run'} trains in it; wait until it "
                "ends, stop it, or give another folder"
            )

    def _acquire(self) -> str | None:
        """Takes the lock; returns the present holder if there is one, else None."""
        while True:
            file = open(self._path, "ab+", buffering=0)
            try:
                _lock(file)
            except OSError as error:
                with file:
                    if error.errno in _HELD:
                        return _read(file)
                    if not os.fstat(file.fileno()).st_size:
                        Path(self._path).unlink(missing_ok=True)  # it would look like a lock
                print(f"note: {os.path.dirname(self._path)} cannot be locked ({error.strerror}): make sure that no "
                      "second run trains in it", file=sys.stderr, flush=True)
                return None
            if _same_file(file, self._path):
                break
            file.close()  # the holder deleted it after we opened it and before we locked it
        self._file = file
        self._write_holder()
        return None

    def _write_holder(self) -> None:
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        try:
            self._file.truncate(0)
            holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": now}
            self._file.write(json.dumps(holder).encode())
        except OSError as error:  # a full disk; the lock itself needs no space
            print(f"note: {self._path} does not name its holder ({error.strerror})", file=sys.stderr, flush=True)

    def release(self) -> None:
        """Releases the lock; a second call does nothing."""
        if self._file is not None:
            Path(self._path).unlink(missing_ok=True)  # while locked, so that nobody else can hold the deleted file
            self._file.close()
            self._file = None


def holder(workdir: str | os.PathLike) -> str | None:
    """A description of the run that trains in a workdir, or None; the lock itself is not touched.

    A run that was killed on this machine has left its file, and is recognised because its process no longer exists.
    For a run that was killed on another machine only that machine can tell.
    """
    path = os.path.join(workdir, LOCK_FILE)
    try:
        with open(path, "rb") as file:
            text = file.read()
        found = json.loads(text)
        if found["host"] == socket.gethostname():
            os.kill(found["pid"], 0)  # sends no signal, only asks whether the process exists
    except (FileNotFoundError, ProcessLookupError):
        return None
    except PermissionError:
        pass  # a process of another user
    except (ValueError, KeyError, TypeError):
        return _UNNAMED
    return _described(found)


def _lock(file: IO[bytes]) -> None:
    """Raises OSError if the file is already locked, or cannot be locked."""
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise OSError(errno.ENOSYS, "this operating system has no flock") from error
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _same_file(file: IO[bytes], path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _read(file: IO[bytes]) -> str:
    """The holder of a lock, as text."""
    file.seek(0)
    try:
        return f"{_described(json.load(file))},"
    except (ValueError, KeyError, TypeError):
        return _UNNAMED


def _described(holder: dict) -> str:
    return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
