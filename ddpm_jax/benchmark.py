"""`python -m ddpm_jax.benchmark`: the cost of a config, predicted before a run or measured."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from ddpm_jax.experiment.config_files import changed
from ddpm_jax.experiment.config_flags import ConfigParser
from ddpm_jax.runtime.atomic_files import check_folder, replace_file
from ddpm_jax.runtime.command_line import run
from ddpm_jax.runtime.errors import UserError

EXAMPLE = """\
python -m ddpm_jax.benchmark --config=configs/celeba_hq_256.py --dry_run --devices=8 --config.mesh.fsdp=8
  python -m ddpm_jax.benchmark --config=configs/cifar10.py --dry_run --rows=given,remat,accum_4
  python -m ddpm_jax.benchmark --config=configs/cifar10.py --dry_run --rows=given --tpu=v5e:2x2 --dtype=bfloat16
  python -m ddpm_jax.benchmark --config=configs/digits.py --what=train,forward,sample,data,compile"""
PURPOSE = """\
With --dry_run: predicts the parameters, the FLOPs of a train step and of a sampler step, and the memory use of each
device. --rows also compares the settings that save memory: remat, bfloat16, gradient accumulation, FSDP. Nothing is
trained, no array is allocated, and the devices need not exist. The rows are compiled one after another.
With --what: measures the seconds of a train step, a network call and a sampler step on the devices of this machine,
images per second, the share of the peak of a matrix product, compile time and memory; the speed of the data loader
alone; and the seconds from the start of a process to its first train step, with and without compiled programs on
disk."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = ConfigParser("benchmark", PURPOSE, EXAMPLE)
    parser.add_argument("--dry_run", action="store_true", help="predict only; nothing is run")
    parser.add_argument(
        "--devices", type=int, metavar="N",
        help="number of devices to plan for; they need not exist (default: train.num_devices, or 1)",
    )  # fmt: skip
    parser.add_argument(
        "--tpu", metavar="SLICE",
        help="plan for a TPU slice, which need not exist, with the TPU's own compiler: generation and chips along each "
        "axis, such as v5e:2x4; needs `pip install 'jax[tpu]'`, and takes minutes per row",
    )  # fmt: skip
    parser.add_argument(
        "--rows", default="", metavar="LIST",
        help="settings to compare: given (default), plain, remat, bfloat16, remat_bfloat16, accum_2, accum_4, accum_8, "
        "fsdp_1, fsdp_2, fsdp_4, fsdp_8; one compilation each; all: every row that fits the config",
    )  # fmt: skip
    parser.add_argument("--what", metavar="LIST", help="what to measure: any of train, forward, sample, data, compile")
    parser.add_argument("--batch_size", type=int, metavar="N", help="for training and sampling; default: the config's")
    parser.add_argument("--dtype", metavar="NAME", help="of the network, float32 or bfloat16; default: the config's")
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="timed calls of each program (default 20)")
    parser.add_argument("--nocompile", action="store_true", help="skip what needs a compilation; takes only seconds")
    parser.add_argument("--out", metavar="FILE", help="also write the numbers to this JSON file")
    return run(_benchmark, parser, argv)


def _benchmark(args: argparse.Namespace) -> None:
    if args.dry_run == (args.what is not None):
        raise UserError("what to do? give either --dry_run, to predict, or --what=train,forward,sample, to measure")
    settings = {"rows": args.rows, "devices": args.devices is not None, "tpu": args.tpu, "nocompile": args.nocompile}
    for flag, given in settings.items():
        if given and not args.dry_run:
            raise UserError(f"--{flag} needs --dry_run: leave it out")
    if args.tpu and args.devices is not None:
        raise UserError(f"--tpu={args.tpu} already sets the number of devices: leave out --devices={args.devices}")
    changes = [f"{group}.batch_size={args.batch_size}" for group in ("train", "sample") if args.batch_size is not None]
    changes += [f"model.dtype={args.dtype}"] if args.dtype else []
    args.config = changed(args.config, changes)
    # Imported here, so that --help need not wait for JAX.
    from ddpm_jax.experiment.objective_factory import check_plain_diffusion

    check_plain_diffusion(args.config)
    if args.out:
        check_folder("--out", os.path.dirname(os.path.abspath(args.out)))
        if os.path.isdir(args.out):
            raise UserError(f"--out must be a file; got the folder {args.out}")
    report = _predict(args) if args.dry_run else _measure(args)
    if args.out:
        replaced = ", in place of what was there" if os.path.exists(args.out) else ""
        with replace_file(args.out, "w") as file:
            json.dump(report, file, indent=2)
        print(f"wrote {args.out}{replaced}")


def _predict(args: argparse.Namespace) -> dict[str, Any]:
    # Imported here, so that --help and the errors above need not wait for JAX.
    from ddpm_jax.benchmarking.dry_run import dry_run
    from ddpm_jax.benchmarking.virtual_devices import use_virtual_devices
    from ddpm_jax.experiment.config_checks import num_devices_of

    if args.tpu:
        from ddpm_jax.benchmarking.tpu_topology import absent_tpu

        use_virtual_devices(1)
        devices = absent_tpu(args.tpu)
        num_devices = len(devices)
    else:
        devices = None
        num_devices = num_devices_of(args.config) or 1 if args.devices is None else args.devices
        use_virtual_devices(num_devices)
    return dry_run(
        changed(args.config, [f"train.num_devices={num_devices}"]),
        _names(args.rows) or ("given",),
        devices=devices,
        compiles=not args.nocompile,
        say=_say,
        progress=lambda line: print(f"{line} ...", file=sys.stderr, flush=True),
    )


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    from ddpm_jax.benchmarking.measurements import measure

    return measure(args.config, _names(args.what), repeats=args.repeats, say=_say)


def _names(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
