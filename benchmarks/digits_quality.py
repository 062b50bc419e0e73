"""How good samples of scikit-learn's digits are: Frechet distance, legibility, class balance, memorisation.

    python benchmarks/digits_quality.py runs/digits/samples.npz [more.npz ...] [--json=quality.json]

Each file holds uint8 `arr_0` of shape [N, 8, 8, 1] or [N, 8, 8]. The real set is `load_digits`: 1797 images
of 8 x 8, as uint8 round(v * 255 / 16); index % 10 == 0 is held out, the other 1617 images train a model.
Everything below is computed on pixels scaled to 0..1, with fixed seeds.

Frechet distance, in raw pixel space (64 dims; unit: squared pixel value, summed over the image). It is biased upwards
by about 1/N of each set, so compare only rows of equal set sizes:
- "all": all samples versus all 1797 real images. There are two reference values. "bootstrap" is 1797 real images drawn
  with replacement versus the real set: what a model reaches that repeats real images at random, or that has exactly
  their mean and covariance. "floor", half of "halves", is 1797 fresh real images versus 1797, extrapolated (the bias
  was measured to fall like 1/N down to halves, quarters and eighths, within 5 %).
- "halves": for the real set, one random half versus the other; for samples, a random 898 of them versus a random half
  of the real set. Mean and standard deviation over 20 splits. The real set's number is that of fresh real images. A
  model with exactly the real set's mean and covariance lies below it (about 0.05), a copy of the set lower still
  (0.036). Files with fewer than 898 samples have no such row.

Legibility: a classifier (multinomial logistic regression on Nystroem features of an RBF kernel) gives 10 probabilities.
It answers "unsure" far from all digits: it classifies 0 % of uniform noise with confidence. "confident" is the share of
images whose largest probability is at least 0.9. Each real image is classified by a classifier that was not trained on
it (10 folds by index % 10); samples are classified by the one trained on the 1617 images.
Class entropy is that of the histogram of predicted labels, in nats; a uniform histogram has ln 10 = 2.303.

Memorisation: Euclidean distance to the nearest of the 1617 training images, for samples and for the 180 held-out
images. A model that copies has distances well below those of the held-out images. "near copies" is the share of samples
closer than the 5th percentile of the held-out images; fresh real images have 5 %.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from ddpm_jax.evaluation.frechet_distance import frechet_from_features
from ddpm_jax.runtime.errors import UserError

NUM_FOLDS = 10  # fold 0 is held out of training
NUM_SPLITS = 20
CONFIDENT = 0.9
COPY_QUANTILE = 0.05


def load_real() -> tuple[np.ndarray, np.ndarray]:
    """The real digits: images, uint8 [1797, 8, 8], and labels, int [1797]."""
    digits = load_digits()
    return np.round(digits.images * 255 / 16).astype(np.uint8), digits.target


def is_training(num_images: int) -> np.ndarray:
    """Bool [num_images]: True for the images that a model may train on."""
    return np.arange(num_images) % NUM_FOLDS != 0


def load_samples(path: str) -> np.ndarray:
    """uint8 [N, 8, 8] from `arr_0` of an .npz file.

    Raises:
        UserError: no such file, not an .npz, no `arr_0`, or another shape or type.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            images = archive["arr_0"]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except KeyError:
        raise UserError(f"{path}: must hold an array 'arr_0'") from None
    except Exception as error:  # np.load raises many different types for a file that is not an archive
        raise UserError(f"{path}: not a readable .npz file ({error})".replace("\n", " ")) from None
    if images.dtype != np.uint8 or images.shape[1:] not in ((8, 8), (8, 8, 1)) or len(images) < 2:
        raise UserError(
            f"{path}: arr_0 must be uint8 of shape [N, 8, 8, 1] or [N, 8, 8], N at least 2; "
            f"got {images.dtype} {list(images.shape)}"
        )
    return images.reshape(-1, 8, 8)


def to_features(images: np.ndarray) -> np.ndarray:
    """uint8 [N, 8, 8] -> float64 [N, 64] on the scale 0..1."""
    return images.reshape(len(images), -1) / 255.0


def mean_and_std(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}


def frechet_halves(real: np.ndarray, samples: np.ndarray | None = None) -> dict[str, float] | None:
    """Half of the real set versus its other half, or versus as many samples; None if there are too few."""
    rng = np.random.default_rng(0)
    half = len(real) // 2
    if samples is not None and len(samples) < half:
        return None
    distances = []
    for _ in range(NUM_SPLITS):
        order = rng.permutation(len(real))
        other = real[order[:half]] if samples is None else samples[rng.permutation(len(samples))[:half]]
        distances.append(frechet_from_features(other, real[order[half:]]))
    return mean_and_std(distances)


def frechet_bootstrap(real: np.ndarray) -> dict[str, float]:
    """As many real images, drawn with replacement, versus the real set."""
    rng = np.random.default_rng(1)
    draws = (rng.integers(len(real), size=len(real)) for _ in range(NUM_SPLITS))
    return mean_and_std([frechet_from_features(real[draw], real) for draw in draws])


def fit_classifier(features: np.ndarray, labels: np.ndarray) -> Pipeline:
    """p(label | image). Kernel width and penalty have the lowest held-out log loss (0.036 nats) of a small grid."""
    classifier = make_pipeline(
        Nystroem(gamma=0.2, n_components=600, random_state=0), LogisticRegression(C=100.0, max_iter=2000)
    )
    return classifier.fit(features, labels)


