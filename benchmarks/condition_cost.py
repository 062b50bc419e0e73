"""What a train step spends on what an image-conditional network is shown: small images, holes, grey copies, noise.

    python benchmarks/condition_cost.py --config=fashion_7to28
    python benchmarks/condition_cost.py --config=image_folder_small --tasks=all --batch_size=8

Times the train step and the preparation of the condition alone, in turn in one process, and prints a Markdown table:
the medians of --repeats calls, and the median and range of their ratio in the same round. The images are noise, the
weights random: time does not depend on them.
"""

import argparse
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from one_line import check_counts, run

import ddpm_jax as dj
from ddpm_jax.data.batch import Batch
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.image_condition import build_derive_fn
from ddpm_jax.experiment.task_fields import FIELDS
from ddpm_jax.runtime.devices import batch_sharded
from ddpm_jax.runtime.errors import UserError


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="fashion_7to28")
    parser.add_argument("--tasks", help="of condition.task, separated by commas, or all; by default that of the config")
    parser.add_argument("--batch_size", type=int, help="by default that of the config")
    parser.add_argument("--repeats", type=int, default=10)
    return parser


def programs(config, batch_size: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """The train step and the preparation of the condition, one call each."""
    experiment = build_experiment(config)
    images = np.random.default_rng(0).integers(0, 256, (batch_size, *experiment.image_shape), dtype=np.uint8)
    labels = {"label": np.zeros(batch_size, np.int32)} if "label" in experiment.condition else {}
    batch = jax.device_put(Batch(images, labels), batch_sharded(experiment.mesh))
    state, step = experiment.fresh_state(), experiment.jitted_step()
    derive_fn = build_derive_fn(config)
    keys = jax.random.split(jax.random.key(0), batch_size)
    derive = jax.jit(lambda images, keys: derive_fn(experiment.codec.encode(images, keys), keys))

    def update() -> object:
        nonlocal state
        state, metrics = step(state, batch, experiment.keys.train)
        return state, metrics

    return update, lambda: derive(batch.image, keys)


def seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    since = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - since


def main(args: argparse.Namespace) -> None:
    """Times the programs of each task, and prints the table."""
    check_counts(args, "repeats")
    plain = dj.load_config(args.config)
    tasks = [plain.condition.task] if args.tasks is None else args.tasks.split(",")
    tasks = list(FIELDS) if args.tasks == "all" else tasks
    if not all(tasks):
        raise UserError(f"--config={args.config} has no condition.task: give --tasks")
    batch_size = plain.train.batch_size if args.batch_size is None else args.batch_size
    overrides = [f"train.batch_size={batch_size}"]
    print("| condition.task | train step, ms | preparation, ms | share | range |\n| --- | --- | --- | --- | --- |")
    for task in tasks:
        own = [] if task == plain.condition.task else [f"condition.task={task}", "condition.augmentation=none"]
        step, derive = programs(dj.load_config(args.config, [*overrides, *own]), batch_size)
        seconds(step), seconds(derive)  # compile
        rounds = np.array([(seconds(step), seconds(derive)) for _ in range(args.repeats)])
        shares = rounds[:, 1] / rounds[:, 0]
        of_step, of_derive = 1000 * np.median(rounds, axis=0)
        low, middle, high = (100 * value for value in (shares.min(), np.median(shares), shares.max()))
        print(f"| {task} | {of_step:.1f} | {of_derive:.2f} | {middle:.1f} % | {low:.1f} to {high:.1f} % |", flush=True)


if __name__ == "__main__":
    sys.exit(run(main, flags()))
