"""Compares recipes of a small experiment at equal cost: each is trained from several seeds, sampled and measured.

    python benchmarks/recipes.py --config=digits --out=runs/recipes
    python benchmarks/recipes.py --config=fashion_mnist --out=runs/recipes --recipes='v; x_0' --config.data.path=DIR
    python benchmarks/recipes.py --config=digits --cost

Every training run sees the same number of images, whatever its batch size. Its learning rate rises over the first 8 %
of the updates and then falls to 0. --cost measures the cost per image of an update at each batch size.

All fields that are compared are set here, so that the table does not change when the experiment's own recipe changes.
Finished work is not repeated; a folder with other settings is refused.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# Settings that all recipes of an experiment share; each recipe changes some of them.
COMMON: dict[str, dict[str, Any]] = {
    "digits": {
        "diffusion.prediction": "v", "schedule.name": "cosine", "diffusion.weighting": "none",
        "diffusion.loss": "simple", "diffusion.variance": "fixed_large", "data.flip": False, "train.batch_size": 64,
        "optim.learning_rate": 2e-3, "optim.ema_decays": "0.995", "unet.dropout": 0.0,
    },
    "fashion_mnist": {
        "diffusion.prediction": "v", "schedule.name": "cosine", "diffusion.weighting": "none",
        "diffusion.loss": "simple", "diffusion.variance": "fixed_large", "data.flip": False, "train.batch_size": 32,
        "optim.learning_rate": 1e-3, "optim.ema_decays": "0.999", "unet.dropout": 0.0,
    },
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "v": {},
    "eps": {"diffusion.prediction": "eps"},
    "x_0": {"diffusion.prediction": "x_0"},
    "eps, linear": {"diffusion.prediction": "eps", "schedule.name": "linear"},
    "v, linear": {"schedule.name": "linear"},
    "v, sigmoid": {"schedule.name": "sigmoid"},
    "v, min-SNR": {"diffusion.weighting": "min_snr"},
    "x_0, min-SNR": {"diffusion.prediction": "x_0", "diffusion.weighting": "min_snr"},
    "v, hybrid": {"diffusion.loss": "hybrid", "diffusion.variance": "learned_range"},
    "v, flip": {"data.flip": True},
    "v, dropout 0.1": {"unet.dropout": 0.1},
    **{f"v, batch {size}": {"train.batch_size": size} for size in (16, 32, 64, 128)},
    **{f"v, rate x {factor:g}": {"optim.learning_rate": factor} for factor in (0.5, 2.0)},
    "v, batch 32, rate x 2": {"train.batch_size": 32, "optim.learning_rate": 2.0},
}
SAMPLERS = {
    "ddim, eta 1, 50 calls": ["--sampler=ddim", "--eta=1", "--num_sampler_steps=50"],
    "dpmpp_2m, 20 calls": ["--sampler=dpmpp_2m", "--num_sampler_steps=20"],
}
NUM_IMAGES = {"digits": 76_800, "fashion_mnist": 25_600}
NUM_SAMPLES = {"digits": 1797, "fashion_mnist": 500}
REFERENCES = {"digits": ["--reference=digits:all"], "fashion_mnist": ["--reference=fashion_mnist:train[:10000]"]}
WARMUP_SHARE = 0.08


def fields_of(config: str, recipe: str) -> dict[str, Any]:
    """`group.field` -> value, for all fields that are compared; a learning rate in RECIPES is a factor."""
    changes = dict(RECIPES[recipe])
    if "optim.learning_rate" in changes:
        changes["optim.learning_rate"] *= COMMON[config]["optim.learning_rate"]
    return COMMON[config] | changes


def distinct(config: str, recipes: list[str]) -> list[str]:
    """The recipes without duplicates, such as a recipe for the batch size that the experiment has anyway."""
    by_fields = {}
    for recipe in recipes:
        by_fields.setdefault(json.dumps(fields_of(config, recipe), sort_keys=True), recipe)
    return list(by_fields.values())


def run(*command: str) -> None:
    """Runs a command of ddpm_jax, showing its output; if it fails, exits with the same code."""
    print("$ python -m", " ".join(command), flush=True)
    if status := subprocess.run([sys.executable, "-m", *command], check=False).returncode:
        sys.exit(status)


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of a folder; exits if the folder has other settings."""
    path = folder / "settings.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=1))
    elif json.loads(path.read_text()) != json.loads(json.dumps(settings)):
        sys.exit(f"error: {folder} was made with other settings, see {path}: give another --out, or delete it")


def measured(args: argparse.Namespace, recipe: str, seed: int, overrides: list[str]) -> dict[str, dict[str, float]]:
    """Sampler -> name of a number -> value, for one training run."""
    name = recipe.replace(",", "").replace(" ", "_")
    folder = Path(args.out) / args.config / f"{name}_{seed}"
    fields = fields_of(args.config, recipe)
    num_steps = (args.num_images or NUM_IMAGES[args.config]) // fields["train.batch_size"]
    fields |= {
        "train.num_steps": num_steps, "train.seed": seed, "train.checkpoint_every_steps": 0,
        "train.sample_every_steps": 0, "optim.warmup_steps": 0, "optim.warmup_share": WARMUP_SHARE,
        "optim.decay_steps": 0, "optim.decay_share": 1, "sample.sampler": "euler_ancestral",
        "sample.num_sampler_steps": 50,
    }  # fmt: skip
    num_samples = args.num_samples or NUM_SAMPLES[args.config]
    check_settings(folder, {"fields": fields, "overrides": overrides, "num_samples": num_samples})
    if not (folder / "run" / "samples" / "final_ema.png").is_file():
        flags = [f"--config.{field}={value}" for field, value in fields.items()]
        run("ddpm_jax.train", f"--config={args.config}", f"--workdir={folder}/run", *flags, *overrides)
    return {sampler: numbers_of(args, folder, sampler, overrides) for sampler in args.samplers}


