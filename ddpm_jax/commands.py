"""What the commands `python -m ddpm_jax.<verb>` share: flags in, exit codes and one-line errors out."""

import argparse
import contextlib
import difflib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ddpm_jax.configuration import load_config, packaged_experiments
from ddpm_jax.errors import UserError, out_of_memory
from ddpm_jax.host_flags import add_host_flags, joined
from ddpm_jax.overrides import closest_field, flatten

EXIT_OK, EXIT_INTERRUPTED = 0, 130  # 130 = 128 + SIGINT, as shells count

# All compilations are kept: the dozens of small ones make half a second of each start together.
_CACHED_COMPILE_SECONDS = 0.0

_LESS_MEMORY = (
    "remedies: a smaller batch (train.batch_size, sample.batch_size, --batch_size), and in training "
    "train.grad_accum_steps, model.remat=true, model.dtype=bfloat16 and mesh.fsdp, which "
    "python -m ddpm_jax.benchmark --dry_run compares"
)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `UserError`s."""

    takes_config: bool = False
    takes_overrides: bool = False
    takes_hosts: bool = False

    def error(self, message: str) -> None:
        raise UserError(f"{message}; see python -m {self.prog} --help")


def make_parser(
    verb: str,
    purpose: str,
    example: str,
    *,
    takes_config: bool = False,
    takes_overrides: bool = False,
    takes_hosts: bool = False,
    compiles: bool = True,
) -> argparse.ArgumentParser:
    """The parser of `python -m ddpm_jax.<verb>`, to which the command adds its own flags.

    Args:
      verb: the last part of the module's name.
      purpose: one or two sentences for the top of `--help`.
      example: a command line to copy.
      takes_config: whether the command takes `--config=EXPERIMENT --config.group.field=value`; `run` then
        puts the loaded ConfigDict into `args.config`.
      takes_overrides: whether it takes `--config.group.field=value` alone; `run` then puts the list of
        `group.field=value` into `args.overrides`.
      takes_hosts: whether several processes may run it together; `run` then joins them.
      compiles: whether it computes with JAX at all.
    """
    parser = _Parser(
        prog=f"ddpm_jax.{verb}", description=purpose, epilog=f"example:\n  {example}", allow_abbrev=False,
        usage=f"python -m ddpm_jax.{verb} [flags]",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34),
    )
    parser.takes_config, parser.takes_overrides, parser.takes_hosts = takes_config, takes_overrides, takes_hosts
    if takes_config or takes_overrides:
        # For --help alone: `run` takes these out of the command line before argparse sees it.
        group = parser.add_argument_group("experiment")
        if takes_config:
            about = f"a config file, such as configs/digits.py, or one of {', '.join(packaged_experiments())}"
            group.add_argument("--config", metavar="FILE", help=about)
        group.add_argument("--config.GROUP.FIELD", metavar="VALUE", dest="_",
                           help="changes one field, such as --config.train.batch_size=64")
        group.add_argument("--noconfig.GROUP.FIELD", action="store_true", dest="_",
                           help="sets a field to false")
    if takes_hosts:
        add_host_flags(parser)
    if compiles:
        parser.add_argument("--nocompilation_cache", action="store_true",
                            help="do not keep compiled programs in the user's cache folder")
    return parser


def run(main: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser,
        argv: Sequence[str] | None = None) -> int:
    """Parses `argv`, calls `main(args)`, and returns the exit code for `sys.exit`.

    A UserError becomes one line on stderr and its code (2, or 74 where the disk is full), a device out of memory one
    line and code 2, Ctrl-C one line and code 130. Any other exception is a defect of ours and keeps its traceback.

    Args:
      main: the command; returns an exit code, None for 0.
      parser: from `make_parser`.
      argv: the command line without the program's name; None takes that of the process.
    """
    try:
        args = _parse(parser, list(sys.argv[1:] if argv is None else argv))
        if "nocompilation_cache" in args:
            enable_compilation_cache(not args.nocompilation_cache)
        with joined(args) if parser.takes_hosts else contextlib.nullcontext():
            return main(args) or EXIT_OK
    except UserError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr, flush=True)
        return error.exit_code
    except RuntimeError as error:
        what = out_of_memory(error)
        if what is None:
            raise
        print(f"error: the device's memory does not hold it: {what}; {_LESS_MEMORY}", file=sys.stderr, flush=True)
        return UserError.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    except SystemExit as exit:  # --help
        return exit.code if isinstance(exit.code, int) else EXIT_OK


def split_config_flags(argv: Sequence[str]) -> tuple[str | None, list[str], list[str]]:
    """Takes the flags of a config out of a command line, in the syntax of ml_collections.

    Args:
      argv: a command line, such as `--config=FILE --config.data.path DIR --noconfig.data.flip --workdir=W`.

    Returns:
      The experiment (None where not given), the overrides (`["data.path=DIR", "data.flip=false"]`), and
      the other arguments (`["--workdir=W"]`).

    Raises:
      UserError: `--config` without a value.
    """
    experiment, overrides, others = None, [], []
    remaining = list(argv)
    while remaining:
        argument = remaining.pop(0)
        match = re.fullmatch(r"--?(no)?config(?:\.([^=]*))?(?:=(.*))?", argument, re.DOTALL)
        if argument == "--":
            return experiment, overrides, [*others, argument, *remaining]
        if not match or (match[1] and (match[2] is None or match[3] is not None)):
            others.append(argument)
            continue
        negated, field, value = match.groups()
        if negated:
            value = "false"
        elif value is None and remaining and not remaining[0].startswith("--"):
            value = remaining.pop(0)
        if field is None:
            if not value:
                raise UserError("--config needs a value: a config file or "
                                f"the name of a packaged one: {packaged_experiments()}")
            experiment = value
        else:
            overrides.append(f"{field}={'true' if value is None else value}")
    return experiment, overrides, others


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """The flags as a namespace; `config` in it is a ConfigDict where the command takes one."""
    config, fields, overrides = None, [], []
    if parser.takes_overrides and not {"-h", "--help"} & set(argv):
        experiment, overrides, argv = split_config_flags(argv)
        if experiment is not None:
            raise UserError("this command takes no --config=FILE: its network has one; single fields may "
                            "be given, such as --config.data.path=DIR")
    if parser.takes_config and not {"-h", "--help"} & set(argv):
        experiment, overrides, argv = split_config_flags(argv)
        if experiment is None:
            raise UserError("which experiment? give --config=FILE, such as --config=configs/digits.py, "
                            f"or the name of a packaged one: {packaged_experiments()}")
        config = load_config(experiment, overrides)
        fields = list(flatten(config))
    try:
        args, unknown = parser.parse_known_args(argv)
    except UserError:
        # A mistyped flag is often why a required one is missing: name the mistyped one.
        unknown = [argument for argument in argv if argument.startswith("--") and
                   argument.partition("=")[0] not in parser._option_string_actions]
        if not unknown:
            raise
    if unknown:
        raise _unknown_flag(unknown[0], parser, fields)
    args.config, args.overrides = config, overrides
    return args


def _unknown_flag(argument: str, parser: argparse.ArgumentParser, fields: Sequence[str]) -> UserError:
    """The error for an argument that no flag of `parser` takes."""
    flag = argument.partition("=")[0]
    if not flag.startswith("-"):
        return UserError(f"unexpected argument {argument!r}; see python -m {parser.prog} --help")
    if re.match(r"--?(no)?config(\.|$)", flag) and not parser.takes_config:
        return UserError(f"unknown flag {flag!r}; this command takes the config of the run itself")
    name = flag.lstrip("-").replace("-", "_")
    # The two forms in capitals are there for --help.
    options = [option for option in parser._option_string_actions if option[:2] == "--" and option.islower()]
    close = difflib.get_close_matches(f"--{name}", options, n=1, cutoff=0.7)
    field = None if close else closest_field(name, fields)
    if close or field:
        return UserError(f"unknown flag {flag!r}; did you mean {(close or [f'--config.{field}'])[0]!r}?")
    return UserError(f"unknown flag {flag!r}; see python -m {parser.prog} --help")


def enable_compilation_cache(enabled: bool = True) -> None:
    """Keeps compiled programs on disk, so that the second start of a command is quick.

    The folder is `JAX_COMPILATION_CACHE_DIR` where that is set, else `ddpm_jax/xla` in the user's cache
    folder (`XDG_CACHE_HOME`, by default `~/.cache`). Where that cannot be written, a warning line says so
    and every start compiles anew.
    """
    import jax  # here, so that --help and flag errors need not wait for it

    if not enabled:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _CACHED_COMPILE_SECONDS)
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddpm_jax" / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        print(f"warning: no compilation cache, since {folder} cannot be written ({error.strerror}); "
              "set JAX_COMPILATION_CACHE_DIR to a folder that can", file=sys.stderr, flush=True)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
