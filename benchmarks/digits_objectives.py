"""L_simple, L_hybrid and L_vlb on the digits: bits per dimension and samples, over several seeds.

    python benchmarks/digits_objectives.py --out=runs/objectives --seeds 0 1

Trains configs/digits.py with each objective and seed for the same number of updates (a run that is there goes on or is
left alone), then measures the bound on the held-out digits (`python -m ddpm_jax.evaluate`) and the samples
(Frechet distance in raw pixels to all 1,797 real digits, ancestral sampling with the variance of the run). Prints one
Markdown table. What the papers found (Ho et al. 2020, table 2; Nichol and Dhariwal 2021, tables 1 and 2): the bound is
better with L_hybrid and L_vlb, samples are better with L_simple and L_hybrid.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from digits_quality import load_real, to_features

from ddpm_jax import factories, sampler_factory
from ddpm_jax.devices import make_mesh, replicated
from ddpm_jax.evaluation.bits import build_bits_per_dim
from ddpm_jax.evaluation.frechet import frechet_from_features
from ddpm_jax.runs import open_run
from ddpm_jax.training.report import read_metrics

OBJECTIVES = {
    "L_simple, fixed_large": [],
    "L_simple, fixed_small": ["diffusion.variance=fixed_small"],
    "L_hybrid, learned_range": ["diffusion.loss=hybrid", "diffusion.variance=learned_range"],
    "L_vlb, learned_range": ["diffusion.loss=vlb", "diffusion.variance=learned_range"],
    "L_vlb, learned_range, importance sampling": [
        "diffusion.loss=vlb", "diffusion.variance=learned_range", "train.time_sampler=loss_second_moment"
    ],
}  # fmt: skip
SAME_NETWORK = {"L_simple, fixed_small": "L_simple, fixed_large"}  # trained alike, only read otherwise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of the runs")
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--num_samples", type=int, default=1797)
    parser.add_argument("--num_sampler_steps", type=int, default=100)
    args = parser.parse_args()

    real, mesh = to_features(load_real()[0]), make_mesh()
    print("| objective | bits/dim, held out | Frechet distance | updates/s |")
    print("| --- | --- | --- | --- |")
    for name in args.objectives:
        settings = OBJECTIVES[name]
        bits, distances, speeds = [], [], []
        for seed in args.seeds:
            trained_as = SAME_NETWORK.get(name, name)
            workdir = Path(args.out) / f"{trained_as.replace(', ', '-').replace(' ', '_')}-{seed}"
            flags = [f"--config.{setting}" for setting in [*OBJECTIVES[trained_as], f"train.seed={seed}"]]
            train = [sys.executable, "-m", "ddpm_jax.train", "--config=configs/digits.py", f"--workdir={workdir}"]
            quick = ["--config.sample.num_sampler_steps=50", "--config.train.sample_every_steps=0"]
            subprocess.run([*train, *flags, *quick], check=True, stdout=sys.stderr)
            trained = open_run(str(workdir))
            config, params = trained.config, jax.device_put(trained.params, replicated(mesh))
            with config.unlocked():
                config.update_from_flattened_dict(dict(setting.split("=") for setting in settings))
                config.sample.num_sampler_steps = args.num_sampler_steps
                config.sample.batch_size = 600
            measure = build_bits_per_dim(config, config.data.eval_split, mesh, seed=0, batch_size=180, max_images=0)
            bits.append(measure.measure(params).summary()["total"][0])
            schedule = factories.build_schedule(config)
            table, model = sampler_factory.build_table(config, schedule), factories.build_model(config)
            generator = factories.build_generator(config, schedule, table, model, mesh)
            images = generator.generate(params, seed=0, num_samples=args.num_samples)
            distances.append(frechet_from_features(real, to_features(images)))
            rates = [line["images_per_second"] for line in read_metrics(workdir) if "images_per_second" in line]
            speeds += [rate / config.train.batch_size for rate in rates]
        both = " | ".join(f"{np.mean(values):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in values)})"
                          for values, digits in ((bits, 3), (distances, 4)))  # fmt: skip
        print(f"| {name} | {both} | {np.median(speeds):.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
