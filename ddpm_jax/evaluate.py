"""`python -m ddpm_jax.evaluate`: likelihood, rate-distortion and sample metrics of a trained model."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ddpm_jax.experiment.config_flags import OverridesParser
from ddpm_jax.experiment.sampler_flags import add_sampler_flags, typed_sampler_flags
from ddpm_jax.runtime.command_line import run
from ddpm_jax.runtime.errors import UserError

EXAMPLE = """\
python -m ddpm_jax.evaluate --workdir=runs/digits
  python -m ddpm_jax.evaluate --workdir=runs/digits --what=samples --num_samples=1617
  python -m ddpm_jax.evaluate --samples=mine.npz --reference=digits:train --extractor=pixels"""
PURPOSE = """\
Measures a trained model on real images and writes tables, curves and images into DIR/evaluation:
  bits      bits per dimension: the variational bound (Ho et al. 2020, equation 5) with every L_t, and the
            rate-distortion curve of progressive coding (section 4.3)
  pictures  images of the network's prediction of x_0 at several t, for held-out images and for samples
  ode       the exact likelihood of the probability flow ODE (Song et al. 2021), a second estimate of bits/dim
  samples   FID, KID, sFID, Inception Score, precision and recall of newly drawn samples; without Inception
            weights the same distances on other features, under names of their own
