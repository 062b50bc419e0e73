"""The names of a run's classes, in class_names.json of its workdir, so that samples can be asked for by name."""

import json
import os
from collections.abc import Sequence

from ddpm_jax.runtime.atomic_files import replace_file
from ddpm_jax.runtime.json_files import read_json

_FILE = "class_names.json"
MOST_SHOWN = 12


def write_class_names(workdir: str | os.PathLike, names: Sequence[str]) -> None:
    """Writes the names, one per class in their order."""
    with replace_file(os.path.join(workdir, _FILE), "w") as file:
        file.write(json.dumps(list(names)))


def read_class_names(workdir: str | os.PathLike) -> tuple[str, ...]:
    """The names; () where the data have none, or the file is missing or damaged: classes have their numbers too."""
    try:
        names = read_json(os.path.join(workdir, _FILE), list)
    except (OSError, ValueError):
        return ()
    return tuple(names) if all(isinstance(name, str) for name in names) else ()


def numbered(names: Sequence[str], numbers: Sequence[int] | None = None) -> str:
    """Classes with their numbers and names: "0 hat, 1 pants"; of some of the numbers, or of all."""
    numbers = range(len(names)) if numbers is None else numbers
    shown = [f"{number} {names[number]}" if number < len(names) else str(number) for number in numbers[:MOST_SHOWN]]
    return ", ".join(shown) + (", ..." if len(numbers) > MOST_SHOWN else "")
