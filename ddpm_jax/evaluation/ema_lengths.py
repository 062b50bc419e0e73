"""Averages of several lengths side by side: a table of their numbers, and which is best."""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from ddpm_jax.evaluation.metrics_from_features import NAMES
from ddpm_jax.runtime.atomic_files import replace_file

JSON_NAME, TABLE_NAME = "ema_std.json", "ema_std.md"
BOUND, FLOW = "bits/dim (bound)", "bits/dim (flow)"


def numbers_of(results: Mapping[str, Any], samples: Mapping[str, Any] | None) -> dict[str, float]:
    """The numbers of one average by name, of which lower is better, the one to choose by first.

    Args:
      results: of a `Report`, or {}.
      samples: an entry of `SampleMetrics.measure`, or None.
    """
    numbers = {}
    if samples is not None:
        names = NAMES[samples["protocol"]["extractor"]["name"]]
        numbers[names["frechet"]] = float(samples["numbers"]["frechet"])
        numbers[names["kernel"]] = float(samples["numbers"]["kernel"]["mean"])
    for name, section in ((BOUND, "bits_per_dim"), (FLOW, "ode_bits_per_dim")):
        if section in results:
            numbers[name] = float(results[section]["total"]["mean"])
    return numbers


def best_length(numbers: Mapping[float, Mapping[str, float]]) -> tuple[str, float | None]:
    """(name of the first number, the length with its lowest finite value); None where no value is finite."""
    name = next(iter(next(iter(numbers.values()))))
    finite = [std for std in numbers if math.isfinite(numbers[std][name])]
    return name, min(finite, key=lambda std: numbers[std][name], default=None)


def lengths_table(numbers: Mapping[float, Mapping[str, float]], errors: Mapping[float, float]) -> str:
    """One row per length, and a line that names the best.

    Args:
      numbers: length -> its `numbers_of`.
      errors: length -> the error of its profile.
    """
    names = list(next(iter(numbers.values())))
    lines = [f"| ema_std | profile error | {' | '.join(names)} |", "| ---: " * (2 + len(names)) + "|"]
    for std, row in numbers.items():
        lines.append(f"| {std!r} | {100 * errors[std]:.2g}% | {' | '.join(f'{row[name]:.5g}' for name in names)} |")
    name, best = best_length(numbers)
    line = f"lowest {name}: " + (f"--ema_std={best!r}" if best is not None else "none is finite")
    return "\n".join([*lines, "", line])


def write_lengths(
    folder: str, numbers: Mapping[float, Mapping[str, float]], errors: Mapping[float, float]
) -> list[str]:
    """Writes the table and the numbers into a folder; returns the paths."""
    name, best = best_length(numbers)
    rows = [
        {"ema_std": std, "profile_error": errors[std]}
        | {name: value if math.isfinite(value) else None for name, value in row.items()}
        for std, row in numbers.items()
    ]
    paths = [os.path.join(folder, name) for name in (JSON_NAME, TABLE_NAME)]
    with replace_file(paths[0], "w") as file:
        json.dump({"lengths": rows, "chosen_by": name, "best": best}, file, indent=1, allow_nan=False)
    with replace_file(paths[1], "w") as file:
        file.write(lengths_table(numbers, errors) + "\n")
    return paths