To use other images than the run's, give --config.data.path=DIR and other fields of data; every field of sample may be
changed as well. With --samples in place of --workdir, the last of these is measured for any set of images.
After Ctrl-C or a kill, the same command resumes where it stopped, and gives the same numbers."""

DEFAULT_WHAT = "bits,pictures"
# Common names of numbers -> the measurement that includes them.
MEASURED_BY = dict.fromkeys(
    ("fid", "kid", "sfid", "is", "inception_score", "precision", "recall", "frechet", "speckle"), "samples"
) | dict.fromkeys(("nll", "bpd", "bits_per_dim", "elbo", "vlb", "likelihood", "rate_distortion"), "bits")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = OverridesParser("evaluate", PURPOSE, EXAMPLE, takes_hosts=True)
    parser.add_argument("--workdir", metavar="DIR", help="folder of the training run")
    parser.add_argument("--what", metavar="LIST", help=f"what to measure (default {DEFAULT_WHAT})")
    parser.add_argument("--ode", action="store_true", help="add ode to that list")
    parser.add_argument("--split", metavar="NAME", help="split of the run's data; by default its held-out split")
    parser.add_argument("--max_images", type=int, default=0, metavar="N", help="the first N images; 0: all (default)")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint; by default the newest")
    parser.add_argument("--best", action="store_true", help="the checkpoint with the lowest eval loss")
    parser.add_argument(
        "--weights", default="ema", metavar="ema|ema/NAME|raw",
        help="ema, the first average (default); ema/0.9999, the one with this decay; ema/std_0.1, the one of this\n"
             "length in optim.ema_stds; raw, not averaged",
    )  # fmt: skip
    parser.add_argument(
        "--ema_std", metavar="S,S,...",
        help="instead: averages of these lengths, such as 0.05,0.1,0.15, from the snapshots of a run with\n"
             "optim.ema_stds; several are compared in a table",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default 0)")
    parser.add_argument(
        "--batch_size", type=int, default=0, metavar="N",
        help="images per batch; 0: as in the run (default); changes results only by rounding",
    )  # fmt: skip
    parser.add_argument(
        "--bits_respacing", metavar="TEXT",
        help="for bits: the bound with fewer steps, such as 250, 10,15,20 or t=999,500,0 (default all T)",
    )  # fmt: skip
    parser.add_argument("--ode_steps", type=int, metavar="N", help="for ode: RK4 steps, four calls each (default 50)")
    parser.add_argument(
        "--ode_probes", type=int, metavar="N",
        help="for ode: random probes of the divergence (default 1); 0: exact, one Jacobian product per pixel value",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FOLDER", help="output folder; by default DIR/evaluation")
    _add_sample_flags(parser)
    return run(_evaluate, parser, argv)


def _add_sample_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sample metrics (--what=samples)")
    group.add_argument(
        "--samples", metavar="FILE", help="an .npz or .npy file of uint8 [N, H, W, C], or a folder; replaces --workdir"
    )
    group.add_argument(
        "--reference", metavar="FILE",
        help="real images: a file or folder as for --samples, or a data set such as digits:train; by default the "
        "training images of the run",
    )  # fmt: skip
    group.add_argument("--num_samples", type=int, default=0, metavar="N", help="0: as the reference, up to 50000")
    group.add_argument("--num_reference", type=int, default=0, metavar="N", help="the first N images; 0: all (default)")
    group.add_argument(
        "--extractor", metavar="NAME",
        help="inception, classifier (trained on the labels of the reference) or pixels; by default inception if "
        "--inception_weights is given, else classifier",
    )  # fmt: skip
    group.add_argument("--inception_weights", metavar="FILE", help="docs/metrics.md says where to get it")
    group.add_argument("--resize", metavar="RULE", help="for inception: tf_bilinear (original FID; default) or clean")
    group.add_argument("--image_size", metavar="H,W", help="first resize samples and reference to this size")
    group.add_argument("--data_path", default="", metavar="DIR", help="folder of the data set that --reference names")
    group.add_argument("--cache", metavar="FOLDER", help="for features; by default in the user's cache folder")
    add_sampler_flags(group)


def _evaluate(args: argparse.Namespace) -> None:
    what = [name.strip() for name in (DEFAULT_WHAT if args.what is None else args.what).split(",") if name.strip()]
    for name in what:
        if name.lower() in MEASURED_BY:
            of = MEASURED_BY[name.lower()]
            raise UserError(f"--what={name} is part of {of!r}: give --what={of}")
    if args.ode and "ode" not in what:
        what.append("ode")
    if args.samples is not None:
        if args.workdir is not None:
            raise UserError("--workdir draws samples of a run, and --samples reads them from a file: give one of them")
        for name in ("ode", "split", "max_images", "weights"):
            if getattr(args, name) not in (False, None, 0, "ema"):
                raise UserError(f"--{name} is only for a run, and --samples are images: leave it out")
        if args.what not in (None, "samples"):
            raise UserError(f"--what={args.what} is only for a run; of --samples there are sample metrics alone")
        what = ["samples"]
        if args.overrides:
            raise UserError(f"--config.{args.overrides[0]} is only for a run, and --samples are images: leave it out")
    elif args.workdir is None:
        raise UserError("what to measure? give --workdir=DIR, the folder of a training run, or --samples=FILE")
    ode = {name: getattr(args, name) for name in ("ode_steps", "ode_probes") if getattr(args, name) is not None}
    if ode and "ode" not in what:
        raise UserError(f"--{next(iter(ode))} is only for the probability flow: give --ode too")
    if args.bits_respacing is not None and "bits" not in what:
        raise UserError("--bits_respacing is only for the bound: give --what=bits")
    _check_sample_flags(args, what)

    stds = _lengths(args, what)

    # Imported here, so that --help and the errors above need not wait for JAX.
    from ddpm_jax.evaluation.measure_weights import measured_text, sample_folder
    from ddpm_jax.evaluation.run_evaluation import EvaluationSettings

    settings = EvaluationSettings(
        what=what,
        split=args.split,
        max_images=args.max_images,
        seed=args.seed,
        batch_size=args.batch_size,
        out=args.out,
        bits_respacing=args.bits_respacing or "",
        **ode,
    )
    written: list[str] = []
    folder = sample_folder(args)
    before = {str(path) for path in Path(folder).rglob("*")} if folder else set()
    text = measured_text(args, settings, stds, written)
    if text:
        print(text)
    for path in dict.fromkeys(written):
        replaced = ", in place of what was there" if os.path.abspath(path) in before else ""
        print(f"wrote {path}{replaced}")


def _lengths(args: argparse.Namespace, what: Sequence[str]) -> list[float]:
    """The lengths of --ema_std; none if it is not given."""
    if args.ema_std is None:
        return []
    try:
        stds = [float(text) for text in args.ema_std.split(",")]
    except ValueError:
        raise UserError(f"--ema_std must be a length such as 0.1, or several: 0.05,0.1; got {args.ema_std!r}") from None
    if len(set(stds)) < len(stds):
        raise UserError(f"--ema_std must be different lengths; got {args.ema_std}")
    if args.workdir is None:
        raise UserError("--ema_std is only for a run, and --samples are images: leave it out")
    if len(stds) > 1 and set(what) == {"pictures"}:
        raise UserError(f"--ema_std={args.ema_std} compares numbers, and --what=pictures has none: add bits or samples")
    return stds


def _check_sample_flags(args: argparse.Namespace, what: Sequence[str]) -> None:
    of_samples = ("reference", "num_samples", "num_reference", "extractor", "inception_weights", "resize",
                  "image_size", "data_path", "cache")  # fmt: skip
    given = [name for name in of_samples if getattr(args, name)] + list(typed_sampler_flags(args))
    if given and "samples" not in what:
        raise UserError(f"--{given[0]} is only for sample metrics: give --what=samples too, or --samples=FILE")
    sampling = [*typed_sampler_flags(args), *(name for name in ("step", "best") if getattr(args, name))]
    if sampling and args.workdir is None:
        raise UserError(f"--{sampling[0]} is only for a run, and --samples are images: leave it out")


if __name__ == "__main__":
    sys.exit(main())
