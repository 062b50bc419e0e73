"""Cost of self-conditioning: a train step and a sampler step with it versus without, with the same images.

    python benchmarks/self_conditioning_cost.py --config=digits --batch_size=16 --clock=cpu

Runs the programs in turn in one process: train steps without self-conditioning, with it but without a first call (rate
0), and with a first call in each step (rate 1); and sampler steps without and with it. Prints the medians of --repeats
calls and their ratios to the first program of the kind. At the default rate, 1/2, the mean of a train step is half way
between rate 0 and rate 1. --clock=cpu measures the CPU time of all threads, for a CPU that other processes use as well;
the default is the time on the clock.
"""

import argparse
import time

import jax
import numpy as np

from ddpm_jax.benchmarking.timed_programs import prepare_call
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_files import load_config

ON = "diffusion.self_conditioning=true"
PROGRAMS = {
    "train": {
        "without": (),
        "rate 0": (ON, "diffusion.self_conditioning_rate=0.0"),
        "rate 1": (ON, "diffusion.self_conditioning_rate=1.0"),
    },
    "sample": {"without": (), "with": (ON,)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="digits")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    now = time.process_time if args.clock == "cpu" else time.perf_counter
    shared = [f"train.batch_size={args.batch_size}", f"sample.batch_size={args.batch_size}"]
    for kind, programs in PROGRAMS.items():
        calls = {
            name: prepare_call(kind, build_experiment(load_config(args.config, [*shared, *overrides]))).run
            for name, overrides in programs.items()
        }
        seconds = {name: [] for name in calls}
        for repeat in range(args.repeats + 1):
            for name, call in calls.items():
                start = now()
                jax.block_until_ready(call())
                if repeat:  # the first warms up
                    seconds[name].append(now() - start)
        for name, taken in seconds.items():
            ratios = np.array(taken) / np.array(seconds["without"])
            spread = f"[{ratios.min():.3f}-{ratios.max():.3f}]"
            print(f"{kind:6s} {name:8s} {1e3 * np.median(taken):8.2f} ms  ratio {np.median(ratios):.3f} {spread}")


if __name__ == "__main__":
    main()