def legibility(probabilities: np.ndarray) -> dict[str, object]:
    """What the classifier predicts: confident share, histogram of labels, its entropy in nats."""
    counts = np.bincount(probabilities.argmax(axis=1), minlength=10)
    shares = counts[counts > 0] / counts.sum()
    return {
        "confident": float((probabilities.max(axis=1) >= CONFIDENT).mean()),
        "class_counts": counts.tolist(),
        "class_entropy_nats": float(-(shares * np.log(shares)).sum()),
    }


def nearest_distances(features: np.ndarray, training: np.ndarray) -> np.ndarray:
    """[N]: Euclidean distance from each row to the nearest training row."""
    blocks = np.array_split(features, max(1, len(features) // 2000))
    return np.concatenate([cdist(block, training).min(axis=1) for block in blocks])


def memorisation(distances: np.ndarray, copy_distance: float) -> dict[str, float]:
    return {
        "nearest_mean": float(distances.mean()),
        "nearest_min": float(distances.min()),
        "near_copies": float((distances < copy_distance).mean()),
    }


class Judge:
    """Measures any set of images against the real digits; work that depends only on the real digits is done once."""

    def __init__(self) -> None:
        images, labels = load_real()
        self.real = to_features(images)
        train = is_training(len(self.real))
        self.training = self.real[train]
        held_out_distances = nearest_distances(self.real[~train], self.training)
        self.copy_distance = float(np.quantile(held_out_distances, COPY_QUANTILE))

        probabilities = np.empty((len(self.real), 10))
        for fold in range(NUM_FOLDS):
            unseen = np.arange(len(self.real)) % NUM_FOLDS == fold
            classifier = fit_classifier(self.real[~unseen], labels[~unseen])
            probabilities[unseen] = classifier.predict_proba(self.real[unseen])
            if fold == 0:
                self.classifier = classifier
        correct = probabilities.argmax(axis=1) == labels

        halves, bootstrap = frechet_halves(self.real), frechet_bootstrap(self.real)
        self.reference = {
            "num_images": len(self.real),
            "frechet_all": None,
            "frechet_floor": halves["mean"] / 2,
            "frechet_bootstrap": bootstrap,
            "frechet_halves": halves,
            "classifier_accuracy": float(correct.mean()),
            "classifier_accuracy_held_out": float(correct[~train].mean()),
            **legibility(probabilities),
            **memorisation(held_out_distances, self.copy_distance),
        }

    def __call__(self, images: np.ndarray) -> dict[str, object]:
        """The numbers of uint8 images [N, 8, 8], named as in `reference`."""
        samples = to_features(images)
        return {
            "num_images": len(samples),
            "frechet_all": frechet_from_features(samples, self.real),
            "frechet_halves": frechet_halves(self.real, samples),
            **legibility(self.classifier.predict_proba(samples)),
            **memorisation(nearest_distances(samples, self.training), self.copy_distance),
        }


def format_table(reference: dict, results: dict[str, dict]) -> str:
    """The numbers as a table: one column for the real set, one for each file."""

    def spread(value: dict | None) -> str:
        return "-" if value is None else f"{value['mean']:.4f} +- {value['std']:.4f}"

    rows = {
        "images": lambda r: str(r["num_images"]),
        "Frechet, all v 1797 real": lambda r: "-" if r["frechet_all"] is None else f"{r['frechet_all']:.4f}",
        "Frechet, 898 v 899 real": lambda r: spread(r["frechet_halves"]),
        f"confident (p >= {CONFIDENT}), %": lambda r: f"{100 * r['confident']:.1f}",
        "class entropy, nats": lambda r: f"{r['class_entropy_nats']:.3f}",
        "nearest training image": lambda r: f"{r['nearest_mean']:.3f}",
        "  closest of all": lambda r: f"{r['nearest_min']:.3f}",
        "  near copies, %": lambda r: f"{100 * r['near_copies']:.1f}",
        "class counts": lambda r: " ".join(map(str, r["class_counts"])),
    }
    columns = {"real": reference, **results}
    cells = [["", *columns], *([name, *map(show, columns.values())] for name, show in rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines += [
        "",
        "Pixels on the scale 0..1. References for 'all v 1797 real':",
        f"  {spread(reference['frechet_bootstrap'])} for real images repeated at random (bootstrap),",
        f"  {reference['frechet_floor']:.4f} for fresh real images (half of the real set's 898 v 899).",
        f"Classifier: {100 * reference['classifier_accuracy']:.1f} % correct on real images it has not seen "
        f"(10 folds), {100 * reference['classifier_accuracy_held_out']:.1f} % on the 180 held out.",
        "Nearest training image: 'real' is the 180 held-out images; a near copy is closer than 95 % of them.",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE.npz", help="uint8 arr_0 [N, 8, 8, 1]")
    parser.add_argument("--json", metavar="PATH", help="also write the numbers to this JSON file")
    args = parser.parse_args(argv)
    try:
        sets = {path: load_samples(path) for path in args.files}
        judge = Judge()
        results = {path: judge(images) for path, images in sets.items()}
        if args.json:
            try:
                Path(args.json).write_text(
                    json.dumps({"pixel_scale": "0..1", "real": judge.reference, "samples": results}, indent=2)
                    + "\n"
                )
            except OSError as error:
                raise UserError(f"--json={args.json}: cannot be written ({error.strerror})") from None
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_table(judge.reference, results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
