"""The results of an evaluation as one JSON file and as Markdown tables."""

import json
import math
import os
from typing import Any

import numpy as np

from ddpm_jax.evaluation.metrics_from_features import numbers_table
from ddpm_jax.evaluation.rate_distortion import table_steps
from ddpm_jax.runtime.atomic_files import replace_file
from ddpm_jax.runtime.json_files import read_json

JSON_NAME, TABLE_NAME = "evaluation.json", "evaluation.md"


class Report:
    """Sections of results in a folder; each `add` writes both files again.

    Results of an earlier evaluation with the same facts are kept: the bound and the flow may be measured by two
    commands.

    Metrics of samples are always kept, because each of them states what it was measured on.

    Args:
      folder: created if it is missing.
      facts: what was evaluated and how, as JSON; None, for metrics of samples only, keeps all present results.
    """

    def __init__(self, folder: str, facts: dict[str, Any] | None):
        self._folder = folder
        earlier = _read_json(os.path.join(folder, JSON_NAME))
        if facts is None or earlier.get("facts") == json.loads(json.dumps(facts)):
            self.results = earlier
        else:
            self.results = {"facts": facts} | {name: earlier[name] for name in ("samples",) if name in earlier}

    def add(self, **sections: dict[str, Any] | list) -> None:
        """Adds sections of numbers, arrays and None, and writes the files."""
        self.results |= {name: _plain(section) for name, section in sections.items()}
        with replace_file(os.path.join(self._folder, JSON_NAME), "w") as file:
            json.dump(self.results, file, indent=1, allow_nan=False)
        with replace_file(os.path.join(self._folder, TABLE_NAME), "w") as file:
            file.write(self.markdown())

    def add_samples(self, entry: dict[str, Any]) -> None:
        """Adds metrics of samples to those of other protocols, and writes the files."""
        entry = _plain(entry)
        others = [old for old in self.results.get("samples", []) if old["protocol"] != entry["protocol"]]
        self.add(samples=[*others, entry])

    def markdown(self) -> str:
        """A line of facts, the table of bits/dim, some rows of the rate-distortion curve, and metrics of samples."""
        parts = [describe(self.results["facts"]) + "."] if "facts" in self.results else []
        if "bits_per_dim" in self.results or "ode_bits_per_dim" in self.results:
            parts.append(bits_table(self.results))
        if "rate_distortion" in self.results:
            parts.append(rate_distortion_table(self.results["rate_distortion"]))
        parts += [numbers_table(entry) for entry in self.results.get("samples", [])]
        return "\n\n".join(parts) + "\n"


def describe(facts: dict[str, Any]) -> str:
    """What was evaluated, in one line."""
    images = "image" if facts["num_images"] == 1 else "images"
    respacing = f" (bound with respacing {facts['bits_respacing']})" if "bits_respacing" in facts else ""
    return (
        f"{facts['num_images']} {images} of {facts['data']} {facts['split']!r}, step {facts['step']}, "
        f"{facts['weights']} weights, {facts['schedule']} schedule with T = {facts['num_steps']}{respacing}, predicts "
        f"{facts['prediction']}, variance {facts['variance']}, seed {facts['seed']}"
    )


def bits_table(results: dict[str, Any]) -> str:
    """One row per estimate: mean and standard error over the images."""
    lines = [
        "| estimate | bits/dim | prior L_T | KL, L_1 to L_(T-1) | decoder L_0 |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    if bound := results.get("bits_per_dim"):
        cells = [_with_error(bound[name]) for name in ("total", "prior", "kl", "decoder")]
        lines.append(f"| variational bound | {' | '.join(cells)} |")
    if flow := results.get("ode_bits_per_dim"):
        probes = flow["num_probes"]
        trace = "exact divergence" if not probes else f"{probes} probe{'s' if probes > 1 else ''}"
        name = f"probability flow, {flow['num_ode_steps']} RK4 steps, {trace}"
        lines.append(f"| {name} | {_with_error(flow['total'])} | | | |")
    return "\n".join(lines)


def rate_distortion_table(curve: dict[str, list]) -> str:
    """About ten rows (Ho et al. 2020, table 4)."""
    lines = [
        "| reverse steps T - t | rate (bits/dim) | distortion (RMSE of 0..255) |",
        "| ---: | ---: | ---: |",
    ]
    for t in table_steps(len(curve["t"])):
        lines.append(f"| {curve['reverse_steps'][t]} | {curve['rate'][t]:.5f} | {curve['distortion'][t]:.4f} |")
    return "\n".join(lines)


def _with_error(estimate: dict[str, float | None]) -> str:
    mean, error = estimate["mean"], estimate["standard_error"]
    if error is None:
        return _digits(mean)
    return f"{_digits(mean)} ± {_digits(error)}"


def _digits(value: float) -> str:
    """Four decimals, or scientific notation for numbers too small for that."""
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


def _plain(value: Any) -> Any:
    """NumPy values and tuples as JSON; NaN (the error of a single image) as null."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_json(path: str) -> dict[str, Any]:
    try:
        found = read_json(path, dict)
    except (OSError, ValueError):
        return {}
    samples = found.get("samples", [])
    entries = samples if isinstance(samples, list) else [None]
    known = [entry for entry in entries if isinstance(entry, dict) and {"protocol", "numbers"} <= entry.keys()]
    if len(known) < len(entries):  # kept, but not shown
        found["other_samples"] = [*found.get("other_samples", []), *(entry for entry in entries if entry not in known)]
    return found | ({"samples": known} if known or "samples" in found else {})
