"""The flags `--config=EXPERIMENT` and `--config.group.field=value` of the commands that take them."""

import argparse
import re
from collections.abc import Sequence

from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.config_overrides import closest_field, flatten
from ddpm_jax.experiment.packaged_configs import packaged_experiments
from ddpm_jax.runtime.command_line import CommandParser
from ddpm_jax.runtime.errors import UserError


class ConfigParser(CommandParser):
    """The parser of a command with --config and overrides: `parse` puts the loaded config into `args.config`."""

    def __init__(self, verb: str, purpose: str, example: str, **flags: bool):
        super().__init__(verb, purpose, example, **flags)
        about = f"a config file, such as configs/digits.py, or one of {', '.join(packaged_experiments())}"
        group = self.add_argument_group("experiment")
        group.add_argument("--config", metavar="FILE", help=about)
        _add_field_flags(group)
        self._fields: Sequence[str] = ()

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Like `CommandParser.parse`, after taking out the flags of the config."""
        if {"-h", "--help"} & set(argv):
            return super().parse(argv)
        experiment, overrides, argv = split_config_flags(argv)
        if experiment is None:
            # The first argument that is not a flag and not the value of one.
            strays = (argument for before, argument in zip(["", *argv], argv, strict=False)
                      if not argument.startswith("-") and not re.fullmatch(r"--[^=]+", before))  # fmt: skip
            stray = next(strays, None)
            if stray is not None:
                raise UserError(f"unexpected argument {stray!r}; an experiment is given as --config=FILE, such as "
                                "--config=configs/digits.py")  # fmt: skip
            raise UserError("which experiment? give --config=FILE, such as --config=configs/digits.py, "
                            f"or the name of a packaged one: {packaged_experiments()}")  # fmt: skip
        config = load_config(experiment, overrides)
        self._fields = list(flatten(config))
        args = super().parse(argv)
        args.config = config
        return args

    def closest_flag(self, name: str) -> str | None:
        """Also considers config fields; an exact field name has priority over a similar flag."""
        field = closest_field(name, self._fields)
        if field and field.rpartition(".")[2] == name:
            return f"--config.{field}"
        return super().closest_flag(name) or (field and f"--config.{field}")


class OverridesParser(CommandParser):
    """The parser of a command that overrides a run's config: `parse` puts `group.field=value` into `args.overrides`."""

    def __init__(self, verb: str, purpose: str, example: str, **flags: bool):
        super().__init__(verb, purpose, example, **flags)
        _add_field_flags(self.add_argument_group("experiment"), "sample.churn_noise=1.003")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Like `CommandParser.parse`, after taking out the flags of the config."""
        if {"-h", "--help"} & set(argv):
            return super().parse(argv)
        experiment, overrides, argv = split_config_flags(argv)
        if experiment is not None:
            raise UserError("this command takes no --config=FILE, because its network has a config; single fields may "
                            "be changed, such as --config.data.path=DIR")  # fmt: skip
        args = super().parse(argv)
        args.overrides = overrides
        return args


def _add_field_flags(group: argparse._ArgumentGroup, example: str = "train.batch_size=64") -> None:
    """Only for --help: `parse` takes these out of the command line before argparse sees it."""
    group.add_argument("--config.GROUP.FIELD", metavar="VALUE", dest="_",
                       help=f"change one field, such as --config.{example}")  # fmt: skip
    group.add_argument("--noconfig.GROUP.FIELD", action="store_true", dest="_", help="set a field to false")


def split_config_flags(argv: Sequence[str]) -> tuple[str | None, list[str], list[str]]:
    """Splits the config flags, in the syntax of ml_collections, from a command line.

    Args:
      argv: a command line, such as `--config=FILE --config.data.path DIR --noconfig.data.flip --workdir=W`.

    Returns:
      The experiment (None if not given), the overrides (`["data.path=DIR", "data.flip=false"]`), and
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
                                f"the name of a packaged one: {packaged_experiments()}")  # fmt: skip
            experiment = value
        else:
            overrides.append(f"{field}={'true' if value is None else value}")
    return experiment, overrides, others
