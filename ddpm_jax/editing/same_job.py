"""Whether two jobs are the same, by the facts that their results depend on, and where they differ."""

import json
import os
from collections.abc import Mapping

_PATHS = ("run", "images", "classifier", "autoguidance")  # may be spelled in several ways
_MOST = 60  # characters of a value in a message


def difference(found: Mapping[str, object], now: Mapping[str, object]) -> str | None:
    """The first fact that differs, as `seed: 0, and now it is 1`, or `sampler: eta was 0.0 and is 1.0`; else None.

    Args:
      found: the facts of the job in the folder, as JSON holds them.
      now: those of this one.
    """
    for name in {**found, **now}:
        old, new = found.get(name), now.get(name)
        if _is_same(name, old, new):
            continue
        where = []
        while isinstance(old, dict) and isinstance(new, dict):
            inner = next(inner for inner in {**old, **new} if not _is_same(inner, old.get(inner), new.get(inner)))
            where, old, new = [*where, inner], old.get(inner), new.get(inner)
        old, new = _apart(_text(old), _text(new))
        return f"{name}: {'.'.join(where)} was {old} and is {new}" if where else f"{name}: {old}, and now it is {new}"
    return None


def _is_same(name: str, old: object, new: object) -> bool:
    if isinstance(old, dict) and isinstance(new, dict):
        return all(_is_same(inner, old.get(inner), new.get(inner)) for inner in {**old, **new})
    if name in _PATHS and isinstance(old, str) and isinstance(new, str) and old and new:
        old, new = (os.path.realpath(os.path.expanduser(path)) for path in (old, new))
    return old == new


def _text(value: object) -> str:
    if isinstance(value, list):
        return str(tuple(value))
    return "none" if value is None else json.dumps(value)


def _apart(old: str, new: str) -> tuple[str, str]:
    """Both texts, and of long ones the part where they begin to differ."""
    start = max(len(os.path.commonprefix([old, new])) - _MOST // 2, 0) if max(len(old), len(new)) > _MOST else 0
    return _part(old, start), _part(new, start)


def _part(text: str, start: int) -> str:
    end = "..." if len(text) > start + _MOST else ""
    return ("..." if start else "") + text[start : start + _MOST] + end
