"""Shared code of the commands `python -m ddpm_jax.<verb>`: flags, exit codes and one-line errors."""

import argparse
import contextlib
import difflib
import errno
import re
import sys
from collections.abc import Callable, Sequence

from ddpm_jax.runtime.compilation import enable_compilation_cache
from ddpm_jax.runtime.disk_space import DiskFullError, is_full
from ddpm_jax.runtime.errors import UserError, decimal_point, out_of_memory
from ddpm_jax.runtime.multi_host_flags import add_host_flags, joined
from ddpm_jax.runtime.output import tolerant_output

EXIT_OK, EXIT_LOST_OUTPUT, EXIT_INTERRUPTED = 0, 74, 130  # 74 is EX_IOERR; 130 = 128 + SIGINT, as shells count

MAX_NAME = 300  # characters of a file's name in a message

_LESS_MEMORY = (
    "remedies: a smaller batch (train.batch_size, sample.batch_size, --batch_size); in training also "
    "train.grad_accum_steps, model.remat=true, model.dtype=bfloat16 and mesh.fsdp, which "
    "python -m ddpm_jax.benchmark --dry_run --rows=all compares"
)


class CommandParser(argparse.ArgumentParser):
    """The parser of one command; its errors are `UserError`s."""

    def __init__(self, verb: str, purpose: str, example: str, *, takes_hosts: bool = False, compiles: bool = True):
        """Flags are added by the caller.

        Args:
          verb: the last part of the module's name.
          purpose: one or two sentences for the top of `--help`.
          example: a command line to copy.
          takes_hosts: whether several processes may run it together; `run` then connects them.
          compiles: whether the command compiles JAX programs.
        """
        super().__init__(
            prog=f"ddpm_jax.{verb}", description=purpose, epilog=f"example:\n  {example}", allow_abbrev=False,
            usage=f"python -m ddpm_jax.{verb} [flags]",
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34),
        )  # fmt: skip
        self.takes_hosts = takes_hosts
        self.hints: dict[str, str] = {}  # a flag that people try but that does not exist -> what to do instead
        if takes_hosts:
            add_host_flags(self)
        if compiles:
            self.add_argument("--nocompilation_cache", action="store_true",
                              help="do not store compiled programs in the user's cache folder")  # fmt: skip

    def error(self, message: str) -> None:
        number = re.search("invalid float value: '(.*)'$", message)
        if number:
            message += decimal_point(number[1])
        raise UserError(f"{message}; see python -m {self.prog} --help")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The flags of a command line.

        Raises:
          UserError: arguments that cannot be parsed, or an unknown flag.
          SystemExit: --help.
        """
        try:
            args, unknown = self.parse_known_args(argv)
        except UserError:
            # If a required flag is missing, a mistyped flag is often the reason: name the mistyped one.
            unknown = [argument for argument in argv if argument.startswith("--") and
                       argument.partition("=")[0] not in self._option_string_actions]  # fmt: skip
            if not unknown:
                raise
        if unknown:
            raise self.unknown_flag(unknown[0])
        if getattr(args, "workdir", None) == "":  # from an unset shell variable: must not mean the current directory
            raise UserError("--workdir must name a folder; got ''; for the current one give --workdir=.")
        return args

    def unknown_flag(self, argument: str) -> UserError:
        """The error for an argument that is not a known flag."""
        flag = argument.partition("=")[0]
        if not flag.startswith("-"):
            return UserError(f"unexpected argument {argument!r}; see python -m {self.prog} --help")
        name = flag.lstrip("-").replace("-", "_")
        if name in self.hints:
            return UserError(f"unknown flag {flag!r}: {self.hints[name]}")
        close = self.closest_flag(name)
        if close:
            return UserError(f"unknown flag {flag!r}; did you mean {close!r}?")
        return UserError(f"unknown flag {flag!r}; see python -m {self.prog} --help")

    def flag_of(self, argument: str) -> str | None:
        """The flag for the argument in an error message, such as `weights` or `weights=raw`; None if there is none."""
        flag = f"--{argument}"
        return flag if flag.partition("=")[0] in self._option_string_actions else None

    def closest_flag(self, name: str) -> str | None:
        """The flag that a user who typed --NAME most likely meant."""
        # The two forms in capitals exist only for --help.
        options = [option for option in self._option_string_actions if option[:2] == "--" and option.islower()]
        return next(iter(difflib.get_close_matches(f"--{name}", options, n=1, cutoff=0.7)), None)


def image_size_of(flag: str, text: str) -> tuple[int, int]:
    """(H, W) of `H,W` in pixels, or of one number for a square.

    Raises:
      UserError: anything else.
    """
    parts = text.split(",")
    if len(parts) > 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"{flag} must be H,W in pixels, such as 64,64, or one number for both; got {text!r}")
    return int(parts[0]), int(parts[-1])


def run(main: Callable[[argparse.Namespace], int | None], parser: CommandParser,
        argv: Sequence[str] | None = None) -> int:
    """Parses `argv`, calls `main(args)`, and returns the exit code for `sys.exit`.

    A UserError becomes one line on stderr and its exit code (2, or 74 if the disk is full), a device out of memory one
    line and code 2, a file that the system refuses one line and code 2, Ctrl-C one line and code 130. Any other
    exception is a bug in ddpm_jax and keeps its traceback.
    Output that cannot be written stops nothing; unless its reader left, as in `| head`, the exit code is then 74.

    Args:
      main: the command; returns an exit code, None for 0.
      parser: its flags.
      argv: the command line without the program's name; None: that of the process.
    """
    with tolerant_output() as output:
        code = _exit_code_of(main, parser, argv)
    lost = output.error is not None and not isinstance(output.error, BrokenPipeError)
    return EXIT_LOST_OUTPUT if lost and code == EXIT_OK else code


def _exit_code_of(main: Callable[[argparse.Namespace], int | None], parser: CommandParser,
                  argv: Sequence[str] | None) -> int:
    try:
        args = parser.parse(list(sys.argv[1:] if argv is None else argv))
        if "nocompilation_cache" in args:
            enable_compilation_cache(not args.nocompilation_cache)
        with joined(args) if parser.takes_hosts else contextlib.nullcontext():
            return main(args) or EXIT_OK
    except UserError as error:
        error.rename(parser.flag_of)
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr, flush=True)
        return error.exit_code
    except RuntimeError as error:
        what = out_of_memory(error)
        if what is None:
            raise
        print(f"error: the device is out of memory: {what}; {_LESS_MEMORY}", file=sys.stderr, flush=True)
        return UserError.exit_code
    except OSError as error:
        if is_full(error):
            name = "" if error.filename is None else f": {error.filename!r:.{MAX_NAME}} could not be written"
            print(f"error: no room on the disk{name}; free some space and run the command again", file=sys.stderr,
                  flush=True)  # fmt: skip
            return DiskFullError.exit_code
        # Of a file of the user's, or of the current folder that was deleted (without a name); else it is a bug.
        if error.filename is None and error.errno != errno.ENOENT:
            raise
        name = "the current folder" if error.filename is None else f"{error.filename!r:.{MAX_NAME}}"
        print(f"error: {name} cannot be used: {error.strerror}", file=sys.stderr, flush=True)
        return UserError.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    except SystemExit as exit:  # --help
        return exit.code if isinstance(exit.code, int) else EXIT_OK
