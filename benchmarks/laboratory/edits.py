"""Inpainting and other linear measurements against the exact conditional law, and SDEdit between its two aims."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ddpm_jax.diffusion.edits import partial_table, repaint_table
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers import SamplerTable, ancestral_table, ddim_table
from laboratory.claims import Claim, Settings, in_percent, in_thousandths, side_by_side
from laboratory.distances import estimate
from laboratory.laws import pinwheel
from laboratory.methods import SAMPLERS, Drawer, steps_of


class Method(NamedTuple):
    """A row of a table."""

    name: str
    table: SamplerTable
    edit: str  # of `methods.EDITS`
    zeta: float | None = None


@dataclass(frozen=True)
class Observed:
    """What is known of a sample, y = matrix x, for each of several samples.

    Attributes:
      matrix: [M, D].
      images: the samples that y was taken from, [N, D].
    """

    settings: Settings
    matrix: np.ndarray
    images: np.ndarray

    @classmethod
    def of_half(cls, settings: Settings) -> "Observed":
        """The first half of the coordinates."""
        return cls(settings, np.eye(settings.num_dims)[: (settings.num_dims + 1) // 2], _images(settings))

    @classmethod
    def of_mean(cls, settings: Settings) -> "Observed":
        """The mean of the coordinates."""
        return cls(settings, np.full((1, settings.num_dims), 1 / settings.num_dims), _images(settings))

    @cached_property
    def laws(self) -> list:
        """The exact conditional laws."""
        law = pinwheel(self.settings.num_dims)
        return [law.given_observation(self.matrix, self.matrix @ x_0) for x_0 in self.images]

    @cached_property
    def claims(self) -> list[Claim]:
        """The same, to measure distances to."""
        return [Claim(lambda rng, num, one=one: one.sample(rng, num)[0], self.settings) for one in self.laws]

    def given(self, edit: str, x_0: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays that an edit needs."""
        if edit == "replacement":
            return {"mask": self.matrix.sum(0), "x_0": x_0}
        return {"matrix": self.matrix, "pinv": np.linalg.pinv(self.matrix), "y": self.matrix @ x_0}

    def row(self, name: str, calls: int, runs: list[np.ndarray]) -> list[str]:
        """Sliced W2 and the two-sample test, means over the known values, and the misfit |y - matrix x|."""
        pairs = list(zip(self.claims, runs, strict=True))
        distances = estimate([claim.distance(run) for claim, run in pairs])
        accuracies = estimate(side_by_side(lambda n: pairs[n][0].told_apart(pairs[n][1]), len(pairs)))
        residuals = [(run - x_0) @ self.matrix.T for run, x_0 in zip(runs, self.images, strict=True)]
        misfit = np.sqrt(np.mean(np.square(residuals)))
        return [name, str(calls), in_thousandths(distances), in_percent(accuracies), f"{1000 * misfit:.1f}"]


def _images(settings: Settings) -> np.ndarray:
    images = pinwheel(settings.num_dims).sample(np.random.default_rng(7), settings.repetitions)[0]
    images[0, :2] = 0.15, -0.1  # near the middle, where more than one arm fits
    return images


def inpainting_methods(settings: Settings, process: Process) -> list[Method]:
    """Replacement, RePaint, DDNM and DPS."""
    methods = [
        Method(f"replacement, {sampler}", SAMPLERS[sampler](process, calls), "replacement")
        for sampler, numbers in (
            ("dpmpp_2m", settings.measurement_calls),
            ("ancestral", settings.replacement_calls),
        )
        for calls in numbers
    ]
    for steps, jump_length, num_resamplings in settings.resamplings:
        table = repaint_table(
            _ancestral(process, steps), process, jump_length=jump_length, num_resamplings=num_resamplings
        )
        name = f"RePaint, ancestral, {steps} steps, j = {jump_length}, r = {num_resamplings}"
        methods.append(Method(name, table, "replacement"))
    return methods + _ddnm(settings, process) + _dps(settings, process)


