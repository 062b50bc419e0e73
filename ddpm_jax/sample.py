"""`python -m ddpm_jax.sample`: new images from a trained run, as a PNG grid and an .npz."""

import argparse
import os
import sys
from collections.abc import Sequence

from ddpm_jax.cascades.flags import CascadeParser, add_cascade_flags
from ddpm_jax.experiment.sampler_flags import add_sampler_flags, as_typed, given_sampler_flags
from ddpm_jax.runtime.atomic_files import check_folder
from ddpm_jax.runtime.command_line import run
from ddpm_jax.runtime.errors import UserError, check_between

EXAMPLE = "python -m ddpm_jax.sample --workdir=runs/digits --num_samples=64 --out=runs/digits/samples/new"
MAX_GRID = 100  # images in the PNG; the .npz holds all


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = CascadeParser(
        "sample",
        "Draws images from a trained model. Model, schedule and sampler come from the checkpoint; the flags\n"
        "below choose how many images, from which weights, and may name another sampler; any other field of the\n"
        "group sample likewise, such as --config.sample.churn_noise=1.003.",
        EXAMPLE,
        takes_hosts=True,
    )
    parser.add_argument(
        "--workdir", metavar="DIR", help="folder of the run, or digits: a run in the package"
    )
    parser.add_argument(
        "--out", metavar="PATH", help="writes PATH.png and PATH.npz; by default DIR/samples/step_N_seed_S"
    )
    parser.add_argument("--num_samples", type=int, default=64, metavar="N", help="images (default 64)")
    parser.add_argument(
        "--columns", type=int, metavar="N", help="samples in a row of the PNG; by default one class in each column"
    )
    parser.add_argument("--seed", type=int, default=0, help="sample n depends on it and n alone (default 0)")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint; by default the newest")
    parser.add_argument("--best", action="store_true", help="the checkpoint with the lowest eval loss")
    parser.add_argument(
        "--weights", default="ema", metavar="ema|ema/NAME|raw",
        help="ema is the first average (default), ema/0.9999 that of this decay, ema/std_0.1 that of this length in\n"
             "optim.ema_stds, raw the parameters",
    )  # fmt: skip
    parser.add_argument(
        "--ema_std", type=float, metavar="S",
        help="instead: the average of this length, such as 0.1, from the snapshots of a run with optim.ema_stds",
    )  # fmt: skip
    steps = "--num_sampler_steps=N is the number of sampler steps; --step=N is a checkpoint"
    parser.hints = dict.fromkeys(("steps", "num_steps", "ddim_steps", "num_inference_steps", "timesteps"), steps)
    parser.hints |= dict.fromkeys(("cfg", "cfg_scale", "scale", "w"), "--guidance_scale=S, the papers' 1 + w")
    parser.hints |= dict.fromkeys(("n", "num", "num_images"), "--num_samples=N")
    add_sampler_flags(parser)
    parser.add_argument("--batch_size", type=int, metavar="N", help="images at a time; no influence on them")
    add_cascade_flags(parser)
    return run(_sample, parser, argv)


