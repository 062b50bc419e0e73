"""The flags that choose a sampler, for every command that draws samples from a run."""

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager

from ddpm_jax.diffusion.process import FIXED_VARIANCES
from ddpm_jax.diffusion.timestep_spacing import SPACINGS
from ddpm_jax.experiment.sampler_factory import SAMPLERS
from ddpm_jax.experiment.sampler_settings import SAMPLER_SETTINGS
from ddpm_jax.runtime.errors import UserError, arguments_named


def add_sampler_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """--sampler and its settings; what is not given is the run's own."""
    parser.add_argument(
        "--sampler",
        metavar="NAME",
        help=_one_of(SAMPLERS),
    )
    parser.add_argument(
        "--num_sampler_steps", type=int, metavar="N", help="steps, a network call each (heun: two); 0: all T"
    )
    parser.add_argument(
        "--spacing",
        metavar="NAME",
        help=f"of the visited steps: {_one_of(SPACINGS)}",
    )
    parser.add_argument(
        "--respacing", metavar="TEXT",
        help="instead of --num_sampler_steps and --spacing: such as 250, 10,15,20, ddim50, or t=999,500,0",
    )
    parser.add_argument(
        "--classes", metavar="LIST",
        help="classes of the network or the classifier, in turn, by number or name, such as 3 or 0,1,2; default all",
    )
    parser.add_argument(
        "--guidance_scale", type=float, metavar="S", help="classifier-free guidance, the papers' 1 + w; 1: none"
    )
    parser.add_argument(
        "--guidance_interval", metavar="LOW,HIGH", help="of the log SNR, outside of which there is no guidance"
    )
    parser.add_argument(
        "--guidance_rescale", type=float, metavar="PHI", help="0 to 1, against too much contrast, such as 0.7"
    )
    parser.add_argument(
        "--apg_eta", type=float, metavar="ETA",
        help="adaptive projected guidance: the share kept of what only changes the contrast, such as 0; 1: all",
    )  # fmt: skip
    parser.add_argument(
        "--apg_norm", type=float, metavar="R", help="of APG: largest norm of the difference of an image; 0: no limit"
    )
    parser.add_argument(
        "--cfg_plus_plus", metavar="BOOL", help="CFG++: true or false; --guidance_scale is then its lambda, 0 to 1"
    )
    parser.add_argument(
        "--autoguidance", metavar="DIR", help="guide away from a weaker network: a run that is smaller or less trained"
    )
    parser.add_argument(
        "--autoguidance_step", type=int, metavar="N", help="its checkpoint; 0: the newest (default)"
    )
    parser.add_argument(
        "--autoguidance_weights", metavar="NAME", help="its weights: ema (default), ema/NAME or raw"
    )
    parser.add_argument(
        "--negative_classes", metavar="LIST", help="guide away from these classes, in turn, not from the null class"
    )
    parser.add_argument(
        "--classifier", metavar="DIR", help="folder of a run of a classifier of noised images, which guides the samples"
    )
    parser.add_argument(
        "--classifier_scale", type=float, metavar="S", help="of the classifier's gradient (default 1); 0: none"
    )
    parser.add_argument("--eta", type=float, help="noise of ddim, 0 to 1")
    parser.add_argument("--churn", type=float, help="noise of heun, S_churn of EDM")
    parser.add_argument(
        "--variance", metavar="NAME", help=f"of ancestral, where no network gives it: {_one_of(FIXED_VARIANCES)}"
    )
    parser.add_argument("--clip_x_0", metavar="BOOL", help="true or false: keeps x_0 of each step in the images' range")
    parser.add_argument(
        "--augmentation_level", type=int, metavar="S",
        help="of super-resolution with condition.augmentation=noise: level of the noise in what is shown (default 0)",
    )  # fmt: skip
    parser.add_argument("--dynamic_threshold", type=float, metavar="Q", help="a quantile such as 0.995; 0: none")


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def typed_sampler_flags(args: argparse.Namespace) -> dict[str, object]:
    """What was typed of the flags above, by name."""
    return {name: getattr(args, name) for name in SAMPLER_SETTINGS if getattr(args, name) is not None}


def given_sampler_flags(args: argparse.Namespace) -> dict[str, object]:
    """What was typed of the flags above, by name, also as --config.sample.NAME.

    Raises:
      UserError: the same setting in both forms.
    """
    given = typed_sampler_flags(args)
    in_config = _settings_in_config(args)
    if twice := sorted(given.keys() & in_config.keys()):
        raise UserError(f"--{twice[0]} and --config.sample.{twice[0]} are the same setting: give one of them")
    return given | in_config


def as_typed(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Errors in the block name the settings that were typed as --config.sample.NAME in this form."""
    return arguments_named({name: f"--config.sample.{name}" for name in _settings_in_config(args)}.get)


def _settings_in_config(args: argparse.Namespace) -> dict[str, str]:
    typed = (override.partition("=") for override in args.overrides)
    values = {field.removeprefix("sample."): text for field, _, text in typed if field.startswith("sample.")}
    return {name: text for name, text in values.items() if name in SAMPLER_SETTINGS}
