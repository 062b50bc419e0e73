"""Laws that methods claim to draw, the sizes of the measurements, and how results are written."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpm_jax.diffusion.exact import GaussianMixture
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import make_schedule
from laboratory.distances import Estimate, SlicedW2, estimate, two_sample_accuracy
from laboratory.methods import Drawer

LABEL = 0  # the class that guidance draws


@dataclass(frozen=True)
class Settings:
    """Sizes of the measurements."""

    num_dims: int = 2
    schedule: str = "cosine"
    num_steps: int = 1000
    calls: tuple[int, ...] = (5, 10, 20, 50, 250)
    guided_calls: tuple[int, ...] = (25, 250)
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 4.0)
    variant_calls: int = 100
    variant_scale: float = 2.0
    interval: tuple[float, float] = (-2.0, 4.0)
    replacement_calls: tuple[int, ...] = (25, 100, 1000)
    measurement_calls: tuple[int, ...] = (25, 100)
    resamplings: tuple[tuple[int, int, int], ...] = ((25, 5, 4), (25, 2, 20), (100, 10, 10))  # of RePaint: steps, j, r
    zetas: tuple[tuple[int, float], ...] = ((100, 0.02), (100, 0.1), (1000, 0.02))  # of DPS: calls, zeta
    edit_calls: int = 100  # of SDEdit at strength 1
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75)
    num_samples: int = 10_000
    repetitions: int = 4
    x_0_limit: float | None = None
    reference_factor: int = 20  # exact samples of a law for each sample

    def process(self, variance: str = "fixed_small") -> Process:
        """The process of the laboratory."""
        return Process(make_schedule(self.schedule, num_steps=self.num_steps), variance=variance)

    def drawer(
        self, process: Process, law: GaussianMixture, max_calls: int, weak: GaussianMixture | None = None
    ) -> Drawer:
        """A drawer of `num_samples` samples; `weak` is the law that the network of autoguidance has learned."""
        return Drawer(process, law, num=self.num_samples, max_calls=max_calls, x_0_limit=self.x_0_limit, weak=weak)


def side_by_side(measure: Callable[[int], Any], num: int) -> list[Any]:
    """measure(0), ..., measure(num - 1): the first alone, because it compiles, then several at a time."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [measure(0), *pool.map(measure, range(1, num))]


class Claim:
    """A law that methods claim to draw, and the distances to it.

    Args:
      draw: (rng, num) -> exact samples [num, D].
    """

    def __init__(self, draw, settings: Settings):
        self._draw, self._num = draw, settings.num_samples
        self._distance = SlicedW2(draw(np.random.default_rng(100), settings.reference_factor * self._num))
        self.exact = draw(np.random.default_rng(101), self._num)
        seeds = range(200, 200 + max(8, settings.repetitions))
        self.floor = [self._distance(draw(np.random.default_rng(seed), self._num)) for seed in seeds]

    def distance(self, samples: np.ndarray) -> float:
        """Sliced W2."""
        return self._distance(samples)

    def distances(self, runs: list[np.ndarray]) -> Estimate:
        """Sliced W2 of independent runs."""
        return estimate([self._distance(samples) for samples in runs])

    def told_apart(self, samples: np.ndarray, seed: int = 0) -> float:
        """How well a classifier tells the samples from exact ones: 0.5 if it cannot."""
        num = min(self._num, 5000)
        return two_sample_accuracy(samples[:num], self._draw(np.random.default_rng(300 + seed), num))

    def accuracy(self, runs: list[np.ndarray]) -> Estimate:
        """`told_apart` of independent runs."""
        return estimate(side_by_side(lambda seed: self.told_apart(runs[seed], seed), len(runs)))


def of_class(law, samples: np.ndarray) -> list[str]:
    """p(class | x), the mean over the samples, and their standard deviation."""
    probability = np.exp(law.class_log_probs(samples)[:, LABEL]).mean()
    return [f"{100 * probability:.1f}", f"{np.sqrt(np.trace(np.cov(samples.T))):.3f}"]


def in_thousandths(value: Estimate) -> str:
    """1000 times a distance."""
    digits = 0 if value.mean > 0.1 else 1
    return f"{1000 * value.mean:.{digits}f} +- {1000 * value.half_width:.{digits}f}"


def in_percent(value: Estimate) -> str:
    """An accuracy."""
    return f"{100 * value.mean:.1f} +- {100 * value.half_width:.1f}"
