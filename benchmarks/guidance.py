"""Effect of guidance on a run: class accuracy and Frechet distance by scale.

    python benchmarks/guidance.py --workdir=runs/digits_classes --out=docs/images/guidance
    python benchmarks/guidance.py --workdir=digits --classifier=runs/classifier_digits --out=docs/images/classifier

With --classifier the scales are those of classifier guidance, also of a run without classes; else of classifier-free
guidance.

Prints a Markdown table. For each scale it has the share of samples that an independent classifier assigns to the class
that was asked for, and the Frechet distance of their pixels (0..1) to the training images (not an FID), over all
classes and as the mean over the classes. The classifier is that of `evaluate --extractor=classifier`, trained on real
images only; its own accuracy is measured on held-out images. Writes OUT.png with one row per class and one column per
scale, each row from the same noise. --zero_shot adds the bits/dim of held-out images with their class and with the null
class, and how often p(image | class) is largest for the right class.
"""

import argparse
import os

import jax
import numpy as np

from ddpm_jax.data import ImageSource
from ddpm_jax.diffusion.rng import seed_keys
from ddpm_jax.diffusion.timestep_spacing import named_steps
from ddpm_jax.evaluation.elbo_bits_per_dim import BitsPerDim
from ddpm_jax.evaluation.feature_classifier import Classifier, check_labels, to_model_scale, train_classifier
from ddpm_jax.evaluation.frechet_distance import frechet_from_features
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.runtime.devices import make_mesh, replicated
from ddpm_jax.runtime.image_files import save_strip


class WithLabel:
    """A source that gives all its images the same class."""

    def __init__(self, source: ImageSource, label: int):
        self._source, self.labels = source, np.full(len(source), label)
        self.image_shape, self.notes = source.image_shape, source.notes

    def __len__(self) -> int:
        return len(self._source)

    def load(self, indices: np.ndarray) -> np.ndarray:
        """Images of the wrapped source."""
        return self._source.load(indices)


def pixels(images: np.ndarray) -> np.ndarray:
    """Pixels of 0..1, one row per image, float64."""
    return images.reshape(len(images), -1).astype(np.float64) / 255


def row_of(name: str, images: np.ndarray, asked: np.ndarray, read: np.ndarray, real: tuple[np.ndarray, np.ndarray]):
    """Prints one row of the table."""
    whole = frechet_from_features(pixels(real[0]), pixels(images))
    by_class = [
        frechet_from_features(pixels(real[0][real[1] == label]), pixels(images[asked == label]))
        for label in np.unique(real[1])
    ]
    print(f"| {name} | {100 * np.mean(read == asked):.1f} % | {whole:.3f} | {np.mean(by_class):.3f} |", flush=True)


