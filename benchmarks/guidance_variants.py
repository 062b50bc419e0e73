r"""The variants of guidance on a run with classes, side by side: what each costs in variety and gains in accuracy.

    python benchmarks/guidance_variants.py --workdir=runs/digits_classes --weak=runs/digits_weak \
      --out=docs/images/guidance_variants

Prints a Markdown table. For each setting it has the share of samples that an independent classifier (that of `evaluate
--extractor=classifier`) assigns to the class that was asked for; the Frechet distance of their pixels (0..1) to the
training images, over all classes and as the mean over the classes; and precision and recall in the features of that
classifier. Writes OUT.png: the class distance by scale, and the precision by recall, one line per variant. --weak is
the run whose network is the reference of autoguidance.
"""

import argparse
import os
import sys

import jax
import numpy as np
from guidance import pixels
from matplotlib.figure import Figure
from one_line import check_counts, run

from ddpm_jax.evaluation.feature_classifier import Classifier, check_labels, to_model_scale, train_classifier
from ddpm_jax.evaluation.frechet_distance import frechet_from_features
from ddpm_jax.evaluation.precision_recall import precision_recall
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.runtime.atomic_files import check_folder
from ddpm_jax.runtime.devices import make_mesh

SCALES = (1.5, 2.0, 3.0)
LAMBDAS = (0.1, 0.3, 0.6)
COLUMNS = ("accuracy", "distance", "of each class", "precision", "recall")
OF_LAMBDA = "CFG++"  # its numbers are no scales


def variants(weak: str | None, interval: tuple[float, float]) -> dict[str, list[dict]]:
    """Name -> the settings of its points."""

    def of_scales(**settings) -> list[dict]:
        return [{"guidance_scale": scale, **settings} for scale in SCALES]

    low, high = interval
    found = {
        "no guidance": [{"guidance_scale": 1.0}],
        "classifier-free": of_scales(),
        f"in {low:g},{high:g}": of_scales(guidance_interval=interval),
        "rescale 0.7": of_scales(guidance_rescale=0.7),
        "APG, eta 0": of_scales(apg_eta=0.0),
        OF_LAMBDA: [{"guidance_scale": scale, "cfg_plus_plus": True} for scale in LAMBDAS],
    }
    if weak:
        found["autoguidance"] = of_scales(autoguidance=weak)
        found[f"autoguidance, in {low:g},{high:g}"] = of_scales(autoguidance=weak, guidance_interval=interval)
    return found


def save_plot(path: str, points: dict[str, list[dict[str, float]]]) -> None:
    """Two panels, one line per variant; beside a point its scale."""
    figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2)
    for i, (name, row) in enumerate(points.items()):
        style = {"color": f"C{i}", "marker": "o", "markersize": 4, "linewidth": 1.2}
        scales, distances = ([p[of] for p in row] for of in ("scale", "of each class"))
        if name != OF_LAMBDA:
            left.plot(scales, distances, **style)
        recalls, precisions = ([p[of] for p in row] for of in ("recall", "precision"))
        right.plot(recalls, precisions, **style, label=name)
        for *point, scale in zip(recalls, precisions, scales, strict=True):
            right.annotate(f"{scale:g}", point, (4, 3), textcoords="offset points", fontsize=7, color=f"C{i}")
    left.set(xlabel="scale", ylabel="Frechet distance, mean over the classes", ylim=(0, None))
    left.set_xticks([1.0, *SCALES])
    right.set(xlabel="recall", ylabel="precision")
    right.margins(x=0.1)
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    for axes in (left, right):
        axes.grid(True, linewidth=0.5, color="0.88")
    figure.savefig(path)


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--weak", metavar="DIR", help="a smaller or less trained run, for autoguidance")
    parser.add_argument("--out", required=True, help="write the plot OUT.png")
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--sampler", default="ddim", help="one that CFG++ can use (default ddim)")
    parser.add_argument("--num_sampler_steps", type=int, default=30)
    parser.add_argument("--interval", type=float, nargs=2, default=(-2.0, 4.0))
    return parser


def main(args: argparse.Namespace) -> None:
    """Draws the samples, and prints the table."""
    check_counts(args, "num_samples", "num_sampler_steps")
    trained = open_run(args.workdir)
    check_folder("--out", os.path.dirname(os.path.abspath(args.out)))
    sampler = {"sampler": args.sampler, "num_sampler_steps": args.num_sampler_steps}
    for settings in variants(args.weak, tuple(args.interval)).values():
        for given in settings:  # for their checks
            mesh = make_mesh()
            trained.with_sampler(sampler | given, batch_size=None, num_devices=mesh.size).generator(mesh)
    if os.path.isdir(args.workdir):
        jax.config.update("jax_compilation_cache_dir", os.path.join(args.workdir, "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    source = trained.source()
    num_classes = check_labels(source, args.workdir)
    check_counts(args, "num_samples", least=2 * num_classes)  # the covariance of a class needs two
    judge = train_classifier(source, num_classes)
    read = jax.jit(lambda images: Classifier(num_classes).apply({"params": judge.params}, to_model_scale(images)))
    real, labels = source.load(np.arange(len(source))), np.asarray(source.labels)
    of_real, asked = np.asarray(read(real)[0]), np.arange(args.num_samples) % num_classes
    print(f"the classifier is right on {100 * judge.accuracy:.1f} % of held-out real images")
    print(f"{args.num_samples} samples per row, {args.sampler}, {args.num_sampler_steps} steps\n")
    print("| guidance | scale | read as asked | Frechet distance | of each class alone, mean | precision | recall |")
    print("| --- | --- | --- | --- | --- | --- | --- |")

    def measured(images: np.ndarray) -> dict[str, float]:
        features, logits = map(np.asarray, read(images))
        by_class = [
            frechet_from_features(pixels(real[labels == label]), pixels(images[asked == label]))
            for label in range(num_classes)
        ]
        whole = frechet_from_features(pixels(real), pixels(images))
        accuracy = float(np.mean(logits.argmax(1) == asked))
        return dict(
            zip(COLUMNS, (accuracy, whole, np.mean(by_class), *precision_recall(features, of_real)), strict=True)
        )

    points: dict[str, list[dict[str, float]]] = {}
    for name, settings in variants(args.weak, tuple(args.interval)).items():
        points[name] = []
        for given in settings:
            images = trained.sample(args.num_samples, seed=1, progress=False, **sampler, **given)
            point = {"scale": given["guidance_scale"], **measured(images)}
            points[name].append(point)
            shown = f"{100 * point['accuracy']:.1f} % | {point['distance']:.3f} | {point['of each class']:.3f} | "
            shown += f"{point['precision']:.3f} | {point['recall']:.3f}"
            print(f"| {name} | {given['guidance_scale']:g} | {shown} |", flush=True)
    save_plot(f"{args.out}.png", points)
    print(f"\nwrote {args.out}.png")


if __name__ == "__main__":
    sys.exit(run(main, flags()))