def measurement_methods(settings: Settings, process: Process) -> list[Method]:
    """DDNM, ILVR and DPS."""
    ilvr = [Method("ILVR, ancestral", _ancestral(process, calls), "ilvr") for calls in settings.measurement_calls]
    return _ddnm(settings, process) + ilvr + _dps(settings, process)


def _ddnm(settings: Settings, process: Process) -> list[Method]:
    numbers = settings.measurement_calls
    tables = [ddim_table(process.schedule, steps=steps_of(process, calls), eta=0.85) for calls in numbers]
    return [Method("DDNM, ddim with eta 0.85", table, "ddnm") for table in tables]


def _dps(settings: Settings, process: Process) -> list[Method]:
    return [
        Method(f"DPS, ancestral, zeta {zeta:g}", _ancestral(process, calls), "dps", zeta)
        for calls, zeta in settings.zetas
    ]


def methods_table(
    settings: Settings, drawer: Drawer, process: Process, observed: Observed, methods: list[Method]
) -> tuple[list[list[str]], dict[str, np.ndarray]]:
    """Each method against the conditional law, and a network of that law.

    Returns:
      The rows; and the samples for the first known value, exact ones and of the last row of each kind of method.
    """
    floor = estimate([np.mean(claim.floor) for claim in observed.claims])
    rows, last_of = [["exact samples", "", in_thousandths(floor), "50.0", "0.0"]], {}

    def draw(method: Method, seed: int) -> np.ndarray:
        zeta = {} if method.zeta is None else {"zeta": method.zeta}
        given = observed.given(method.edit, observed.images[seed])
        return drawer(method.table, seed, edit=method.edit, **zeta, **given)

    for method in methods:
        runs = side_by_side(
            lambda seed: draw(method, seed),  # noqa: B023
            len(observed.images),
        )
        calls = method.table.num_calls
        rows.append(observed.row(method.name, calls, runs))
        last_of[method.name.split(",")[0]] = f"{method.name}, {calls} calls", runs[0]
    calls = settings.measurement_calls[0]
    table = SAMPLERS["dpmpp_2m"](process, calls)
    runs = [settings.drawer(process, one, calls)(table, seed) for seed, one in enumerate(observed.laws)]
    rows.append(observed.row("network of the conditional law, dpmpp_2m", calls, runs))
    return rows, {"exact": observed.claims[0].exact} | dict(last_of.values())


def peaks_table(shown: dict[str, np.ndarray]) -> list[list[str]]:
    """Where the samples of the plot are: the unknown coordinate above 0.4, and in the middle peak, -0.3 to 0.25."""
    rows = []
    for name, samples in shown.items():
        unknown = samples[:, 1]
        middle = unknown[(unknown > -0.3) & (unknown < 0.25)]
        shares = (f"{100 * np.mean(unknown > 0.4):.1f}", f"{100 * len(middle) / len(unknown):.1f}")
        rows.append([name, *shares, f"{np.std(middle):.3f}"])
    return rows


def sdedit_table(settings: Settings, drawer: Drawer, process: Process) -> list[list[str]]:
    """From uniform points in [-1, 1]: the distance of the result to p(x), and to where it started."""
    claim = Claim(lambda rng, num: pinwheel(settings.num_dims).sample(rng, num)[0], settings)
    whole, rows = _ancestral(process, settings.edit_calls), []
    starts = [
        np.random.default_rng(400 + seed).uniform(-1, 1, (settings.num_samples, settings.num_dims))
        for seed in range(settings.repetitions)
    ]
    for strength in settings.strengths:
        table = partial_table(whole, strength)
        runs = side_by_side(
            lambda seed: drawer(table, seed, edit="sdedit", x_0=starts[seed]),  # noqa: B023
            len(starts),
        )
        moved = estimate([np.sqrt(np.mean((run - x_0) ** 2)) for run, x_0 in zip(runs, starts, strict=True)])
        rows.append(
            [f"{strength:g}", str(table.num_calls), in_thousandths(claim.distances(runs)), in_thousandths(moved)]
        )
    return rows


def _ancestral(process: Process, calls: int) -> SamplerTable:
    return ancestral_table(process, steps=steps_of(process, calls))
