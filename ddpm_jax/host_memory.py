"""What compilation leaves of the host's memory."""

import ctypes
import sys


def release_unused() -> None:
    """Gives memory that is free, but kept by the C library, back to the system; on Linux with glibc, elsewhere nothing.

    A compilation takes some hundred MB and frees them; glibc would keep them, beside what the steps then need.
    """
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)
