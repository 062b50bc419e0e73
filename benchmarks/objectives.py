"""L_simple, L_hybrid and L_vlb on one network and one data set: bits per dimension and samples, over several seeds.

    python benchmarks/objectives.py --config=configs/digits.py --out=runs/objectives --seeds 0 1

Trains the experiment with each objective and seed for the same number of updates (an existing run is resumed, or left
alone if it is finished). Then measures the bound on its held-out split, and the Frechet distance of ancestral samples,
with the variance of the run, to real images, in raw pixels of 0..1. Prints one Markdown table. Findings of the papers
(Ho et al. 2020, table 2; Nichol and Dhariwal 2021, tables 1 and 2): L_hybrid and L_vlb give a better bound, L_simple
and L_hybrid give better samples. With self-conditioning the bound is that of the network without an estimate.
"""

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from ddpm_jax.evaluation.elbo_bits_per_dim import build_bits_per_dim
from ddpm_jax.evaluation.frechet_distance import frechet_from_features
from ddpm_jax.experiment.config_files import changed
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.runtime.devices import make_mesh, replicated
from ddpm_jax.runtime.image_files import save_npz

OBJECTIVES = {
    "L_simple, fixed_large": [],
    "L_simple, fixed_small": ["diffusion.variance=fixed_small"],
    "L_hybrid, learned_range": ["diffusion.loss=hybrid", "diffusion.variance=learned_range"],
    "L_vlb, learned_range": ["diffusion.loss=vlb", "diffusion.variance=learned_range"],
    "L_vlb, learned_range, importance sampling": [
        "diffusion.loss=vlb", "diffusion.variance=learned_range", "train.time_sampler=loss_second_moment"
    ],
}  # fmt: skip
ON_REQUEST = {"L_simple, self-conditioning": ["diffusion.self_conditioning=True"]}
ALL = OBJECTIVES | ON_REQUEST
SAME_NETWORK = {"L_simple, fixed_small": "L_simple, fixed_large"}  # same training, sampled with another variance


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--set", nargs="+", default=[], metavar="GROUP.FIELD=VALUE", help="overrides for every run")
    parser.add_argument("--out", required=True, help="folder of the runs")
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(ALL), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--max_images", type=int, default=0, help="held-out images for the bound; 0: all")
    parser.add_argument("--num_samples", type=int, default=1797)
    parser.add_argument("--num_sampler_steps", type=int, default=100)
    parser.add_argument("--reference", default="all", help="split of the real images that samples are compared with")
    args = parser.parse_args()

    mesh = make_mesh()
    print("| objective | bits/dim, held out | Frechet distance |")
    print("| --- | --- | --- |")
    for name in args.objectives:
        bits, distances = [], []
        for seed in args.seeds:
            trained_as = SAME_NETWORK.get(name, name)
            workdir = Path(args.out) / f"{trained_as.replace(', ', '-').replace(' ', '_')}-{seed}"
            settings = [*args.set, *ALL[trained_as], f"train.seed={seed}", "train.sample_every_steps=0"]
            flags = [f"--config.{setting}" for setting in (*settings, "sample.num_sampler_steps=50")]
            train = [sys.executable, "-m", "ddpm_jax.train", f"--config={args.config}", f"--workdir={workdir}"]
            subprocess.run([*train, *flags], check=True, stdout=sys.stderr)
            trained = open_run(str(workdir))
            sampler = ["sample.sampler=ancestral", f"sample.num_sampler_steps={args.num_sampler_steps}"]
            config = changed(trained.config, [*ALL[name], *sampler])
            trained = dataclasses.replace(trained, config=config)
            params = jax.device_put(trained.params, replicated(mesh))
            measure = build_bits_per_dim(
                trained, trained.held_out_split, mesh, seed=0, batch_size=180, max_images=args.max_images
            )
            bits.append(measure.measure(params).summary()["total"][0])
            images = trained.generator(mesh).generate(params, seed=0, num_samples=args.num_samples)
            save_npz(workdir / f"samples_{trained.process.variance}.npz", images)
            real = trained.source(args.reference)
            real = real.load(np.arange(min(len(real), 10_000)))
            distances.append(frechet_from_features(to_features(real), to_features(images)))
            print(f"{workdir}: {bits[-1]:.3f} bits/dim, Frechet distance {distances[-1]:.4f}", file=sys.stderr)
        both = " | ".join(", ".join(f"{value:.{digits}f}" for value in values)
                          for values, digits in ((bits, 3), (distances, 4)))  # fmt: skip
        print(f"| {name} | {both} |", flush=True)
    return 0


def to_features(images: np.ndarray) -> np.ndarray:
    """Raw pixels of 0..1, one row per image."""
    return images.reshape(len(images), -1) / 255.0


if __name__ == "__main__":
    sys.exit(main())
