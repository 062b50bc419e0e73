"""`python -m ddpm_jax.train`: trains a DDPM, or resumes a run that was stopped earlier."""

import argparse
import signal
import sys
from collections.abc import Sequence

from ddpm_jax.experiment.config_flags import ConfigParser, split_config_flags
from ddpm_jax.runtime.command_line import CommandParser, run

STATUS_EXAMPLE = "python -m ddpm_jax.train --status --workdir=runs/digits"
EXAMPLE = "python -m ddpm_jax.train --config=configs/digits.py --workdir=runs/digits"


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0 finished, 2 user error, 74 disk full, 128 + n stopped by signal n."""
    parser = ConfigParser(
        "train",
        "Trains a denoising diffusion model. Given again, the same command resumes the run.",
        EXAMPLE,
        takes_hosts=True,
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run; created if missing")
    parser.add_argument(
        "--profile_steps", default="", metavar="FIRST:LAST",
        help="write a JAX profiler trace of these updates, such as 100:105, into DIR/profile",
    )  # fmt: skip
    parser.add_argument(
        "--status", action="store_true",
        help="print the status of the run in DIR; changes nothing and needs no --config",
    )
    resumes = "the same command resumes the run in --workdir from its newest checkpoint: leave it out"
    parser.hints = dict.fromkeys(("resume", "restore", "continue", "checkpoint", "ckpt"), resumes)
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--status" in argv:
        # The config flags of the command that started the run may stay.
        return run(_status, _status_parser(), split_config_flags(argv)[2])
    return run(_train, parser, argv)


def _status_parser() -> CommandParser:
    parser = CommandParser("train", "Prints the status of a run.", STATUS_EXAMPLE, compiles=False)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--status", action="store_true")
    return parser


def _status(args: argparse.Namespace) -> None:
    from ddpm_jax.training.run_status import status_lines

    print("\n".join(status_lines(args.workdir)))


def _train(args: argparse.Namespace) -> int:
    # Imported here, so that --help need not wait for JAX.
    from ddpm_jax.experiment.training import last_lines, train
    from ddpm_jax.runtime import multi_host
    from ddpm_jax.runtime.disk_space import disk_full_as_user_error

    with disk_full_as_user_error(args.workdir):
        stopped_by = train(args.config, args.workdir, profile_steps=args.profile_steps)
    if multi_host.is_first():
        if stopped_by is not None:
            print(f"stopped by {signal.Signals(stopped_by).name}, all is saved; the same command resumes from here")
        else:
            print("\n".join(last_lines(args.config, args.workdir)))
    return 0 if stopped_by is None else 128 + stopped_by


if __name__ == "__main__":
    sys.exit(main())
