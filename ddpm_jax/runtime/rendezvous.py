"""The processes of a run wait for each other, before JAX connects them.

JAX's own connection ends every process with a stack trace of C++ where one of them does not come, or where the port of
the coordinator is taken. So they meet first, over a connection to the same address, and each fault is one line.
"""

import errno
import socket
import time
from collections.abc import Callable

from ddpm_jax.runtime.errors import UserError

_GREETING, _GO = "ddpm_jax", b"go\n"
_MAX_BYTES = 300  # of a line
_RETRY_SECONDS = 0.2


def meet(
    address: str, count: int, index: int, timeout: float, *, clock: Callable[[], float] = time.monotonic
) -> None:
    """Returns in every process of a run once all have called it.

    Args:
      address: HOST:PORT, where process 0 listens.
      count: number of processes.
      index: of this one.
      timeout: seconds to wait for the others.

    Raises:
      UserError: the port is taken, processes are missing, or they do not agree about their number and indices.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")  # of an IPv6 address
    deadline = clock() + timeout
    if index == 0:
        _wait_for_all(int(port), count, deadline, timeout, clock)
    else:
        _report_to_first(host, int(port), count, index, deadline, timeout, clock)


def _wait_for_all(port: int, count: int, deadline: float, timeout: float, clock: Callable[[], float]) -> None:
    try:
        server = socket.create_server(("", port), family=_family(), dualstack_ipv6=socket.has_dualstack_ipv6())
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        what = "is used by another program" if error.errno == errno.EADDRINUSE else "needs permission"
        raise UserError(f"the port {port} of --coordinator {what}: give another one to all processes") from error
    waiting: dict[int, socket.socket] = {}
    refused = "process 0 ended"
    try:
        with server:
            while len(waiting) < count - 1:
                server.settimeout(max(deadline - clock(), 0.001))
                try:
                    peer, _ = server.accept()
                except TimeoutError:
                    missing = sorted({*range(1, count)} - waiting.keys())
                    refused = f"the processes {missing} of {count} did not come within {timeout:.0f} s"
                    raise UserError(f"{refused}: start all with the same --coordinator and --num_processes") from None
                greeted = _greeting_of(peer)
                if greeted is None:  # not one of ours, such as a port scanner
                    peer.close()
                    continue
                other, other_count = greeted
                waiting_before = waiting.pop(other, None)
                waiting[other] = peer
                if waiting_before is not None and _has_left(waiting_before):  # it was started again
                    waiting_before.close()
                    waiting_before = None
                if other_count != count:
                    refused = f"process {other} has --num_processes={other_count}, process 0 has {count}"
                    raise UserError(f"{refused}: give all processes the same")
                if waiting_before is not None or not 0 < other < count:
                    if waiting_before is not None:
                        waiting_before.close()
                    refused = f"two processes have --process_id={other}"
                    raise UserError(f"{refused}: number them 0 to {count - 1}")
        refused = ""
    finally:
        for peer in waiting.values():
            with peer:
                _send(peer, _GO if not refused else f"{refused}\n".encode())
                # The other side closes first, so that the port is free at once for JAX.
                _line_of(peer)


def _report_to_first(
    host: str, port: int, count: int, index: int, deadline: float, timeout: float, clock: Callable[[], float]
) -> None:
    while True:
        try:
            answer = _answer_of(host, port, f"{_GREETING} {index} {count}\n".encode(), deadline - clock(), timeout)
            if answer:
                break
            error: OSError | str = "the connection was closed"  # by a proxy, or by a process 0 that has just ended
        except OSError as raised:  # process 0 does not listen yet, or its name is not known yet
            error = raised
        if clock() + _RETRY_SECONDS > deadline:
            raise UserError(
                f"process 0 did not answer at --coordinator={host}:{port} within {timeout:.0f} s ({error}): start all "
                "processes with the same --coordinator"
            )
        time.sleep(_RETRY_SECONDS)
    if answer != _GO:
        said = answer.decode("utf-8", "replace").strip()
        why = said if said.isprintable() and said else "process 0 ended, or another program listens there"
        raise UserError(f"the run did not start at --coordinator={host}:{port}: {why}")


def _answer_of(host: str, port: int, greeting: bytes, seconds: float, timeout: float) -> bytes:
    """What process 0 answers; b"" where the connection ends. Raises OSError where there is none."""
    with socket.create_connection((host, port), timeout=max(seconds, 0.001)) as peer:
        if peer.getsockname() == peer.getpeername():  # the system may connect a socket on this machine to itself
            return b""
        _send(peer, greeting)
        peer.settimeout(timeout + 10)  # process 0 may have started later, and waits as long for the others
        return _line_of(peer)


def _has_left(peer: socket.socket) -> bool:
    """Whether the other side has closed the connection."""
    peer.settimeout(0.01)
    try:
        return peer.recv(1, socket.MSG_PEEK) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def _family() -> socket.AddressFamily:
    return socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET


def _greeting_of(peer: socket.socket) -> tuple[int, int] | None:
    """(index, count) of a process of a run; None for anything else."""
    peer.settimeout(5)
    words = _line_of(peer).decode("utf-8", "replace").split()
    if len(words) != 3 or words[0] != _GREETING or not all(word.isdecimal() for word in words[1:]):
        return None
    return int(words[1]), int(words[2])


def _line_of(peer: socket.socket) -> bytes:
    """What comes up to the end of a line; less where the connection ends or is silent."""
    text = b""
    try:
        while not text.endswith(b"\n") and len(text) < _MAX_BYTES and (part := peer.recv(_MAX_BYTES - len(text))):
            text += part
    except OSError:  # reset, or silent for too long: what came so far is no line of ours
        return text
    return text


def _send(peer: socket.socket, text: bytes) -> None:
    """Sends a line; a process that has ended meanwhile is found missing by JAX."""
    try:
        peer.sendall(text)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise
