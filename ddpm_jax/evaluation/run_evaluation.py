"""Evaluates a trained run into a folder: bits/dim, rate-distortion, the likelihood of the flow, images."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ddpm_jax.data.image_source import load_rows
from ddpm_jax.diffusion.rng import check_seed
from ddpm_jax.evaluation.elbo_bits_per_dim import BitsPerDim, build_bits_per_dim, mean_and_error
from ddpm_jax.evaluation.ode_bits_per_dim import OdeBits, build_ode_bits
from ddpm_jax.evaluation.plots import save_likelihood_by_step, save_rate_distortion
from ddpm_jax.evaluation.progressive_images import Progressive, build_progressive, step_labels
from ddpm_jax.evaluation.rate_distortion import rate_distortion
from ddpm_jax.evaluation.report import JSON_NAME, TABLE_NAME, Report, describe
from ddpm_jax.experiment.config_json import config_to_json
from ddpm_jax.experiment.packaged_runs import output_folder
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.runtime.atomic_files import check_folder, replace_file
from ddpm_jax.runtime.devices import make_mesh, replicated
from ddpm_jax.runtime.errors import MAX_INT, UserError, check_between, check_one_of
from ddpm_jax.runtime.image_files import save_strip
from ddpm_jax.runtime.progress import ProgressBar
from ddpm_jax.runtime.resume_file import ResumeFile, fingerprint

WHAT = ("bits", "pictures", "ode", "samples")  # samples: see `sample_metrics`
_MAX_ODE = 100_000  # steps or probes; beyond this, a mistyped number would exhaust the memory
NUM_IMAGES, NUM_MOMENTS = 8, 10  # rows and columns of the strips


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings, named like the flags.

    Raises:
      UserError: an unknown `what`, or a number that is too small.
    """

    what: Sequence[str] = ("bits", "pictures")  # names from WHAT
    split: str | None = None  # None: the run's held-out split
    max_images: int = 0  # 0: all
    seed: int = 0
    batch_size: int = 0  # 0: the run's eval.batch_size
    bits_respacing: str = ""  # as for `diffusion.timestep_spacing.named_steps`; "": all T steps
    ode_steps: int = 50
    ode_probes: int = 1
    out: str | None = None  # None: <workdir>/evaluation

    def __post_init__(self) -> None:
        if not self.what:
            raise UserError(f"--what must name something to measure: {', '.join(WHAT)}")
        for what in self.what:
            check_one_of("--what", what, WHAT)
        for name, least in {"max_images": 0, "batch_size": 0, "ode_steps": 1, "ode_probes": 0}.items():
            check_between(f"--{name}", getattr(self, name), least, _MAX_ODE if name.startswith("ode") else MAX_INT)
        check_seed("--seed", self.seed)


