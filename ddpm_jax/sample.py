"""`python -m ddpm_jax.sample`: new pictures from a trained run, as a PNG grid and an .npz."""

import argparse
import os
import sys
from collections.abc import Sequence

from ddpm_jax.atomic_files import check_folder
from ddpm_jax.command_line import run
from ddpm_jax.config_flags import RunParser
from ddpm_jax.errors import UserError, check_between
from ddpm_jax.sampler_flags import add_sampler_flags, choose_sampler, given_sampler_flags

EXAMPLE = "python -m ddpm_jax.sample --workdir=runs/digits --num_samples=64 --out=runs/digits/samples/new"
MAX_GRID = 100  # pictures in the PNG; the .npz holds all


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = RunParser(
        "sample",
        "Draws pictures from a trained model. Model, schedule and sampler come from the checkpoint; the flags\n"
        "below choose how many pictures, from which weights, and may name another sampler.",
        EXAMPLE,
        takes_hosts=True,
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the training run")
    parser.add_argument("--out", required=True, metavar="PATH", help="writes PATH.png and PATH.npz")
    parser.add_argument("--num_samples", type=int, default=64, metavar="N", help="pictures (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="sample n depends on it and n alone (default 0)")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint; by default the newest")
    parser.add_argument("--best", action="store_true", help="the checkpoint with the lowest eval loss")
    parser.add_argument("--weights", default="ema", metavar="ema|raw", help="which weights (default ema)")
    add_sampler_flags(parser)
    parser.add_argument("--batch_size", type=int, metavar="N", help="pictures at a time; no influence on them")
    return run(_sample, parser, argv)


def _sample(args: argparse.Namespace) -> None:
    check_between("--num_samples", args.num_samples, 1)
    out, extension = os.path.splitext(args.out)
    if extension not in (".png", ".npz"):
        out = args.out
    _check_out(out)

    # Here, so that --help and the errors above need not wait for JAX.
    import jax
    import numpy as np

    from ddpm_jax import factories, hosts, sampler_factory
    from ddpm_jax.devices import make_mesh, replicated
    from ddpm_jax.keys import check_seed
    from ddpm_jax.pictures import save_grid, save_npz
    from ddpm_jax.progress import ProgressBar
    from ddpm_jax.runs import open_run

    check_seed("--seed", args.seed)
    trained = open_run(args.workdir, step=args.step, best=args.best, weights=args.weights)
    config = trained.config
    mesh = make_mesh()
    choose_sampler(config, given_sampler_flags(args), batch_size=args.batch_size, num_devices=mesh.size)
    schedule = factories.build_schedule(config)
    table = sampler_factory.build_table(config, schedule)
    model = factories.build_model(config)
    factories.check_params(config, model, trained.params)
    generator = factories.build_generator(config, schedule, table, model, mesh)

    is_first = hosts.is_first()
    if is_first:
        print(
            f"{args.num_samples} samples of step {trained.step} ({args.weights} weights), {config.sample.sampler} with "
            f"{table.num_calls} network calls, seed {args.seed}"
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
