"""Cascades on the digits, 4x4 to 8x8: what augmentation repairs, and likelihoods of both stages beside one stage.

    python benchmarks/cascade_tables.py --out=runs/cascades

Trains what is missing in the folder: a first stage at 4x4, a single stage at 8x8, and networks from 4x4 to 8x8 without
noise and with noise up to several levels. Then it prints Markdown tables:

1. the Frechet distance of the pixels (0..1) of cascades to the training images, by the highest level of the training
   and the level of the sampling, where the small images are those of training images, samples of the first stage, or
   samples of the same first stage after few updates;
2. the lowest of them beside the single stage after as many updates;
3. bits/dim of p(z) and p(x | z), z the small image, and of their product beside the single stage.
"""

import argparse
import os
import sys
import time

import jax
import numpy as np
from guidance import pixels
from one_line import check_counts, run

import ddpm_jax as dj
from ddpm_jax.cascades.cascade import Cascade, batches
from ddpm_jax.evaluation.elbo_bits_per_dim import build_bits_per_dim, mean_and_error
from ddpm_jax.evaluation.frechet_distance import frechet_from_features
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.runtime.devices import make_mesh, replicated

MAX_LEVELS = (0, 100, 400)  # of the training; 0: without augmentation
LEVELS = (0, 50, 100, 200, 400)  # of the sampling
NETWORK = ("unet.channels=16", "unet.num_groups=4")
SMALL = ("data.image_size=4,4", "data.area_factor=2", "unet.attention_resolutions=4,2")
ENLARGE = ("condition.task=super_resolve", "condition.factor=2")
SEED, FIRST = 1, "4"


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the runs")
    parser.add_argument("--num_updates", type=int, default=1600, help="of each training (default 1600)")
    parser.add_argument("--few_updates", type=int, default=200, help="of the young first stage (default 200)")
    parser.add_argument("--num_samples", type=int, default=1617)
    parser.add_argument("--num_sampler_steps", type=int, default=25)
    return parser


def trained(args: argparse.Namespace, name: str, *overrides: str) -> tuple[TrainedRun, str]:
    """A run of the digits experiment with these changes, trained if it is not there; and its folder."""
    folder = os.path.join(args.out, name)
    every = args.few_updates if name == FIRST else args.num_updates
    lengths = [f"train.num_steps={args.num_updates}", f"train.checkpoint_every_steps={every}"]
    lengths += ["train.keep_checkpoints=1000", "train.sample_every_steps=0", *NETWORK]
    since = time.monotonic()
    dj.train_model(dj.load_config("digits", [*lengths, *overrides]), folder)
    print(f"{name}: {time.monotonic() - since:.0f} s", file=sys.stderr, flush=True)
    return dj.open_run(folder), folder


def of_noise(max_level: int) -> tuple[str, ...]:
    """The fields of a network that is trained with noise up to a level."""
    noise = ("condition.augmentation=noise", f"condition.max_level={max_level}") if max_level else ()
    return (*ENLARGE, *noise)


def enlarged(args: argparse.Namespace, first: TrainedRun, network: TrainedRun, level: int, small) -> np.ndarray:
    """Samples of a cascade from given small images, uint8 [N, 8, 8, 1]."""
    sampler = {"num_sampler_steps": args.num_sampler_steps}
    noise = {"augmentation_level": level} if level else {}
    stage = Cascade([first, network], settings=[sampler, sampler | noise]).stages[1]
    return np.concatenate(list(batches(stage, small, len(small), SEED, lambda num_new: None)))


def bits(network: TrainedRun) -> np.ndarray:
    """The bound of each held-out image, bits per dimension of the image, [N]."""
    mesh = make_mesh()
    measure = build_bits_per_dim(network, network.held_out_split, mesh, seed=0, batch_size=64, max_images=0)
    return measure.measure(jax.device_put(network.params, replicated(mesh))).total


def print_row(*cells: str) -> None:
    """A row of a Markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def main(args: argparse.Namespace) -> None:
    """Trains, draws and prints."""
    check_counts(args, "num_updates", "few_updates", "num_sampler_steps")
    check_counts(args, "num_samples", least=2)
    first, folder = trained(args, FIRST, *SMALL)
    young = dj.open_run(folder, step=args.few_updates)
    single, _ = trained(args, "8")
    networks = {level: trained(args, f"4to8_level_{level}", *of_noise(level))[0] for level in MAX_LEVELS}

    source = single.source()
    real = pixels(source.load(np.arange(len(source))))
    sampler = {"num_sampler_steps": args.num_sampler_steps, "progress": False, "seed": SEED}
    true = first.source().load(np.arange(len(first.source())))[: args.num_samples]
    smalls = {
        "of training images": true,
        f"{args.num_updates} updates": first.sample(len(true), **sampler),
        f"{args.few_updates} updates": young.sample(len(true), **sampler),
    }
    print(f"\n{len(true)} samples, {args.num_sampler_steps} steps per stage\n")
    print_row("small images", "trained with levels up to", *(f"level {level}" for level in LEVELS))
    print_row(*["---"] * (2 + len(LEVELS)))
    best = {}
    for name, small in smalls.items():
        for max_level, network in networks.items():
            cells = []
            for level in LEVELS:
                if level > max_level:
                    cells.append("")
                    continue
                samples = enlarged(args, first, network, level, small)
                distance = frechet_from_features(real, pixels(samples))
                best[name] = min(best.get(name, np.inf), distance)
                cells.append(f"{distance:.3f}")
            print_row(name, str(max_level or "none"), *cells)

    print("\n| samples | Frechet distance |\n| --- | --- |")
    for name, distance in best.items():
        print_row(f"cascade, small images: {name}, the lowest above", f"{distance:.3f}")
    print_row("single stage", f"{frechet_from_features(real, pixels(single.sample(len(true), **sampler))):.3f}")

    low, high, whole = bits(first), bits(networks[0]), bits(single)
    parts = {"p(z), 4x4": low, "p(x given z), 8x8": high}
    print("\n| bound on | bits/dim of its image | bits/dim of x |\n| --- | --- | --- |")
    for (name, values), share in zip(parts.items(), (1 / 4, 1.0), strict=True):
        print_row(name, in_words(values), in_words(share * values))
    print_row("p(z) p(x given z)", "", in_words(low / 4 + high))
    print_row("p(x), single stage", in_words(whole), in_words(whole))


def in_words(values: np.ndarray) -> str:
    """Mean and standard error."""
    mean, error = mean_and_error(values)
    return f"{mean:.3f} +- {error:.3f}"


if __name__ == "__main__":
    sys.exit(run(main, flags()))
