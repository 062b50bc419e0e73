"""Cost of a guided sampler step versus an unguided one, with the same network and the same images.

    python benchmarks/guidance_cost.py --config=cifar10 --batch_size=8

Runs three programs in turn in one process: without guidance, with guidance, and with a guidance interval that the step
lies outside of. Prints the medians of --repeats calls and their ratios to the first program.
"""

import argparse
import time

import jax
import numpy as np

from ddpm_jax.benchmarking.timed_programs import prepare_call
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_files import load_config

GUIDED = ("sample.guidance_scale=3",)
PROGRAMS = {
    "without guidance": (),
    "guidance": GUIDED,
    "outside of the interval": (*GUIDED, "sample.guidance_interval=500,1000"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="cifar10")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    shared = ["model.num_classes=10", "condition.drop_rate=0.1", f"sample.batch_size={args.batch_size}"]
    calls = {
        name: prepare_call("sample", build_experiment(load_config(args.config, [*shared, *overrides]))).run
        for name, overrides in PROGRAMS.items()
    }
    seconds = {name: [] for name in calls}
    for repeat in range(args.repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if repeat:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    first = np.array(seconds["without guidance"])
    for name, taken in seconds.items():
        ratios = np.array(taken) / first
        spread = f"[{ratios.min():.3f}-{ratios.max():.3f}]"
        print(f"{name:24s} {np.median(taken):8.3f} s  ratio {np.median(ratios):.3f} {spread}")


if __name__ == "__main__":
    main()
