"""The pipe between the driver and the contestants. Each contestant is one process; the driver runs one at a time."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from nets import Job

WARM_UP = 2


def serve(setup: Callable[[Job], tuple[Callable[[], Any], dict]]) -> None:
    """Builds what the job in argv[1] asks for, reports it, and then answers each line of stdin with timed calls.

    Args:
      setup: job -> (a function that makes one call and returns when its result is ready, facts to report about it).
    """
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    start = time.perf_counter()
    call, about = setup(Job(**json.loads(sys.argv[1])))
    if call is not None:
        for _ in range(1 + WARM_UP):
            call()
    about |= {"ready_seconds": time.perf_counter() - start, "peak_bytes": _peak_bytes()}
    print(json.dumps(about), file=answers)
    _forget_peak()
    for line in sys.stdin:
        print(json.dumps(_measured(call, float(line))), file=answers)
    answers.close()


def _forget_peak() -> None:
    """Resets the peak memory counter, on Linux."""
    if os.path.exists("/proc/self/clear_refs"):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")


def _running_bytes() -> int | None:
    """The peak since `_forget_peak`; None if the system does not report it."""
    if not os.path.exists("/proc/self/status"):
        return None
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM:"))


def _measured(call: Callable[[], Any], at_least: float) -> dict[str, Any]:
    """Seconds of every call that fits into the time, cores in use, page faults per call, and the peak so far."""
    call()  # warms the processor's caches, which other processes have used
    seconds, before, start = [], resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    while not seconds or time.perf_counter() - start < at_least:
        since = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - since)
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": seconds,
        "cores": used / sum(seconds),
        "faults": (after.ru_minflt - before.ru_minflt) / len(seconds),
        "running_bytes": _running_bytes(),
    }


def _peak_bytes() -> int:
    """The peak host memory of this process; ru_maxrss is in KiB, on macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
