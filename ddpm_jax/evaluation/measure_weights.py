"""Measures the weights of a run, averages of several lengths side by side, or the images of a file."""

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from ddpm_jax.evaluation import sample_metrics
from ddpm_jax.evaluation.ema_lengths import lengths_table, numbers_of, write_lengths
from ddpm_jax.evaluation.feature_extractors import MAX_PIXELS
from ddpm_jax.evaluation.metric_settings import SampleSettings
from ddpm_jax.evaluation.metrics_from_features import numbers_table
from ddpm_jax.evaluation.report import JSON_NAME, TABLE_NAME, Report
from ddpm_jax.evaluation.run_evaluation import Evaluation, EvaluationSettings
from ddpm_jax.experiment.open_run import open_run, weights_text
from ddpm_jax.experiment.packaged_runs import output_folder
from ddpm_jax.experiment.sampler_flags import as_typed, given_sampler_flags
from ddpm_jax.experiment.sampler_settings import settings_named
from ddpm_jax.experiment.trained_run import DATA_FIELDS, SAMPLE_FIELDS, TrainedRun
from ddpm_jax.runtime import multi_host
from ddpm_jax.runtime.command_line import image_size_of
from ddpm_jax.runtime.devices import make_mesh
from ddpm_jax.runtime.errors import UserError


def measured_text(
    args: argparse.Namespace, settings: EvaluationSettings, stds: Sequence[float], written: list[str]
) -> str | None:
    """Measures what the flags of `python -m ddpm_jax.evaluate` name; returns the text to print.

    Args:
      stds: lengths of averages, measured in place of `args.weights` if there are any.
      written: the paths of the files that are written are added to it.
    """
    if len(stds) < 2:
        std = stds[0] if stds else None
        return _measure(args, settings, _open(args, std), std, written)[0]
    return _compare_lengths(args, settings, stds, sample_folder(args), written)


def _compare_lengths(
    args: argparse.Namespace, settings: EvaluationSettings, stds: Sequence[float], folder: str, written: list[str]
) -> str | None:
    """Measures each average into a folder of its own, FOLDER/ema_std_S; returns the table, on the first process."""
    runs = {std: _open(args, std) for std in stds}  # for their checks, before hours of measurements
    numbers = {}
    for std, trained in runs.items():
        out = os.path.join(folder, f"ema_std_{std!r}")
        of_std = argparse.Namespace(**vars(args) | {"out": out})
        _, report, entry = _measure(of_std, dataclasses.replace(settings, out=out), trained, std, written)
        numbers[std] = numbers_of(report.results if report else {}, entry)
    if not multi_host.is_first():
        return None
    errors = {std: trained.post_hoc.profile_error for std, trained in runs.items()}
    written += write_lengths(folder, numbers, errors)
    return lengths_table(numbers, errors)


def _open(args: argparse.Namespace, std: float | None) -> TrainedRun | None:
    """The `TrainedRun` to measure; None if images are measured."""
    if args.workdir is None:
        return None
    trained = open_run(args.workdir, step=args.step, best=args.best, weights=args.weights, ema_std=std)
    if trained.post_hoc is not None and multi_host.is_first():
        print(trained.post_hoc)
    trained = trained.with_fields(args.overrides, (*DATA_FIELDS, *SAMPLE_FIELDS))
    remedy = ": for their bound take bits_per_dim in Python (docs/evaluate.md)"
    trained.check_images("evaluate measures images", remedy)
    return trained


def _measure(
    args: argparse.Namespace,
    settings: EvaluationSettings,
    trained: TrainedRun | None,
    std: float | None,
    written: list[str],
) -> tuple[str | None, Report | None, dict[str, Any] | None]:
    """Measures one set of weights, or the images of a file; returns the text to print, the `Report` of all but samples,
    and the entry of samples."""
    weights, report, metrics, entry = weights_text(args.weights, std), None, None, None
    if "samples" in settings.what:
        metrics = _build_sample_metrics(args, trained, weights)  # for its checks, before hours of other measurements
    if set(settings.what) != {"samples"}:
        evaluation = Evaluation(trained, settings, workdir=args.workdir, weights=weights)
        report = evaluation.measure(on_file=written.append)
    text = report.markdown() if report and set(settings.what) != {"pictures"} else None
    if metrics is not None:
        text, entry = _measure_samples(metrics, sample_folder(args), report, written)
    return text, report, entry


def _build_sample_metrics(
    args: argparse.Namespace, trained: TrainedRun | None, weights: str
) -> sample_metrics.SampleMetrics:
    """The `SampleMetrics` of a `TrainedRun` with weights of that name, or of files if it is None."""
    names = ("extractor", "inception_weights", "resize", "reference", "num_reference", "num_samples", "data_path",
             "cache", "batch_size", "seed")  # fmt: skip
    image_size = None if args.image_size is None else image_size_of("--image_size", args.image_size)
    if args.extractor == "pixels" and image_size is not None and math.prod(image_size) > MAX_PIXELS:
        raise UserError(
            f"--extractor=pixels compares at most {MAX_PIXELS} values per image; got --image_size={args.image_size}: "
            "take another --extractor, or a smaller --image_size"
        )
    settings = SampleSettings(**{name: getattr(args, name) for name in names}, image_size=image_size)
    if trained is None:
        samples, reference = sample_metrics.sets_of_files(settings, args.samples)
    else:
        mesh = make_mesh()
        # Only for these metrics: the other measurements keep the run's own sampler.
        given = given_sampler_flags(args)
        with as_typed(args):
            trained = trained.with_sampler(given, batch_size=args.batch_size or None, num_devices=mesh.size)
        with as_typed(args), settings_named(given):
            samples, reference = sample_metrics.sets_of_run(
                settings, trained, weights=weights, mesh=mesh, folder=sample_folder(args)
            )
    return sample_metrics.SampleMetrics(settings, samples, reference, out=sample_folder(args))


def _measure_samples(
    metrics: sample_metrics.SampleMetrics, folder: str | None, report: Report | None, written: list[str]
) -> tuple[str | None, dict[str, Any] | None]:
    """Measures, adds the result to the `Report` (None: a new one), and returns the text to print and the entry."""
    if metrics.warning and multi_host.is_first():
        print(f"warning: {metrics.warning}", file=sys.stderr, flush=True)
    entry = metrics.measure()
    if entry is None:  # not the first process
        return None, None
    printed = entry | {"warning": None}  # it was printed before the measurement
    if folder is None:
        return numbers_table(printed), entry
    alone = report is None
    report = report or Report(folder, None)
    report.add_samples(entry)
    written += [os.path.join(folder, name) for name in (JSON_NAME, TABLE_NAME)]
    return numbers_table(printed) if alone else report.markdown(), entry


def sample_folder(args: argparse.Namespace) -> str | None:
    """The absolute output folder; None if images are measured without one."""
    folder = args.out or (os.path.join(output_folder(args.workdir), "evaluation") if args.workdir else None)
    return os.path.abspath(folder) if folder else None
