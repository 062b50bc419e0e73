"""`python -m ddpm_jax.edit`: edits images with a trained run, without more training."""

import argparse
import os
import sys
from collections.abc import Sequence

from ddpm_jax.diffusion.edits.masks import HOLES
from ddpm_jax.editing.settings import EDIT_SETTINGS, EDITS, SIDES
from ddpm_jax.experiment.config_flags import OverridesParser
from ddpm_jax.experiment.sampler_flags import add_sampler_flags, as_typed, given_sampler_flags
from ddpm_jax.runtime.command_line import run
from ddpm_jax.runtime.errors import arguments_named

EXAMPLE = """\
python -m ddpm_jax.edit --workdir=runs/digits --what=inpaint --images=photo.png --hole=centre --out=filled
  python -m ddpm_jax.edit --workdir=runs/photos --what=colourise --images=grey/ --out=coloured"""
PURPOSE = f"""\
Edits images with a trained model, and writes the results, a PNG each, and a grid into a folder:
{chr(10).join(f"  {name:<14} {kind.about}" for name, kind in EDITS.items())}
Images are resized and cropped to the size of the run's images, as its training data were. In every mask 1, or white,
means known, and 0, or black, the hole. After Ctrl-C or a kill the same command continues."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = OverridesParser("edit", PURPOSE, EXAMPLE)
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="folder of the run, or digits: a run in the package"
    )
    parser.add_argument("--what", required=True, metavar="NAME", help=", ".join(EDITS))
    parser.add_argument(
        "--images", metavar="PATH", help="an image, a folder of images, or an .npz or .npy file of uint8 [N, H, W, C]"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new folder, or that of the same command")
    parser.add_argument("--num_results", type=int, default=1, metavar="K", help="results for each image (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--hole", metavar="NAME", help=f"for inpaint, sdedit: {', '.join(HOLES)}")
    parser.add_argument(
        "--hole_share", type=float, metavar="S", help="of --hole=random: the share of the pixels in it (default 0.5)"
    )
    parser.add_argument(
        "--mask", metavar="PATH",
        help="instead of --hole: an image, an array, or a folder with a mask for each image; white: known",
    )  # fmt: skip
    parser.add_argument("--fit_mask", action="store_true", help="resize the mask; grey is known from 128 on")
    parser.add_argument("--to", metavar="FILE", help="for interpolate: the other image")
    _add_settings(parser.add_argument_group("settings of the edits"))
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint; by default the newest")
    parser.add_argument("--best", action="store_true", help="the checkpoint with the lowest eval loss")
    parser.add_argument(
        "--weights", default="ema", metavar="ema|ema/NAME|raw", help="as for sample: an average (default ema), or raw"
    )
    parser.add_argument("--ema_std", type=float, metavar="S", help="as for sample")
    add_sampler_flags(parser.add_argument_group("sampler"))
    parser.add_argument("--batch_size", type=int, metavar="N", help="results at a time; no influence on them")
    return run(_edit, parser, argv)


def _add_settings(group: argparse._ArgumentGroup) -> None:
    methods = {name: list(kind.methods) for name, kind in EDITS.items() if len(kind.methods) > 1}
    group.add_argument(
        "--method", metavar="NAME",
        help="; ".join(f"{name}: {', '.join(names)}" for name, names in methods.items()) + "; the first is the default",
    )  # fmt: skip
    group.add_argument(
        "--strength", type=float, metavar="S",
        help="of sdedit (default 0.5), variation (0.3), interpolate by noised (0.5): 0 is the image, 1 a new one",
    )  # fmt: skip
    group.add_argument("--factor", type=int, metavar="N", help="of super_resolve (default 4, or that of the network)")
    group.add_argument("--side", metavar="NAME", help=f"of outpaint: {', '.join(SIDES)} (default right)")
    group.add_argument("--jump_length", type=int, metavar="J", help="of repaint (default 10)")
    group.add_argument("--num_resamplings", type=int, metavar="R", help="of repaint (default 10)")
    group.add_argument("--zeta", type=float, metavar="Z", help="of dps, the size of its steps (default 0.5)")
    group.add_argument(
        "--num_fixed_point", type=int, metavar="N", help="iterations of each step of the DDIM inversion (default 5)"
    )
    group.add_argument("--num_pairs", type=int, metavar="N", help="of interpolate by noise (default 4)")


def _edit(args: argparse.Namespace) -> None:
    # Here, so that --help and errors in flags need not wait for JAX.
    from ddpm_jax.editing.command import EditFiles, run_edit
    from ddpm_jax.editing.edit_images import Editor
    from ddpm_jax.editing.job import EditJob, check_out
    from ddpm_jax.editing.settings import checked_settings
    from ddpm_jax.experiment.open_run import open_run
    from ddpm_jax.experiment.trained_run import SAMPLE_FIELDS

    given = {name: getattr(args, name) for name in EDIT_SETTINGS if getattr(args, name) is not None}
    checked_settings(args.what, given)
    check_out(args.out, args.images)
    trained = open_run(args.workdir, step=args.step, best=args.best, weights=args.weights, ema_std=args.ema_std)
    trained = trained.with_fields(args.overrides, SAMPLE_FIELDS)
    with as_typed(args), arguments_named({"table": "--sampler"}.get):
        editor = Editor(
            trained,
            args.what,
            num_results=args.num_results,
            seed=args.seed,
            batch_size=args.batch_size,
            **given,
            **given_sampler_flags(args),
        )
    files = EditFiles(
        editor,
        args.images,
        mask=args.mask,
        hole=args.hole,
        hole_share=args.hole_share,
        fit_mask=args.fit_mask,
        to=args.to,
    )
    out = os.path.expanduser(args.out)
    facts = files.facts(args.workdir, trained.programs)
    job = EditJob(out, facts, files.inputs.names, editor.num_results)
    for note in files.inputs.notes:
        print(f"note: {note}")
    task = editor.task
    size = " x ".join(map(str, task.result_shape[:2]))
    count = len(files.inputs)
    print(
        f"{args.what}: {count} image{'s' * (count != 1)}, {args.num_results} results of {size} each, "
        f"step {trained.step}, {task.sampler}, {task.num_calls} network calls each, seed {args.seed}"
    )
    run_edit(files, job)


if __name__ == "__main__":
    sys.exit(main())