def _sample(args: argparse.Namespace) -> None:
    check_between("--num_samples", args.num_samples, 1)
    if args.columns is not None:
        check_between("--columns", args.columns, 1, MAX_GRID)
    out = None if args.out is None else _path_without_ending(args.out)
    _check_source(args)
    if args.cascade is not None:
        _sample_cascade(args, out)
        return
    if out is not None:
        _check_out(out)

    # Here, so that --help and the errors above need not wait for JAX.
    import jax
    import numpy as np

    from ddpm_jax.diffusion.rng import check_seed
    from ddpm_jax.experiment.guidance_text import guidance_text
    from ddpm_jax.experiment.open_run import open_run, weights_text
    from ddpm_jax.experiment.packaged_runs import output_folder
    from ddpm_jax.experiment.sample_picture import sample_picture
    from ddpm_jax.experiment.sampler_settings import settings_named
    from ddpm_jax.experiment.trained_run import MOVED_DATA_FIELDS, SAMPLE_FIELDS
    from ddpm_jax.runtime import multi_host
    from ddpm_jax.runtime.devices import make_mesh, replicated
    from ddpm_jax.runtime.image_files import can_be_drawn, class_columns, save_npz, save_picture
    from ddpm_jax.runtime.progress import ProgressBar
    from ddpm_jax.workdir.class_names import numbered

    check_seed("--seed", args.seed)
    trained = open_run(args.workdir, step=args.step, best=args.best, weights=args.weights, ema_std=args.ema_std)
    mesh = make_mesh()
    trained = trained.with_fields(args.overrides, (*SAMPLE_FIELDS, *(MOVED_DATA_FIELDS if trained.image_task else ())))
    given = given_sampler_flags(args)
    with as_typed(args):
        trained = trained.with_sampler(given, batch_size=args.batch_size, num_devices=mesh.size)
        with settings_named([*given, *(["batch_size"] if args.batch_size is not None else [])]):
            generator = trained.generator(mesh)
            generator.condition_of(np.arange(1))  # opens the images that samples are shown, where there are some
    if out is None:
        out = os.path.join(output_folder(args.workdir), "samples", f"step_{trained.step}_seed_{args.seed}")
        _check_out(out)

    is_first = multi_host.is_first()
    if is_first:
        if trained.post_hoc is not None:
            print(trained.post_hoc)
        guidance, weights = guidance_text(trained.sampler_settings), weights_text(args.weights, args.ema_std)
        guidance += ", " if guidance else ""
        level = trained.sampler_settings["augmentation_level"]
        guidance += f"augmentation level {level}, " if level else ""
        print(
            f"{args.num_samples} samples of step {trained.step} ({weights} weights), "
            f"{trained.sampler_name} with {generator.num_rows} network calls, {guidance}seed {args.seed}"
        )
    total = generator.num_batches(args.num_samples) * generator.num_rows
    with ProgressBar(total, "sampling", enabled=is_first) as bar:
        images = generator.generate(
            jax.device_put(trained.params, replicated(mesh)),
            seed=args.seed,
            num_samples=args.num_samples,
            on_chunk=bar.update,
        )
    if is_first:
        condition = generator.labels_of(np.arange(args.num_samples))
        there = any(os.path.exists(out + ending) for ending in (".npz", ".png"))
        replaced = ", in place of what was there" if there else ""
        save_npz(f"{out}.npz", images, condition)
        classes = ", classes as arr_1" if "label" in condition else ""
        arrays, grid = f"{images.dtype} {list(images.shape)} as arr_0{classes}", ""
        if can_be_drawn(images):
            grid = f" and {out}.png"
            save_picture(f"{out}.png", sample_picture(generator, images[:MAX_GRID], args.columns))
        print(f"wrote {out}.npz ({arrays}){grid}{replaced}")
        num_classes = generator.num_classes
        columns = args.columns or class_columns(min(len(images), MAX_GRID), num_classes)
        if grid and trained.image_task is not None:
            print("grid: each sample beside what the network was shown")
        elif grid and columns and num_classes > 1 and columns % num_classes == 0:
            in_turn = ", and so on in turn" if columns > num_classes else ""
            of_columns = condition["label"][:num_classes].tolist()
            print(f"columns: {numbered(trained.names_of_classes(), of_columns)}{in_turn}")


def _check_source(args: argparse.Namespace) -> None:
    """Raises UserError unless there is one run, or a cascade with its flags."""
    if (args.workdir is None) == (args.cascade is None):
        given = "got neither" if args.workdir is None else "give one of them"
        raise UserError(f"--workdir=DIR is one run, --cascade=DIR,DIR the stages of a cascade: {given}")
    if args.cascade is None:
        of_cascade = [f"--{name}" for name in ("truncate", "norounding") if getattr(args, name)]
        of_cascade += [f"--stage{number}.{name}" for number, given in args.stages.items() for name in given]
        if of_cascade:
            raise UserError(f"{of_cascade[0]} is of a cascade: give --cascade=DIR,DIR, or leave it out")
    elif args.columns is not None:
        raise UserError("--columns is of the samples of one run; leave it out of a cascade")


def _sample_cascade(args: argparse.Namespace, out: str | None) -> None:
    from ddpm_jax.cascades.command import endings, run_cascade
    from ddpm_jax.cascades.opening import folders_of, open_cascade
    from ddpm_jax.diffusion.rng import check_seed

    check_seed("--seed", args.seed)
    files = [*endings(len(folders_of(args.cascade))), f".partial_stage_1_{'0' * 16}"]
    if out is not None:
        _check_out(out, files)
    with as_typed(args):
        opened = open_cascade(args)
    if out is None:
        out = opened.default_out(args.seed)
        _check_out(out, files)
    max_grid = MAX_GRID // len(opened.names)
    run_cascade(opened, num_samples=args.num_samples, seed=args.seed, out=out, max_grid=max_grid)


def _path_without_ending(out: str) -> str:
    """PATH of --out=PATH, --out=PATH.png or --out=PATH.npz."""
    path, extension = os.path.splitext(out)
    if extension.lower() in (".gif", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".npy", ".pdf"):
        raise UserError(f"--out={out}: a PNG and an .npz are written; give --out={path}")
    return path if extension in (".png", ".npz") else out


def _check_out(out: str, endings: Sequence[str] = (".npz", ".png")) -> None:
    """Makes the folder of PATH; raises UserError where nothing can be written, before hours of sampling."""
    folder, name = os.path.split(os.path.abspath(out) if out and not out.endswith(os.sep) else "")
    if not name:
        raise UserError(f"--out must be a path such as samples/new, for samples/new.png and .npz; got {out!r}")
    check_folder("--out", folder)
    for ending in endings:
        if os.path.isdir(out + ending) or len(os.fsencode(name + ending)) > 255:
            raise UserError(f"--out={out}: {out}{ending} cannot be written: it is a folder, or its name is too long")


if __name__ == "__main__":
    sys.exit(main())
