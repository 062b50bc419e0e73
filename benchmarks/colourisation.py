"""How right and how colourful colourised images are: saturation, hues and the share of the colours that is explained.

    python benchmarks/colourisation.py --workdir=runs/colours --path=DIR

Takes the held-out images of the run's data, makes them grey as image files become grey, colours them by
`ddpm_jax.edit_images` with --num_results results each, and prints a Markdown table beside the true images. The run is
one of configs/palette_clothing.py, or one without a task, whose results come from projection (DDNM). Several runs may
be given, separated by commas; the images are those of the first.
"""

import argparse
import os
import sys
import time

import numpy as np
from one_line import check_counts, run
from PIL import Image

import ddpm_jax as dj
from ddpm_jax.editing.edit_images import Editor
from ddpm_jax.evaluation.colour_statistics import ColourStatistics, colour_statistics, explained_colour, hue_distance
from ddpm_jax.runtime.atomic_files import check_folder
from ddpm_jax.runtime.errors import UserError


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="folders of runs, separated by commas")
    parser.add_argument("--path", help="the images, where they have moved since the training")
    parser.add_argument("--num_images", type=int, default=64)
    parser.add_argument("--num_results", type=int, default=4)
    parser.add_argument("--num_sampler_steps", type=int, default=50)
    parser.add_argument("--grid", help="PNG for the first 8 images: grey, results of each run, true")
    return parser


def main(args: argparse.Namespace) -> None:
    """Colours the images and prints the table."""
    check_counts(args, "num_images", "num_results", "num_sampler_steps")
    if args.grid:
        check_folder("--grid", os.path.dirname(os.path.abspath(args.grid)))
    runs = {folder: dj.open_run(folder) for folder in args.workdir.split(",")}
    for folder, trained in runs.items():
        settings = {"num_results": args.num_results, "num_sampler_steps": args.num_sampler_steps}
        Editor(trained, "colourise", **settings)  # for its checks
        if trained.image_shape != next(iter(runs.values())).image_shape:
            raise UserError(f"--workdir must name runs of images of one size; {folder} has {list(trained.image_shape)}")
    first = next(iter(runs.values()))
    if args.path:
        first = first.with_fields([f"data.path={args.path}"], ("data.path",))
    if not first.held_out_split:
        raise UserError(f"{next(iter(runs))} has no held-out images")
    source = first.source(first.held_out_split)
    numbers = np.linspace(0, len(source) - 1, min(args.num_images, len(source)))  # folders list a class at a time
    images = source.load(numbers.astype(int))
    grey = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])[..., None]
    true = colour_statistics(images)
    print("| results | saturation | of an image, 10 / 50 / 90 % | hue distance | explained by one | by the mean | s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(f"| true images | {in_words(true)} | 0 | 1 | 1 | |")
    shown = [np.repeat(grey, 3, axis=-1)]
    for folder, trained in runs.items():
        since = time.perf_counter()
        results = dj.edit_images(
            trained, grey, "colourise", num_results=args.num_results, num_sampler_steps=args.num_sampler_steps
        )
        seconds = time.perf_counter() - since
        found = colour_statistics(results.reshape(-1, *images.shape[1:]))
        one = np.mean([explained_colour(images, results[:, k : k + 1]) for k in range(args.num_results)])
        print(
            f"| {folder} | {in_words(found)} | {hue_distance(true, found):.2f} | {one:.2f} | "
            f"{explained_colour(images, results):.2f} | {seconds:.0f} |"
        )
        shown += list(results.swapaxes(0, 1))
    if args.grid:
        columns = np.stack([*shown, images], axis=1)[:8]
        dj.save_grid(args.grid, columns.reshape(-1, *images.shape[1:]), num_columns=columns.shape[1])


def in_words(found: ColourStatistics) -> str:
    """Two cells of the table."""
    return f"{found.saturation:.3f} | " + " / ".join(f"{q:.3f}" for q in found.saturation_of_images)


if __name__ == "__main__":
    sys.exit(run(main, flags()))
