"""The flags of a cascade: --cascade=DIR,DIR and --stageK.NAME=VALUE."""

import argparse
import re
from collections.abc import Sequence

from ddpm_jax.experiment.config_flags import OverridesParser
from ddpm_jax.experiment.packaged_configs import base_config
from ddpm_jax.experiment.sampler_settings import SAMPLER_SETTINGS
from ddpm_jax.runtime.errors import UserError, check_one_of

OF_CHECKPOINT = ("step", "best", "weights", "ema_std")  # arguments of `open_run`
_OF_TRAINING = {"num_grid", "preview_sampler", "num_preview_steps"}  # of the group `sample`, of no effect here
_OF_STAGE = re.compile(r"--stage([^.=]*)\.([^=]*)(?:=(.*))?", re.DOTALL)


class CascadeParser(OverridesParser):
    """`parse` puts --stageK.NAME=VALUE into `args.stages`: {K: {NAME: VALUE}}, VALUE as text."""

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Like `OverridesParser.parse`, after taking out the flags of the stages."""
        stages: dict[int, dict[str, str]] = {}
        others = []
        for argument in argv:
            match = _OF_STAGE.fullmatch(argument)
            if match is None:
                others.append(argument)
                continue
            number, name, value = match.groups()
            if not number.isdecimal() or int(number) < 1:
                raise UserError(f"--stageK.NAME=VALUE needs the number of a stage, from 1 on; got {argument!r}")
            if value is None:
                raise UserError(f"{argument} needs a value, as --stage{number}.{name}=VALUE")
            check_one_of(
                f"a setting of --stage{number}",
                name,
                {*SAMPLER_SETTINGS, *OF_CHECKPOINT, *base_config().sample} - _OF_TRAINING,
            )
            of_stage = stages.setdefault(int(number), {})
            if name in of_stage:
                raise UserError(f"--stage{number}.{name} is given twice: give it once")
            of_stage[name] = value
        args = super().parse(others)
        args.stages = stages
        return args


def add_cascade_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m ddpm_jax.sample` that are of cascades."""
    group = parser.add_argument_group("cascades (--cascade)")
    group.add_argument(
        "--cascade", metavar="DIR,DIR", help="folders of the stages, the first draws small images; replaces --workdir"
    )
    group.add_argument(
        "--truncate", action="store_true",
        help="each sampler but the last stops at the noise of --augmentation_level",
    )  # fmt: skip
    group.add_argument(
        "--norounding", action="store_true", help="stages exchange x_0 itself; by default rounded to 256 levels"
    )
    group.add_argument(
        "--stageK.NAME", metavar="VALUE", dest="_",
        help="a setting of stage K, counted from 1, such as --stage1.guidance_scale=3 or --stage2.step=4000",
    )  # fmt: skip