def numbers_of(args: argparse.Namespace, folder: Path, sampler: str, overrides: list[str]) -> dict[str, float]:
    """Name of a number -> value for the samples, which are drawn if they do not exist yet."""
    out = folder / sampler.replace(",", "").replace(" ", "_")
    if not out.with_suffix(".npz").is_file():
        num_samples = args.num_samples or NUM_SAMPLES[args.config]
        flags = [f"--num_samples={num_samples}", "--seed=1", *SAMPLERS[sampler]]
        run("ddpm_jax.sample", f"--workdir={folder}/run", f"--out={out}", *flags)
    found = {}
    paths = [text.replace("--config.data.path", "--data_path") for text in overrides if "data.path=" in text]
    for extractor in ("classifier", "pixels"):
        result = folder / f"{out.name}_{extractor}"
        if not (result / "evaluation.json").is_file():
            flags = [*REFERENCES[args.config], f"--extractor={extractor}", f"--out={result}", *paths]
            run("ddpm_jax.evaluate", f"--samples={out}.npz", *flags)
        numbers = json.loads((result / "evaluation.json").read_text())["samples"][-1]["numbers"]
        found |= {extractor: numbers["frechet"], f"{extractor} recall": numbers["recall"]}
    found |= {name: numbers[name]["share"] for name in ("speckled", "salted")}
    return found | {"total variation": numbers["total_variation"]["ratio"]}


def cost_table(config: str, rounds: int = 6, num_images: int = 256) -> str:
    """Markdown: CPU time per image of an update by batch size, relative to the smallest batch; measured in turn."""
    import jax

    from ddpm_jax.benchmarking.timed_programs import prepare_call
    from ddpm_jax.experiment.build import build_experiment
    from ddpm_jax.experiment.config_files import load_config

    sizes = (16, 32, 64, 128)
    calls = [prepare_call("train", build_experiment(load_config(config, [f"train.batch_size={n}"]))) for n in sizes]
    for call in calls:
        jax.block_until_ready(call.run())
    seconds = np.zeros((rounds, len(sizes)))
    for of_round in seconds:
        for column, (size, call) in enumerate(zip(sizes, calls, strict=True)):
            start = time.process_time()
            for _ in range(num_images // size):
                last = call.run()
            jax.block_until_ready(last)
            of_round[column] = time.process_time() - start
    ratios = np.median(seconds / seconds[:, :1], axis=0)
    cells = [f"{ratio:.2f}" for ratio in ratios]
    return "\n".join((f"| batch | {' | '.join(map(str, sizes))} |", "| --- |" + " ---: |" * len(sizes),
                      f"| {config} | {' | '.join(cells)} |"))  # fmt: skip


def table(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Markdown: one row per recipe and sampler; each cell lists the values of all seeds."""
    columns = {
        "classifier": "{:.3g}", "pixels": "{:.3g}", "pixels recall": "{:.2f}", "speckled": "{:.1%}", "salted": "{:.1%}",
        "total variation": "{:.2f}",
    }  # fmt: skip
    lines = [f"| recipe | sampler | {' | '.join(columns)} |", "| --- | --- |" + " ---: |" * len(columns)]
    rows = [(recipe, sampler, seeds) for recipe, found in results.items() for sampler, seeds in found.items()]
    for recipe, sampler, seeds in sorted(rows, key=lambda row: np.mean([seed["classifier"] for seed in row[2]])):
        cells = [", ".join(shown.format(seed[name]) for seed in seeds) for name, shown in columns.items()]
        lines.append(f"| {recipe} | {sampler} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, choices=sorted(COMMON))
    parser.add_argument("--out", metavar="FOLDER", help="folder for all runs")
    parser.add_argument("--cost", action="store_true", help="only measure the cost per image by batch size")
    parser.add_argument("--recipes", default="", metavar="LIST", help=f"separated by ';', from {'; '.join(RECIPES)}")
    parser.add_argument("--samplers", default="", metavar="LIST", help=f"separated by ';', from {'; '.join(SAMPLERS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--num_images", type=int, default=0, help="images per training run; 0: as in the docs' table")
    parser.add_argument("--num_samples", type=int, default=0)
    args, overrides = parser.parse_known_args(argv)
    if args.cost:
        print(cost_table(args.config))
        return 0
    if args.out is None:
        parser.error("--out must name a folder for the runs")
    for flag, known in (("recipes", RECIPES), ("samplers", SAMPLERS)):
        names = [name.strip() for name in getattr(args, flag).split(";") if name.strip()] or list(known)
        if unknown := [name for name in names if name not in known]:
            parser.error(f"--{flag} must be from {'; '.join(known)}; got {unknown[0]!r}")
        setattr(args, flag, names)
    if wrong := [text for text in overrides if not text.startswith("--config.")]:
        parser.error(f"unknown flag {wrong[0]}")
    if 0 < args.num_images < 128 or args.num_images < 0:
        parser.error(f"--num_images must be 0 or at least 128, the largest batch; got {args.num_images}")
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for seed in args.seeds:
        for recipe in distinct(args.config, args.recipes):
            for sampler, numbers in measured(args, recipe, seed, overrides).items():
                results.setdefault(recipe, {}).setdefault(sampler, []).append(numbers)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
