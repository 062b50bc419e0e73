"""`python -m ddpm_jax.sample`: new pictures from a trained run, as a PNG grid and an .npz."""

import argparse
import os
import sys
from collections.abc import Sequence

from ddpm_jax.atomic_files import check_folder
from ddpm_jax.commands import make_parser, run
from ddpm_jax.errors import UserError

EXAMPLE = "python -m ddpm_jax.sample --workdir=runs/digits --num_samples=64 --out=runs/digits/samples/new"
MAX_GRID = 100  # pictures in the PNG; the .npz holds all


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = make_parser(
        "sample",
        "Draws pictures from a trained model. Model, schedule and sampler come from the checkpoint; the flags\n"
        "below choose how many pictures, from which weights, and may name another sampler.",
        EXAMPLE,
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the training run")
    parser.add_argument("--out", required=True, metavar="PATH", help="writes PATH.png and PATH.npz")
    parser.add_argument("--num_samples", type=int, default=64, metavar="N", help="pictures (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="sample n depends on it and n alone (default 0)")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint; by default the newest")
    parser.add_argument("--best", action="store_true", help="the checkpoint with the lowest eval loss")
    parser.add_argument("--weights", default="ema", metavar="ema|raw", help="which weights (default ema)")
    parser.add_argument(
        "--sampler",
        metavar="NAME",
        help="ancestral, ddim, euler, euler_ancestral, heun, dpmpp_1, dpmpp_2m, dpmpp_3m, dpmpp_3m_full, "
        "dpmpp_sde, dpmpp_2m_sde, plms, unipc or unipc_3",
    )
    parser.add_argument("--num_sampler_steps", type=int, metavar="N", help="steps, a network call each; 0: all T")
    parser.add_argument(
        "--spacing",
        metavar="NAME",
        help="of the visited steps: uniform, quadratic, ddim_quadratic, leading, trailing, log_snr or karras",
    )
    parser.add_argument(
        "--respacing", metavar="TEXT", help="instead of both: such as 250, 10,15,20, ddim50, or t=999,500,0"
    )
    parser.add_argument(
        "--classes", metavar="LIST", help="of a network with classes: which, in turn, such as 3 or 0,1,2; default all"
    )
    parser.add_argument("--eta", type=float, help="noise of ddim, 0 to 1")
    parser.add_argument("--churn", type=float, help="noise of heun, S_churn of EDM")
    parser.add_argument("--dynamic_threshold", type=float, metavar="Q", help="a quantile such as 0.995; 0: none")
    parser.add_argument("--batch_size", type=int, metavar="N", help="pictures at a time; no influence on them")
    return run(_sample, parser, argv)


def _sample(args: argparse.Namespace) -> None:
    if args.num_samples < 1:
        raise UserError(f"--num_samples must be at least 1; got {args.num_samples}")
    out, extension = os.path.splitext(args.out)
    if extension not in (".png", ".npz"):
        out = args.out
    _check_out(out)

    # Here, so that --help and the errors above need not wait for JAX.
    import jax
    import numpy as np

    from ddpm_jax import factories, sampler_factory
    from ddpm_jax.devices import make_mesh, replicated
    from ddpm_jax.keys import check_seed
    from ddpm_jax.overrides import apply_override
    from ddpm_jax.pictures import save_grid, save_npz
    from ddpm_jax.progress import ProgressBar
    from ddpm_jax.runs import open_run

    check_seed("--seed", args.seed)
    trained = open_run(args.workdir, step=args.step, best=args.best, weights=args.weights)
    config = trained.config
    mesh = make_mesh()
    overrides = {
        name: getattr(args, name)
        for name in (
            "sampler", "num_sampler_steps", "spacing", "respacing", "eta", "churn", "dynamic_threshold", "batch_size"
        )
        if getattr(args, name) is not None
    }  # fmt: skip
    if args.respacing is None and (args.num_sampler_steps is not None or args.spacing is not None):
        overrides["respacing"] = ""  # what is typed takes the place of the run's own
    if args.classes is not None:
        apply_override(config, f"sample.classes={args.classes}")
    with config.unlocked():
        config.sample.update(overrides)
        # The run's batch suits the devices that it was trained on; these may be others.
        if args.batch_size is None:
            config.sample.batch_size = -(-config.sample.batch_size // mesh.size) * mesh.size
    schedule = factories.build_schedule(config)
    table = sampler_factory.build_table(config, schedule)
    model = factories.build_model(config)
    factories.check_params(config, model, trained.params)
    generator = factories.build_generator(config, schedule, table, model, mesh)

    print(
        f"{args.num_samples} samples of step {trained.step} ({args.weights} weights), {config.sample.sampler} with "
        f"{table.num_calls} network calls, seed {args.seed}"
    )
    total = generator.num_batches(args.num_samples) * generator.num_rows
    is_first = jax.process_index() == 0
    with ProgressBar(total, "sampling", enabled=is_first) as bar:
        images = generator.generate(
            jax.device_put(trained.params, replicated(mesh)),
            seed=args.seed,
            num_samples=args.num_samples,
            on_chunk=bar.update,
        )
    if is_first:
        labels = generator.labels(np.arange(args.num_samples))
        save_npz(f"{out}.npz", images, labels)
        save_grid(f"{out}.png", images[:MAX_GRID])
        arrays = f"uint8 {list(images.shape)} as arr_0" + ("" if labels is None else ", classes as arr_1")
        print(f"wrote {out}.npz ({arrays}) and {out}.png")


def _check_out(out: str) -> None:
    """Makes the folder of PATH; raises UserError where nothing can be written, before hours of sampling."""
    folder, name = os.path.split(os.path.abspath(out) if out and not out.endswith(os.sep) else "")
    if not name:
        raise UserError(f"--out must be a path such as samples/new, for samples/new.png and .npz; got {out!r}")
    check_folder("--out", folder)


if __name__ == "__main__":
    sys.exit(main())
