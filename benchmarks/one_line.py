"""How a benchmark answers flags that do not fit: one line, and exit code 2, as the commands do."""

import argparse
import sys
from collections.abc import Callable

from ddpm_jax.runtime.errors import UserError, check_between


def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> int:
    """Parses the command line, calls `main(args)`, and returns the exit code for `sys.exit`."""
    args = parser.parse_args()
    try:
        main(args)
    except UserError as error:
        error.rename(lambda name: f"--{name}" if hasattr(args, name.partition("=")[0]) else None)
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename!r:.300} cannot be used: {error.strerror}", file=sys.stderr, flush=True)
        return UserError.exit_code
    return 0


def check_counts(args: argparse.Namespace, *names: str, least: int = 1) -> None:
    """Raises UserError unless each of these flags is at least `least`."""
    for name in names:
        check_between(f"--{name}", getattr(args, name), least)
