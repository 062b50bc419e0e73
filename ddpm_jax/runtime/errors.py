"""Errors in user input: one line that says what is wrong, what was given, what is allowed, and the remedy."""

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

MAX_INT = 2**31 - 1  # steps, sizes and ids are int32 on the device


class UserError(ValueError):
    """A one-line message for the user; the commands print it without a traceback and exit with `exit_code`."""

    exit_code = 2

    def __init__(self, message: str):
        self._show(message)

    def rename(self, names: Callable[[str], str | None]) -> None:
        """Replaces the names that `arg` marked by the caller's names; None leaves a name unchanged and marked."""
        self._show(_MARKED.sub(lambda found: names(found[1]) or found[0], self._marked))

    def mark(self, texts: Mapping[str, str]) -> None:
        """Marks texts of the message, such as config fields, as the arguments that their values came from.

        `config field 'TEXT'` and `--config.TEXT` become the bare argument, too.

        Example:
          >>> error = UserError("config field 'sample.eta' must be a number; an example: --config.sample.eta=0.5")
          >>> error.mark({"sample.eta": "eta"})
          >>> error.rename({"eta": "--eta"}.get)
          >>> print(error)
          --eta must be a number; an example: --eta=0.5
        """
        marked = self._marked
        for text, name in texts.items():
            found = re.escape(text)
            pattern = rf"config field '{found}'|(?:--config\.|(?<![\w.])){found}(?!\w)"
            marked = re.sub(pattern, arg(name), marked)
        self._show(marked)

    def begin_with(self, text: str) -> None:
        """Puts a text before the message, such as which of several runs it is of."""
        self._show(text + self._marked)

    def _show(self, marked: str) -> None:
        self._marked = marked
        self.args = (_MARKED.sub(r"\1", marked),)


# From Unicode's private use area, so no other text has them; `UserError` removes them from the text that users see.
_BEGIN, _END = "\ue000", "\ue001"
_MARKED = re.compile(f"{_BEGIN}(.*?){_END}", re.DOTALL)


def arg(name: str) -> str:
    """Marks the name of an argument inside the message of a UserError.

    A caller that passed on what a user typed knows the argument by another name, such as a config field, and renames it
    with `arguments_named`. A whole piece of a call may be marked as well: `take {arg("steps=None")}`.

    Example:
      >>> try:
      ...     with arguments_named({"eta": "sample.eta"}.get):
      ...         raise UserError(f"{arg('eta')} must be at least 0; got -1")
      ... except UserError as error:
      ...     print(error)
      sample.eta must be at least 0; got -1
    """
    return f"{_BEGIN}{name}{_END}"


@contextmanager
def arguments_named(names: Callable[[str], str | None]) -> Iterator[None]:
    """Renames the arguments in any UserError raised in the block; see `UserError.rename`."""
    try:
        yield
    except UserError as error:
        error.rename(names)
        raise


def out_of_memory(error: RuntimeError) -> str | None:
    """JAX's message about a device that is out of memory, on one line; None for any other error."""
    what = str(error).split("\n")[0]
    if not what.startswith("RESOURCE_EXHAUSTED"):
        return None
    _, _, what = what.partition(": ")
    return what[max(what.find("Ran out of memory"), 0) :].partition(" HLO module:")[0].rstrip(".")


def did_you_mean(got: str, allowed: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of `allowed`, or an empty string."""
    names = {str(name).lower(): str(name) for name in allowed}
    close = difflib.get_close_matches(str(got).lower(), names, n=1, cutoff=0.6)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def decimal_point(text: str) -> str:
    """`": use a decimal point: 1.5"` for a number that is written as 1,5; else an empty string."""
    return f": use a decimal point: {text.replace(',', '.')}" if re.fullmatch(r"[+-]?\d+,\d+", text) else ""


def check_one_of(name: str, got: object, allowed: Iterable[object], remedy: str = "") -> None:
    """Raises UserError unless `got`, which is the argument `name`, is one of `allowed`.

    Args:
      remedy: follows if no name is close.
    """
    allowed = sorted(allowed, key=str)
    if got not in allowed:
        raise UserError(f"{arg(name)} must be one of {allowed}; got {got!r}{did_you_mean(got, allowed) or remedy}")


def whole_number(name: str, got: object) -> int:
    """`got`, which is the argument `name`, as an int; raises UserError for what is no whole number."""
    try:
        return operator.index(got)
    except TypeError:
        raise UserError(f"{arg(name)} must be a whole number; got {got!r}") from None


def real_number(name: str, got: object) -> float:
    """`got`, which is the argument `name`, as a float; raises UserError for what is no number."""
    if not isinstance(got, bool | str | bytes):
        try:
            return float(got)
        except OverflowError:  # of an int
            return math.inf if got > 0 else -math.inf
        except (TypeError, ValueError):
            pass
    raise UserError(f"{arg(name)} must be a number; got {got!r:.60}")


def check_between(name: str, got: int, least: int, most: int = MAX_INT) -> None:
    """Raises UserError unless least <= got <= most, where `got` is the argument `name`."""
    if got < least:
        raise UserError(f"{arg(name)} must be at least {least}; got {got}")
    if got > most:
        raise UserError(f"{arg(name)} must be at most {most}; got {got}")
