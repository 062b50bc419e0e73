"""A lock that allows only one training run at a time in a workdir."""

import datetime
import errno
import json
import os
import socket
import stat
import sys
from pathlib import Path
from typing import IO

from ddpm_jax.runtime import multi_host
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.runtime.json_files import is_count, parse_json, read_limited

LOCK_FILE = "train.lock"
_UNNAMED = "another run"  # a holder that has not written its name yet
_MAX_BYTES = 10_000  # of the file
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
      UserError: another run trains in it, or its train.lock is no file that can be opened and locked.
    """

    def __init__(self, workdir: str | os.PathLike):
        self._path = os.path.join(workdir, LOCK_FILE)
        self._file: IO[bytes] | None = None
        holder, fault = None, None
        if multi_host.is_first():
            try:
                holder = self._acquire()
            except _NoFile as error:
                fault = error
        # All processes or none: one that continued would wait for ever for the others.
        refused = multi_host.broadcast_from_first(2 if fault else int(holder is not None))
        if refused == 2:
            raise UserError(
                f"{self._path} cannot be opened ({fault or 'see process 0'}): make sure that no run trains there, and "
                "delete it"
            ) from fault
        if refused:
            raise UserError(
                f"--workdir {os.fspath(workdir)} is in use: {holder or 'another run'} trains in it; wait until it "
                "ends, stop it, or give another folder"
            )

    def _acquire(self) -> str | None:
        """Takes the lock; returns the present holder if there is one, else None."""
        while True:
            file = _opened(self._path)
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
            holder["started"] = _started(os.getpid())
            self._file.write(json.dumps(holder).encode())
        except (OSError, ValueError) as error:  # a full disk, or a file of another user; the lock needs neither
            said = error.strerror if isinstance(error, OSError) and error.strerror else "it belongs to another user"
            print(f"note: {self._path} does not name its holder ({said})", file=sys.stderr, flush=True)

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
        found = _holder_of(read_limited(path, _MAX_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return _UNNAMED
    if found["host"] == socket.gethostname() and not _is_alive(found["pid"], found.get("started")):
        return None
    return _described(found)


def _is_alive(pid: int, started: object) -> bool:
    """Whether the process runs, and is the one that started then: numbers of processes are used again."""
    try:
        os.kill(pid, 0)  # sends no signal, only asks whether the process exists
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # a process of another user
    now = _started(pid)
    return started is None or now is None or now == started


def _started(pid: int) -> int | None:
    """The start of a process, in ticks since the boot; None if the system does not say."""
    try:
        # The name of the process, in brackets, may have spaces and brackets; the start is the 20th field after it.
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


class _NoFile(OSError):
    """train.lock is a link, a folder, or a file without permission."""


def _opened(path: str) -> IO[bytes]:
    """The file, made if it is missing; never what a link leads to, which would be overwritten.

    Raises:
      _NoFile: it is something else, or may not be opened.
    """
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        try:
            descriptor, mode = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | careful, 0o666), "ab+"
        except PermissionError:  # of another user, who may train here: a lock needs no right to write
            descriptor, mode = os.open(path, os.O_RDONLY | careful), "rb"
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENXIO):
            what = "it is a link" if error.errno == errno.ELOOP else os.strerror(error.errno)
            raise _NoFile(what) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _NoFile("it is no regular file")
    return open(descriptor, mode, buffering=0)


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
        return f"{_described(_holder_of(file.read(_MAX_BYTES)))},"
    except ValueError:
        return _UNNAMED


def _holder_of(text: bytes) -> dict:
    """The content of a lock; raises ValueError for anything else, such as text that would upset a terminal."""
    found = parse_json(text, dict)
    texts = [found.get(name) for name in ("host", "since")]
    if not all(isinstance(text, str) and text.isprintable() and len(text) < 300 for text in texts):
        raise ValueError("not the content of a lock")
    if not is_count(found.get("pid"), least=1):
        raise ValueError("no number of a process")
    return found


def _described(holder: dict) -> str:
    return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
