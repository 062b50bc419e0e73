"""Errors for what a user typed or supplied: one line with what, got, allowed, remedy."""

import difflib
from collections.abc import Iterable

MAX_INT = 2**31 - 1  # steps, sizes and ids are int32 on the device


class UserError(ValueError):
    """A one-line message for a person; the commands print it without a traceback and exit with `exit_code`."""

    exit_code = 2


def out_of_memory(error: RuntimeError) -> str | None:
    """What JAX says of a device whose memory does not hold a program, on one line; None for any other error."""
    what = str(error).split("\n")[0]
    if not what.startswith("RESOURCE_EXHAUSTED"):
        return None
    _, _, what = what.partition(": ")
    return what[max(what.find("Ran out of memory"), 0) :].partition(" HLO module:")[0].rstrip(".")


def did_you_mean(got: str, allowed: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of `allowed`, or an empty string."""
    close = difflib.get_close_matches(str(got), [str(a) for a in allowed], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_one_of(name: str, got: object, allowed: Iterable[object]) -> None:
    """Raises UserError unless `got` is one of `allowed`."""
    allowed = sorted(allowed, key=str)
    if got not in allowed:
        raise UserError(f"{name} must be one of {allowed}; got {got!r}{did_you_mean(got, allowed)}")


def check_between(name: str, got: int, least: int, most: int = MAX_INT) -> None:
    """Raises UserError unless least <= got <= most."""
    if got < least:
        raise UserError(f"{name} must be at least {least}; got {got}")
    if got > most:
        raise UserError(f"{name} must be at most {most}; got {got}")
