"""`python -m ddpm_jax.evaluate`: bits per dimension of a trained model on real pictures."""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from ddpm_jax.commands import make_parser, run

EXAMPLE = "python -m ddpm_jax.evaluate --workdir=runs/digits"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = make_parser(
        "evaluate",
        "Bits per dimension: the variational bound (Ho et al. 2020, equation 5) of real pictures under a trained\n"
        "model, the discretised-Gaussian decoder and the prior term included.",
        EXAMPLE,
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the training run")
    parser.add_argument("--split", metavar="NAME", help="of the run's data; by default its held-out split")
    parser.add_argument("--max_images", type=int, default=0, metavar="N", help="the first N; 0: all (default)")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint; by default the newest")
    parser.add_argument("--best", action="store_true", help="the checkpoint with the lowest eval loss")
    parser.add_argument("--weights", default="ema", metavar="ema|raw", help="which weights (default ema)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--batch_size", type=int, metavar="N", help="pictures at a time; no influence on the result")
    parser.add_argument("--out", metavar="FILE", help="the JSON file; by default DIR/bits_per_dim.json")
    return run(_evaluate, parser, argv)


def _evaluate(args: argparse.Namespace) -> None:
    # Here, so that --help need not wait for JAX.
    import jax

    from ddpm_jax.atomic_files import replace_file
    from ddpm_jax.devices import make_mesh, replicated
    from ddpm_jax.errors import UserError
    from ddpm_jax.evaluation.bits import build_bits_per_dim
    from ddpm_jax.progress import ProgressBar
    from ddpm_jax.runs import open_run

    for name in ("max_images", "batch_size"):
        if (getattr(args, name) or 0) < 0:
            raise UserError(f"--{name} must be at least 0; got {getattr(args, name)}")
    trained = open_run(args.workdir, step=args.step, best=args.best, weights=args.weights)
    config = trained.config
    split = args.split or config.data.eval_split
    if not split:
        raise UserError("the run names no held-out split: give --split, such as --split=train")
    mesh = make_mesh()
    bits = build_bits_per_dim(
        config,
        split,
        mesh,
        seed=args.seed,
        batch_size=args.batch_size or config.eval.batch_size,
        max_images=args.max_images,
    )
    is_first = jax.process_index() == 0
    with ProgressBar(bits.num_calls, "bits per dimension", enabled=is_first) as bar:
        measured = bits.measure(jax.device_put(trained.params, replicated(mesh)), on_chunk=bar.update)
    if not is_first:
        return
    summary = measured.summary()
    print(f"step {trained.step}, {args.weights} weights, {config.diffusion.variance}, {config.data.name} {split!r}:")
    print("| bits/dim | standard error | decoder L_0 | KL L_1..L_(T-1) | prior L_T | pictures |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {summary['total']:.4f} | {summary['standard_error']:.4f} | {summary['decoder']:.4f} | "
        f"{summary['kl']:.4f} | {summary['prior']:.2e} | {bits.num_images} |"
    )
    out = args.out or os.path.join(args.workdir, "bits_per_dim.json")
    facts = {"step": trained.step, "weights": args.weights, "split": split, "num_images": bits.num_images}
    by_step = {
        "terms": measured.terms.mean(axis=0).tolist(),
        "x_0_mse": measured.x_0_mse.tolist(),
        "eps_mse": measured.eps_mse.tolist(),
    }
    with replace_file(out, "w") as file:
        json.dump(facts | summary | {"seed": args.seed, "by_step": by_step}, file, indent=1)
    print(f"wrote {out}, with L_t and the errors of x_0 and eps at every t")


if __name__ == "__main__":
    sys.exit(main())
