"""Sample metrics from features of samples and of real images; their names depend on the kind of features."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_jax.evaluation.frechet_distance import fit_gaussian, frechet_distance
from ddpm_jax.evaluation.inception_score import NUM_SPLITS, inception_score, softmax
from ddpm_jax.evaluation.kid import NUM_SUBSETS, SUBSET_SIZE, kernel_distance, kernel_distance_of_subsets, num_blocks
from ddpm_jax.evaluation.precision_recall import NUM_NEIGHBOURS, precision_recall
from ddpm_jax.evaluation.texture import PERCENTILE, texture_numbers

FEW_SAMPLES = 10_000

# Only numbers from Inception have the names that papers use; the others measure something else.
NAMES = {
    "inception": {
        "frechet": "FID",
        "kernel": "KID",
        "spatial_frechet": "sFID",
        "score": "Inception Score",
        "precision": "precision",
        "recall": "recall",
    },
    "classifier": {
        "frechet": "Frechet distance (classifier features)",
        "kernel": "kernel distance (classifier features)",
        "score": "class score (classifier)",
        "precision": "precision (classifier features)",
        "recall": "recall (classifier features)",
    },
    "pixels": {
        "frechet": "Frechet distance (pixels)",
        "kernel": "kernel distance (pixels)",
        "precision": "precision (pixels)",
        "recall": "recall (pixels)",
    },
}

Progress = Callable[[str, int], Callable[[int], None]]  # (description, total) -> a function that counts


def sample_numbers(
    samples: dict[str, np.ndarray], reference: dict[str, np.ndarray], *, same_shape: bool = True, progress: Progress
) -> dict[str, Any]:
    """All numbers that these features allow, by the keys of NAMES, and those of `texture_numbers`.

    Args:
      samples, reference: name -> [N, D] from `feature_extractors`: "main", and if available "spatial" and "logits";
        and "texture", [N, 3], from `texture_of`.
      same_shape: whether the images of both have the same shape; if not, their texture cannot be compared and is left
        out.
      progress: for the slow parts.
    """
    a, b = samples["main"], reference["main"]
    numbers: dict[str, Any] = {"frechet": _frechet(a, b)}
    mean, deviation = kernel_distance_of_subsets(a, b)
    count = progress("kernel distance", num_blocks(len(a), len(b)))
    whole = kernel_distance(a, b, on_block=lambda: count(1))
    numbers["kernel"] = {
        "mean": mean,
        "standard_deviation": deviation,
        "num_subsets": NUM_SUBSETS,
        "subset_size": min(SUBSET_SIZE, len(a), len(b)),
        "whole": whole,
    }
    if "spatial" in samples:
        numbers["spatial_frechet"] = _frechet(samples["spatial"], reference["spatial"])
    if "logits" in samples:
        mean, deviation = inception_score(softmax(samples["logits"]))
        # In a fixed shuffled order: the images of a folder come class by class, and a split would hold one class.
        order = np.random.default_rng(0).permutation(len(reference["logits"]))
        of_reference = inception_score(softmax(reference["logits"][order]))[0]
        numbers["score"] = {
            "mean": mean,
            "standard_deviation": deviation,
            "num_splits": NUM_SPLITS,
            "of_reference": of_reference,
        }
    count = progress("precision and recall", 2 * (len(a) + len(b)))
    numbers["precision"], numbers["recall"] = precision_recall(a, b, on_rows=count)
    if same_shape:
        numbers |= texture_numbers(samples["texture"], reference["texture"])
    return numbers


def check_counts(num_samples: int, num_reference: int, has_logits: bool) -> str | None:
    """An error text if there are too few images, else None."""
    least = max(NUM_NEIGHBOURS + 1, NUM_SPLITS if has_logits else 0)
    if min(num_samples, num_reference) < least:
        return f"must be at least {least} on each side; got {num_samples} samples and {num_reference} real images"
    return None


def _frechet(a: np.ndarray, b: np.ndarray) -> float:
    (mean_1, cov_1), (mean_2, cov_2) = fit_gaussian(a), fit_gaussian(b)
    return frechet_distance(mean_1=mean_1, cov_1=cov_1, mean_2=mean_2, cov_2=cov_2)


def warning_of(extractor: str, num_samples: int, num_reference: int) -> str | None:
    """A warning if the sets are so small that the numbers cannot be compared with published ones, else None."""
    if min(num_samples, num_reference) >= FEW_SAMPLES:
        return None
    name = NAMES[extractor]["frechet"]
    return (
        f"{name} of {num_samples} samples and {num_reference} real images: its bias falls like 1/N; below "
        f"{FEW_SAMPLES:,} images compare it only with numbers from the same counts (papers use 50,000)"
    )


def numbers_table(entry: dict[str, Any]) -> str:
    """The protocol, and a table with one row per number."""
    protocol, numbers = entry["protocol"], entry["numbers"]
    names = NAMES[protocol["extractor"]["name"]]
    lines = [describe_protocol(protocol) + "."]
    if entry["warning"]:
        lines.append(f"\nNote: {entry['warning']}.")
    lines += ["", "| number | value | |", "| --- | ---: | --- |"]
    for key, name in names.items():
        if key not in numbers:
            continue
        value, note = numbers[key], ""
        if key == "kernel":
            note = (
                f"± {value['standard_deviation']:.3g} over {value['num_subsets']} subsets of {value['subset_size']}; "
                f"{value['whole']:.4g} on all pairs"
            )
            if value["subset_size"] == protocol["samples"]["num_images"] == protocol["reference"]["num_images"]:
                note = f"on all pairs, because {value['subset_size']} images are too few for subsets"
            value = value["mean"]
        elif key == "score":
            note = (
                f"± {value['standard_deviation']:.3g} over {value['num_splits']} splits; the real images: "
                f"{value['of_reference']:.4g}"
            )
            value = value["mean"]
        elif key in ("precision", "recall"):
            note = f"{NUM_NEIGHBOURS} neighbours"
        lines.append(f"| {name} | {value:.5g} | {note} |")
    return "\n".join(lines + _texture_rows(numbers))


def _texture_rows(numbers: dict[str, Any]) -> list[str]:
    """Rows about the pixels themselves, for every extractor; none if the two sides have different shapes."""
    if "total_variation" not in numbers:
        return []
    variation = numbers["total_variation"]
    is_flat = variation["ratio"] is None or not math.isfinite(variation["ratio"])
    ratio = "-" if is_flat else f"{variation['ratio']:.3f}"
    note = f"times that of the real images, {variation['of_reference']:.4g} grey levels"
    lines = [f"| total variation | {ratio} | {note} |"]
    for name, what in (("speckled", "grain"), ("salted", "stray pixels")):
        note = f"have more {what} than {PERCENTILE} % of the real images"
        lines.append(f"| {name} images | {numbers[name]['share']:.1%} | {note} |")
    return lines


def describe_protocol(protocol: dict[str, Any]) -> str:
    """Everything that the numbers depend on, in one sentence."""
    extractor, samples, reference = protocol["extractor"], protocol["samples"], protocol["reference"]

    def images(of: dict[str, Any]) -> str:
        return f"{of['num_images']} of {of['name']} ({'x'.join(map(str, of['image_shape']))})"

    if "sampler" in samples:
        how = (
            f"{images(samples)}, step {samples['step']}, {samples['weights']} weights, {samples['sampler']} with "
            f"{samples['num_calls']} network calls, seed {samples['seed']}"
        )
        if "shown_images" in samples:
            how += f", the network shown {samples['shown_images']} images in turn"
    else:
        how = images(samples)
    if extractor["name"] == "inception":
        what = f"Inception v3 (2015-12-05), weights {extractor['weights_fingerprint']}, resize {extractor['resize']}"
    elif extractor["name"] == "classifier":
        trained = extractor["trained_on"]
        what = (
            f"a classifier trained on nine tenths of the {trained['num_images']} images of {trained['name']} "
            f"({100 * extractor['held_out_accuracy']:.1f} % accuracy on the others), weights "
            f"{extractor['weights_fingerprint']}: no FID"
        )
    else:
        what = "pixels on the scale 0..1: no FID"
    return f"Samples: {how}. Against: {images(reference)}. Features: {what}"
