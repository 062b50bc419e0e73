"""Network calls against Frechet distance for every sampler, on one trained run.

    python benchmarks/sampler_table.py --workdir=runs/digits --split=all --num_samples=1797

Each row is a sampler, each column a number of steps. A cell holds the Frechet distance of the samples to the images of
the split, in raw pixels of 0..1 (not an FID), and the number of network calls if it differs from the number of steps.
All cells start from the same noise, image for image. Writes RUN/sampler_table.json and prints Markdown row by row. If
it is run again, it resumes from the JSON file.
"""

import argparse
import json
import os
import sys
import time

import jax
import numpy as np

from ddpm_jax.evaluation.frechet_distance import frechet_from_features
from ddpm_jax.experiment import data_factory, model_factory, sampler_factory
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.runtime.atomic_files import replace_file
from ddpm_jax.runtime.devices import make_mesh, replicated
from ddpm_jax.runtime.errors import UserError

# Name, fields of the group `sample`.
ROWS = [
    ("ancestral, the run's variance", {"sampler": "ancestral"}),
    ("ancestral, fixed_small", {"sampler": "euler_ancestral"}),  # the same as DDIM with eta = 1
    ("ddim (= euler, dpmpp_1)", {"sampler": "ddim", "eta": 0.0}),
    ("ddim, quadratic", {"sampler": "ddim", "eta": 0.0, "spacing": "quadratic"}),
    ("plms", {"sampler": "plms"}),
    ("heun", {"sampler": "heun"}),
    ("heun, karras", {"sampler": "heun", "spacing": "karras"}),
    ("heun, karras, churn 10", {"sampler": "heun", "spacing": "karras", "churn": 10.0}),
    ("dpmpp_2m", {"sampler": "dpmpp_2m"}),
    ("dpmpp_2m, log_snr", {"sampler": "dpmpp_2m", "spacing": "log_snr"}),
    ("dpmpp_3m", {"sampler": "dpmpp_3m"}),
    ("dpmpp_3m_full", {"sampler": "dpmpp_3m_full"}),
    ("dpmpp_sde", {"sampler": "dpmpp_sde"}),
    ("dpmpp_2m_sde", {"sampler": "dpmpp_2m_sde"}),
    ("unipc", {"sampler": "unipc"}),
    ("unipc_3", {"sampler": "unipc_3"}),
]


def features(images: np.ndarray) -> np.ndarray:
    """Pixels of 0..1, one row per image, float64."""
    return images.reshape(len(images), -1).astype(np.float64) / 255


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--split", help="split of the real images; by default the training split")
    parser.add_argument("--num_samples", type=int, default=2000)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    # Many samplers share one compiled program, which depends only on the length of their chunks.
    jax.config.update("jax_compilation_cache_dir", os.path.join(args.workdir, "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    trained = open_run(args.workdir)
    config, mesh = trained.config, make_mesh()
    params = jax.device_put(trained.params, replicated(mesh))
    process, model = model_factory.build_process(config), model_factory.build_model(config)
    source = data_factory.build_source(config, args.split or config.data.split)
    real = features(source.load(np.arange(len(source))))
    facts = {"step": trained.step, "num_samples": args.num_samples, "seed": args.seed, "num_real": len(real)}
    path = os.path.join(args.workdir, "sampler_table.json")
    cells = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            saved = json.load(file)
        if saved["facts"] == facts:
            cells = saved["cells"]

    print(f"| sampler | {' | '.join(f'{n} steps' for n in args.steps)} |")
    print(f"| --- | {' | '.join('---' for _ in args.steps)} |")
    for name, settings in ROWS:
        row = []
        for num_steps in args.steps:
            key = f"{name} @ {num_steps}"
            if key not in cells:
                with config.unlocked():
                    config.sample.update(
                        {"eta": 0.0, "spacing": "uniform", "churn": 0.0, "respacing": "", "batch_size": 512}
                        | settings | {"num_sampler_steps": num_steps}
                    )  # fmt: skip
                try:
                    table = sampler_factory.build_table(config, process)
                except UserError as error:
                    print(f"{key}: {error}", file=sys.stderr)
                    row.append("-")
                    continue
                generator = sampler_factory.build_generator(config, process, table, model, mesh)
                start = time.monotonic()
                images = generator.generate(params, seed=args.seed, num_samples=args.num_samples)
                cells[key] = {
                    "calls": table.num_calls,
                    "frechet": frechet_from_features(real, features(images)),
                    "seconds": time.monotonic() - start,
                }
                with replace_file(path, "w") as file:
                    json.dump({"facts": facts, "cells": cells}, file, indent=1)
            cell = cells[key]
            calls = f" ({cell['calls']} calls)" if cell["calls"] != num_steps else ""
            row.append(f"{cell['frechet']:.4f}{calls}")
        print(f"| {name} | {' | '.join(row)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
