"""`python -m ddpm_jax.evaluate`: likelihood and rate-distortion of a trained model on real pictures."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from ddpm_jax.commands import make_parser, run
from ddpm_jax.errors import UserError

EXAMPLE = "python -m ddpm_jax.evaluate --workdir=runs/digits"
PURPOSE = """\
Measures a trained model on real pictures and writes tables, curves and pictures into DIR/evaluation:
  bits      bits per dimension, the variational bound (Ho et al. 2020, equation 5) with every L_t, and the
            rate-distortion curve of progressive coding (section 4.3)
  pictures  what the network takes x_0 to be on the way: of held-out pictures, and of samples
  ode       the exact likelihood of the probability flow (Song et al. 2021), a second estimate of bits/dim
Other pictures than the run's: --config.data.path=DIR and the other fields of data.
After Ctrl-C or a kill the same command goes on where it stopped, to the same numbers."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = make_parser("evaluate", PURPOSE, EXAMPLE, takes_overrides=True)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the training run")
    parser.add_argument("--what", default="bits,pictures", metavar="LIST", help="what to measure (default %(default)s)")
    parser.add_argument("--ode", action="store_true", help="adds ode to that list")
    parser.add_argument("--split", metavar="NAME", help="of the run's data; by default its held-out split")
    parser.add_argument("--max_images", type=int, default=0, metavar="N", help="the first N; 0: all (default)")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint; by default the newest")
    parser.add_argument("--best", action="store_true", help="the checkpoint with the lowest eval loss")
    parser.add_argument("--weights", default="ema", metavar="ema|raw", help="which weights (default ema)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument(
        "--batch_size", type=int, default=0, metavar="N",
        help="pictures at a time, 0: the run's eval.batch_size (default); no influence on the result",
    )  # fmt: skip
    parser.add_argument("--ode_steps", type=int, metavar="N", help="of ode: RK4 steps, four calls each (default 50)")
    parser.add_argument(
        "--ode_probes", type=int, metavar="N",
        help="of ode: random probes of the divergence (default 1); 0: exact, as many Jacobian products as pixels",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FOLDER", help="where to write; by default DIR/evaluation")
    return run(_evaluate, parser, argv)


def _evaluate(args: argparse.Namespace) -> None:
    what = [name.strip() for name in args.what.split(",") if name.strip()]
    if args.ode and "ode" not in what:
        what.append("ode")
    ode = {name: getattr(args, name) for name in ("ode_steps", "ode_probes") if getattr(args, name) is not None}
    if ode and "ode" not in what:
        raise UserError(f"--{next(iter(ode))} is a setting of the probability flow: give --ode too")

    # Here, so that --help and the errors above need not wait for JAX.
    from ddpm_jax.evaluation.of_run import Evaluation, EvaluationSettings
    from ddpm_jax.runs import open_run, with_data

    settings = EvaluationSettings(
        what=what,
        split=args.split,
        max_images=args.max_images,
        seed=args.seed,
        batch_size=args.batch_size,
        out=args.out,
        **ode,
    )
    trained = open_run(args.workdir, step=args.step, best=args.best, weights=args.weights)
    trained = dataclasses.replace(trained, config=with_data(trained.config, args.overrides))
    evaluation = Evaluation(trained, settings, workdir=args.workdir, weights=args.weights)
    written: list[str] = []
    report = evaluation.measure(on_file=written.append)
    if report is None:
        return
    if set(what) != {"pictures"}:
        print(report.markdown())
    for path in written:
        print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