class Evaluation:
    """Builds and checks all parts of an evaluation; nothing is measured yet.

    Raises:
      UserError: a setting or a run that does not fit, or a folder that cannot be written.
    """

    def __init__(self, run: TrainedRun, settings: EvaluationSettings, *, workdir: str, weights: str):
        self.folder = os.path.abspath(settings.out or os.path.join(output_folder(workdir), "evaluation"))
        self._settings = settings
        split = settings.split or run.held_out_split
        if not split:
            raise UserError("the run names no held-out split: give --split, such as --split=train")
        self._mesh = make_mesh()
        run.check_params()
        self._source = run.source(split, "--split" if settings.split else "data.eval_split")
        self._condition = run.condition
        self._bits, self._ode, self._progressive = self._build(run, split)
        self._is_first = jax.process_index() == 0
        if self._is_first:
            check_folder("--out", self.folder)
        num_images = min(len(self._source), settings.max_images or len(self._source))
        first = self._source.load(np.arange(min(num_images, 64)))
        name = fingerprint(run.params, run.codec, config_to_json(run.config), first)
        self.facts = run.facts | {
            "weights": weights,
            "split": split,
            "num_images": num_images,
            "seed": settings.seed,
            "image_shape": list(self._source.image_shape),
            "fingerprint": name,  # hash of the weights, the config and the first images
        }
        if settings.bits_respacing:
            self.facts["bits_respacing"] = settings.bits_respacing
        self._params = jax.device_put(run.params, replicated(self._mesh))

    def _build(self, run: TrainedRun, split: str) -> tuple[BitsPerDim | None, OdeBits | None, Progressive | None]:
        settings = self._settings
        common = {
            "seed": settings.seed,
            "batch_size": settings.batch_size or run.eval_batch_size,
            "max_images": settings.max_images,
        }
        bits = None
        if {"bits", "ode"} & set(settings.what):
            run.check_likelihood()
        if "bits" in settings.what:
            bits = build_bits_per_dim(run, split, self._mesh, **common, respacing=settings.bits_respacing)
        progressive = build_progressive(run, self._mesh) if "pictures" in settings.what else None
        ode = None
        if "ode" in settings.what:
            numbers = {"num_ode_steps": settings.ode_steps, "num_probes": settings.ode_probes}
            ode = build_ode_bits(run, split, self._mesh, **common, **numbers)
        return bits, ode, progressive

    def measure(self, on_file: Callable[[str], None] = lambda path: None) -> Report | None:
        """Measures and writes everything, each part as soon as it is ready; returns the report on the first process.

        Args:
          on_file: called with the path of every file that is written.
        """
        report = Report(self.folder, self.facts) if self._is_first else None
        if self._bits is not None:
            point = self._point("bits", self._bits)
            bits = self._run(self._bits, point, "bits per dimension")
            if report:
                self._write_bits(report, bits, on_file)
            point.finish()
        if self._ode is not None:
            point = self._point("ode", self._ode)
            measured = self._run(self._ode, point, "probability flow")
            if report:
                total = dict(zip(("mean", "standard_error"), map(float, mean_and_error(measured)), strict=True))
                numbers = {"num_ode_steps": self._ode.num_ode_steps, "num_probes": self._ode.num_probes}
                report.add(ode_bits_per_dim={"total": total, **numbers})
            point.finish()
        if self._progressive is not None:
            self._draw(on_file)
        if report and (self._bits or self._ode):
            on_file(self._path(JSON_NAME))
            on_file(self._path(TABLE_NAME))
        return report

    def _point(self, what: str, measurement: BitsPerDim | OdeBits) -> ResumeFile:
        """The file name depends on everything that the numbers depend on, so that other settings use other files."""
        facts = self.facts | {"what": what, "jax": jax.__version__, "backend": jax.default_backend()}
        return measurement.resume_point(self._path(f"{what}_step_{self.facts['step']}"), facts)

    def _run(self, measurement: BitsPerDim | OdeBits, point: ResumeFile, description: str) -> Any:
        done = measurement.calls_done(point)
        with ProgressBar(measurement.num_calls, description, initial=done, enabled=self._is_first) as bar, point:
            if done:
                bar.write(f"{description}: resuming from {done} of {measurement.num_calls} steps")
            return measurement.measure(self._params, on_chunk=bar.update, point=point)

    def _write_bits(self, report: Report, bits: Any, on_file: Callable[[str], None]) -> None:
        by_step, measured = bits.by_step(), {}
        plots = [("likelihood_by_step.png", save_likelihood_by_step, by_step)]
        if bits.reconstruction is None:  # x_0 consists of pixels
            measured["rate_distortion"] = curve = rate_distortion(bits)
            plots.append(("rate_distortion.png", save_rate_distortion, curve))
        with replace_file(self._path("by_step.npz")) as file:
            np.savez(file, **(by_step | measured.get("rate_distortion", {})))
        on_file(self._path("by_step.npz"))
        for name, save, columns in plots:
            save(self._path(name), columns, describe(self.facts))
            on_file(self._path(name))
        summary = {
            name: {"mean": mean, "standard_error": error} for name, (mean, error) in bits.summary().items()
        }
        report.add(bits_per_dim=summary, by_step=by_step, **measured)

    def _draw(self, on_file: Callable[[str], None]) -> None:
        first = np.arange(min(NUM_IMAGES, self.facts["num_images"]))
        data = load_rows(self._source, first, self._condition)
        seed = self._settings.seed
        t, frames = self._progressive.decode(self._params, data, seed=seed, num_moments=NUM_MOMENTS)
        walked, samples = self._progressive.generate(
            self._params, seed=seed, num_samples=NUM_IMAGES, num_moments=NUM_MOMENTS
        )
        if not self._is_first:
            return
        for name, moments, labels in (
            ("progressive_decoding.png", [*frames, data.image], [*step_labels(t), "original"]),
            ("progressive_generation.png", samples, [*step_labels(walked[:-1]), "sample"]),
        ):
            save_strip(self._path(name), np.stack(moments), labels)
            on_file(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)
