"""Cost of each edit: its time for a batch of images, beside that of drawing as many samples with as many sampler steps.

    python benchmarks/edit_cost.py --workdir=runs/fashion

Takes held-out images of the run. Each edit is timed in turn with sampling; both are compiled before. Prints a Markdown
table: the network calls of a result, and the medians of --repeats ratios with their range. `colourise` needs a run with
3 channels, and is left out otherwise; "trained" needs a run with a task, whose edits are the only ones it has.
"""

import argparse
import sys
import time

import numpy as np
from one_line import check_counts, run

import ddpm_jax as dj
from ddpm_jax.editing.edit_images import Editor
from ddpm_jax.editing.settings import EDITS, EDITS_OF_TASK, TRAINED
from ddpm_jax.runtime.errors import check_between

# The methods that are no edit of given images, or the same walk as another row.
LEFT_OUT = {("interpolate", "noise")}
SETTINGS = {"repaint": {"jump_length": 5, "num_resamplings": 4}, "super_resolve": {"factor": 2}}


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--num_images", type=int, default=8)
    parser.add_argument("--num_sampler_steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    return parser


def main(args: argparse.Namespace) -> None:
    """Times the edits and prints the table."""
    check_counts(args, "num_images", "num_sampler_steps", "repeats")
    trained = dj.open_run(args.workdir)
    trained.check_images("edits are of images")
    source = trained.source(trained.held_out_split or None)
    check_between("--num_images", args.num_images, 1, len(source))
    images = source.load(np.arange(args.num_images))
    steps = {"sampler": "ddim", "num_sampler_steps": args.num_sampler_steps}

    def seconds_of(call) -> float:
        since = time.perf_counter()
        call()
        return time.perf_counter() - since

    def sample() -> None:
        trained.sample(args.num_images, batch_size=args.num_images, progress=False, **steps)

    print(
        f"{args.num_images} images of {'x'.join(map(str, trained.image_shape))}, ddim, {args.num_sampler_steps} steps\n"
    )
    print("| edit | method | network calls | time / sampling |\n| --- | --- | --- | --- |")
    seconds_of(sample)
    for what, method in rows_of(trained):
        given = {"method": method, **steps, **SETTINGS.get(method, {}), **SETTINGS.get(what, {})}
        if method == TRAINED and what == "super_resolve":
            given["factor"] = trained.image_task.factor
        if what in ("variation", "interpolate") and method == "ddim":
            del given["sampler"]
        arrays = inputs_of(what, images, given)

        def edit(what=what, given=given, arrays=arrays) -> None:
            dj.edit_images(trained, what=what, batch_size=args.num_images, progress=False, **given, **arrays)

        seconds_of(edit)  # compiles
        ratios = [seconds_of(edit) / seconds_of(sample) for _ in range(args.repeats)]
        calls = Editor(trained, what, batch_size=args.num_images, **given).task.num_calls
        print(
            f"| {what} | {method} | {calls} | {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |",
            flush=True,
        )


def rows_of(run) -> list[tuple[str, str]]:
    """(edit, method) of all that the run can do."""
    if run.image_task is not None:
        return [(what, TRAINED) for what in EDITS_OF_TASK[run.image_task.name]]
    pairs = [(what, method) for what, kind in EDITS.items() for method in kind.methods if method != TRAINED]
    return [pair for pair in pairs if pair not in LEFT_OUT and (pair[0] != "colourise" or run.image_shape[-1] == 3)]


def inputs_of(what: str, images: np.ndarray, given: dict) -> dict[str, np.ndarray]:
    """The arrays that an edit of these images takes."""
    height, width = images.shape[1:3]
    if what == "colourise":
        images = images.mean(axis=-1, keepdims=True).astype(np.uint8)
    if what == "super_resolve":
        images = images[:, :: given["factor"], :: given["factor"]]
    arrays = {"images": images}
    if what == "inpaint":
        arrays["mask"] = dj.make_mask("centre", height, width)
    if what == "interpolate":
        arrays["to"] = images[::-1]
    return arrays


if __name__ == "__main__":
    sys.exit(run(main, flags()))
