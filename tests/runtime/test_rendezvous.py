"""Processes of a run that wait for each other: threads stand in for them."""

import contextlib
import socket
import threading

import pytest
from host_processes import free_port

from ddpm_jax.runtime.errors import UserError
from ddpm_jax.runtime.rendezvous import meet

TIMEOUT = 20  # seconds; the tests of a missing process count on a clock of their own


def all_of(port, *calls):
    """What `meet(address, count, index)` said in each of some threads at once: None, or the error."""
    said = [None] * len(calls)

    def call(number, count, index, timeout, clock):
        try:
            meet(f"localhost:{port}", count, index, timeout, **clock)
        except UserError as error:
            said[number] = str(error)

    threads = []
    for number, (count, index, *rest) in enumerate(calls):
        timeout, clock = rest or (TIMEOUT, {})
        threads.append(threading.Thread(target=call, args=(number, count, index, timeout, clock)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return said


def test_all_go_on_together_and_the_port_is_free_afterwards():
    port = free_port()
    for _ in range(3):
        assert all_of(port, (3, 2), (3, 0), (3, 1)) == [None] * 3
    assert all_of(port, (1, 0)) == [None]
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


def test_others_at_the_door_are_let_go():
    """A port scanner does not count as a process, and does not stop the run."""
    port, ready = free_port(), threading.Event()

    def knock():
        ready.wait()
        for text in (b"GET / HTTP/1.1\r\n", b"ddpm_jax one two\n", b"\xff\xfe\n"):
            with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=5) as other:
                other.sendall(text)
                other.recv(10)

    thread = threading.Thread(target=knock)
    thread.start()
    first = threading.Thread(target=meet, args=(f"localhost:{port}", 2, 0, TIMEOUT))
    first.start()
    ready.set()
    thread.join()
    meet(f"localhost:{port}", 2, 1, TIMEOUT)
    first.join()


def test_missing_processes_are_named_to_those_that_came():
    """The clock of process 0 jumps once a process has come."""
    times = iter([0.0, 0.0])
    port = free_port()
    said = all_of(port, (3, 0, TIMEOUT, {"clock": lambda: next(times, TIMEOUT - 0.5)}), (3, 1))
    assert said[0].startswith(f"the processes [2] of 3 did not come within {TIMEOUT} s: start all with the same")
    assert said[1].startswith(f"the run did not start at --coordinator=localhost:{port}: the processes [2] of 3")


def test_no_process_0():
    times = iter([0.0, 0.0])
    with pytest.raises(UserError, match=r"^process 0 did not answer at --coordinator=localhost:\d+ within 20 s \("):
        meet(f"localhost:{free_port()}", 2, 1, TIMEOUT, clock=lambda: next(times, TIMEOUT))


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^the port {port} of --coordinator is used by another program: give"):
            meet(f"localhost:{port}", 2, 0, TIMEOUT)


def test_another_number_of_processes():
    said = all_of(free_port(), (2, 0), (3, 1))
    assert said[0] == "process 1 has --num_processes=3, process 0 has 2: give all processes the same"
    assert said[1].endswith("process 1 has --num_processes=3, process 0 has 2")


def test_two_processes_of_one_index():
    said = all_of(free_port(), (3, 0), (3, 1), (3, 1))
    assert said[0] == "two processes have --process_id=1: number them 0 to 2"
    assert sum(text is not None and "two processes have --process_id=1" in text for text in said[1:]) >= 1


def test_another_program_listens_there():
    with socket.create_server(("localhost", 0)) as server:
        def answer():
            with server.accept()[0] as peer:
                peer.recv(100)
                peer.sendall(b"\x1b[2J\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UserError, match="process 0 ended, or another program listens there$"):
            meet(f"localhost:{server.getsockname()[1]}", 2, 1, TIMEOUT)
        thread.join()
