"""How near super-resolved images are to the true ones, and to the small images that they were made from.

    python benchmarks/super_resolution.py --workdir=runs/7to28 --path=DIR --levels=0,50,100

Takes the held-out images of the run's data, makes them small as training does, enlarges them by `ddpm_jax.edit_images`
with --num_results results each at every augmentation level, and prints a Markdown table beside nearest-neighbour and
bicubic enlargement: PSNR, SSIM and inconsistency of single results (`ddpm_jax.evaluation.super_resolution`), the PSNR
of the mean of the results, and the mean standard deviation of a pixel between the results of an image, in levels.
"""

import argparse
import os
import sys
import time

import jax
import numpy as np
from one_line import check_counts, run

import ddpm_jax as dj
from ddpm_jax.codecs.pixels import to_model_scale, to_uint8
from ddpm_jax.diffusion.image_conditions import enlarged, shrunk
from ddpm_jax.editing.edit_images import Editor
from ddpm_jax.evaluation.super_resolution import inconsistency, psnr, ssim
from ddpm_jax.runtime.atomic_files import check_folder
from ddpm_jax.runtime.errors import UserError


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--path", help="the images, where they have moved since the training")
    parser.add_argument("--levels", default="0", help="augmentation levels, separated by commas")
    parser.add_argument("--num_images", type=int, default=64)
    parser.add_argument("--num_results", type=int, default=4)
    parser.add_argument("--num_sampler_steps", type=int, default=50)
    parser.add_argument("--grid", help="PNG for the first 8 images: small, bicubic, results of each level, true")
    return parser


def main(args: argparse.Namespace) -> None:
    """Enlarges the images and prints the table."""
    check_counts(args, "num_images", "num_results", "num_sampler_steps")
    if args.grid:
        check_folder("--grid", os.path.dirname(os.path.abspath(args.grid)))
    levels = [level.strip() for level in args.levels.split(",")]
    if not all(level.isdecimal() for level in levels):
        raise UserError(f"--levels must be whole numbers, separated by commas; got {args.levels!r}")
    trained = dj.open_run(args.workdir)
    task = trained.image_task
    if task is None or task.factor == 1:
        raise UserError(f"{args.workdir} was not trained with condition.task=super_resolve")
    if args.path:
        trained = trained.with_fields([f"data.path={args.path}"], ("data.path",))
    if not trained.held_out_split:
        raise UserError(f"{args.workdir} has no held-out images")
    settings = {"num_results": args.num_results, "num_sampler_steps": args.num_sampler_steps}
    for level in levels:
        Editor(trained, "super_resolve", augmentation_level=int(level), **settings)  # for its checks
    source = trained.source(trained.held_out_split)
    numbers = np.linspace(0, len(source) - 1, min(args.num_images, len(source)))  # folders list a class at a time
    images = source.load(numbers.astype(int))
    small = np.asarray(to_uint8(jax.vmap(lambda x_0: shrunk(x_0, task.factor))(to_model_scale(images))))
    print("| results | PSNR, dB | SSIM | inconsistency | PSNR of the mean | deviation | s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    by_rule = {}
    for rule in ("nearest", "bicubic"):
        larger = jax.vmap(lambda x: enlarged(x, task.factor, rule))(to_model_scale(small))  # noqa: B023
        by_rule[rule] = np.asarray(to_uint8(larger))
        print(f"| {rule} | {in_words(images, small, by_rule[rule][:, None])} | | | |")
    columns = [by_rule["nearest"], by_rule["bicubic"]]
    for level in map(int, levels):
        since = time.perf_counter()
        results = dj.edit_images(trained, small, "super_resolve", augmentation_level=level, **settings)
        seconds = time.perf_counter() - since
        mean = np.rint(results.mean(axis=1)).astype(np.uint8)
        deviation = results.std(axis=1, ddof=1).mean() if args.num_results > 1 else float("nan")
        print(
            f"| level {level} | {in_words(images, small, results)} | {psnr(images, mean).mean():.2f} | "
            f"{deviation:.1f} | {seconds:.0f} |"
        )
        columns += list(results[:, :2].swapaxes(0, 1))
    if args.grid:
        cells = np.stack([*columns, images], axis=1)[:8]
        dj.save_grid(args.grid, cells.reshape(-1, *images.shape[1:]), num_columns=cells.shape[1])


def in_words(images: np.ndarray, small: np.ndarray, results: np.ndarray) -> str:
    """Three cells of the table, of single results [N, K, H, W, C]."""
    each = [results[:, k] for k in range(results.shape[1])]
    found = [np.mean([measure(given, one) for one in each]) for measure, given in
             ((psnr, images), (ssim, images), (inconsistency, small))]  # fmt: skip
    return f"{found[0]:.2f} | {found[1]:.3f} | {found[2]:.2f}"


if __name__ == "__main__":
    sys.exit(run(main, flags()))