def zero_shot(run: TrainedRun, mesh: jax.sharding.Mesh, num_classes: int, respacing: str, max_images: int) -> None:
    """Bits/dim of held-out images with every class, using the same noise for all classes."""
    source = run.source(run.held_out_split, "data.eval_split")
    num_dims = np.prod(run.image_shape)
    process = run.process.respaced(named_steps(run.process.num_steps, respacing)[::-1])
    denoiser_of = run.denoiser_of(process=process, dynamic_threshold=0.0)
    params, totals = jax.device_put(run.params, replicated(mesh)), []
    for label in range(num_classes + (run.condition["label"].null is not None)):
        bits = BitsPerDim(
            denoiser_of,
            process,
            WithLabel(source, label),
            key=seed_keys(0).eval,
            mesh=mesh,
            batch_size=256,
            max_images=max_images,
            spec=run.condition,
        )
        totals.append(bits.measure(params).total)
    totals = np.stack(totals)  # [classes and null, N]
    labels = source.labels[: totals.shape[1]]
    with_class = totals[labels, np.arange(len(labels))]
    best = np.argmin(totals[:num_classes], axis=0)
    log_p = -totals[:num_classes] * num_dims * np.log(2)
    log_p -= log_p.max(0)
    p = np.exp(log_p) / np.exp(log_p).sum(0)
    wrong = [np.delete(totals[:num_classes, i], label).mean() for i, label in enumerate(labels)]
    print(f"\nbits/dim of {len(labels)} held-out images, the bound over {respacing} steps:")
    print(f"with their class {with_class.mean():.4f}, ", end="")
    if len(totals) > num_classes:
        print(f"with the null {totals[-1].mean():.4f}, ", end="")
    print(f"with a wrong class {np.mean(wrong):.4f}")
    print(
        f"the likeliest class is the right one for {100 * np.mean(best == labels):.1f} %; "
        f"p(right class | image) is {p[labels, np.arange(len(labels))].mean():.3f} on average"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--out", required=True, help="write the image OUT.png")
    parser.add_argument("--scales", type=float, nargs="+", default=[0, 1, 1.5, 2, 3, 5, 8])
    parser.add_argument("--classifier", metavar="DIR", help="the run of a classifier of noised images")
    parser.add_argument("--num_samples", type=int, default=2000)
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--num_sampler_steps", type=int, default=25)
    parser.add_argument("--interval", help="adds a row with this interval for each scale above 1, such as -2,4")
    parser.add_argument("--zero_shot", metavar="STEPS", help="also classify by the bound over these steps, such as 100")
    parser.add_argument("--max_images", type=int, default=180, help="number of images for --zero_shot")
    args = parser.parse_args()

    # The bound with another class uses the same compiled program.
    if os.path.isdir(args.workdir):  # no run of the package
        jax.config.update("jax_compilation_cache_dir", os.path.join(args.workdir, "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    run, mesh = open_run(args.workdir), make_mesh()
    source = run.source()
    num_classes = check_labels(source, args.workdir)
    trained = train_classifier(source, num_classes)
    read = jax.jit(
        lambda images: Classifier(num_classes).apply({"params": trained.params}, to_model_scale(images))[1].argmax(1)
    )
    real = source.load(np.arange(len(source))), np.asarray(source.labels)
    print(f"the classifier is right on {100 * trained.accuracy:.1f} % of held-out real images")
    print(f"{args.num_samples} samples per row, {args.sampler}, {args.num_sampler_steps} steps\n")
    print("| guidance scale | read as asked | Frechet distance | of each class alone, mean |")
    print("| --- | --- | --- | --- |")
    params, columns = jax.device_put(run.params, replicated(mesh)), []
    for scale in args.scales:
        for interval in (None, args.interval) if args.interval and scale > 1 and not args.classifier else (None,):
            given = {"sampler": args.sampler, "num_sampler_steps": args.num_sampler_steps}
            if args.classifier:
                given |= {"classifier": args.classifier, "classifier_scale": scale}
            else:
                given |= {"guidance_scale": scale} | ({"guidance_interval": interval} if interval else {})
            chosen = run.with_sampler(given, batch_size=None, num_devices=mesh.size)
            generator = chosen.generator(mesh)
            images = generator.generate(params, seed=1, num_samples=args.num_samples)
            if args.classifier and scale == 0 and "label" not in generator.labels_of(np.arange(1)):
                asked = np.arange(args.num_samples) % num_classes  # nothing was asked: by chance
            else:
                asked = generator.labels_of(np.arange(args.num_samples))["label"]
            name = f"{scale:g}, in {interval}" if interval else f"{scale:g}"
            row_of(name, images, asked, np.asarray(read(images)), real)
            if not interval:
                columns.append(images[:num_classes])
    save_strip(f"{args.out}.png", np.stack(columns), [f"s={scale:g}" for scale in args.scales])
    print(f"\nwrote {args.out}.png")
    if args.zero_shot:
        zero_shot(run, mesh, num_classes, args.zero_shot, args.max_images)


if __name__ == "__main__":
    main()
