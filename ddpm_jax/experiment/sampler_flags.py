"""The flags that choose a sampler, for every command that draws samples from a run."""

import argparse
from collections.abc import Sequence

from ml_collections import ConfigDict

from ddpm_jax.diffusion.process import FIXED_VARIANCES, LEARNED_VARIANCES
from ddpm_jax.diffusion.timestep_spacing import SPACINGS
from ddpm_jax.experiment.config_overrides import apply_override
from ddpm_jax.experiment.sampler_factory import SAMPLERS
from ddpm_jax.runtime.errors import UserError, check_one_of

_FIELDS = (
    "sampler", "num_sampler_steps", "spacing", "respacing", "eta", "churn", "dynamic_threshold", "guidance_scale",
    "guidance_rescale", "variance",
)  # fmt: skip
_OF_GUIDANCE = ("guidance_interval", "guidance_rescale", "negative_classes")
_AS_IN_A_CONFIG = ("classes", "negative_classes", "guidance_interval", "clip_x_0")


def add_sampler_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """--sampler and its settings; what is not given is the run's own."""
    parser.add_argument(
        "--sampler",
        metavar="NAME",
        help=_one_of(SAMPLERS),
    )
    parser.add_argument("--num_sampler_steps", type=int, metavar="N", help="steps, a network call each; 0: all T")
    parser.add_argument(
        "--spacing",
        metavar="NAME",
        help=f"of the visited steps: {_one_of(SPACINGS)}",
    )
    parser.add_argument(
        "--respacing", metavar="TEXT", help="instead of both: such as 250, 10,15,20, ddim50, or t=999,500,0"
    )
    parser.add_argument(
        "--classes", metavar="LIST", help="of a network with classes: which, in turn, such as 3 or 0,1,2; default all"
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
        "--negative_classes", metavar="LIST", help="guide away from these classes, in turn, and not from no class"
    )
    parser.add_argument("--eta", type=float, help="noise of ddim, 0 to 1")
    parser.add_argument("--churn", type=float, help="noise of heun, S_churn of EDM")
    parser.add_argument(
        "--variance", metavar="NAME", help=f"of ancestral, where no network gives it: {_one_of(FIXED_VARIANCES)}"
    )
    parser.add_argument("--clip_x_0", metavar="BOOL", help="true or false: keeps x_0 of each step in the images' range")
    parser.add_argument("--dynamic_threshold", type=float, metavar="Q", help="a quantile such as 0.995; 0: none")


def _one_of(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def given_sampler_flags(args: argparse.Namespace) -> dict[str, object]:
    """What was typed of the flags above, by name."""
    return {name: getattr(args, name) for name in (*_FIELDS, *_AS_IN_A_CONFIG) if getattr(args, name) is not None}


def choose_sampler(
    config: ConfigDict, given: dict[str, object], *, batch_size: int | None, num_devices: int
) -> ConfigDict:
    """A run's config with the group `sample`, and the variance, changed to what was given; locked.

    Args:
      given: of `given_sampler_flags`.
      batch_size: images at a time; None: the run's, rounded up to a multiple of the number of devices.

    Raises:
      UserError: classes that cannot be read, settings of guidance without guidance, or one that would have no
        effect; everything else is checked by the factories.
    """
    config, given, typed = config.copy_and_resolve_references(), dict(given), set(given)
    for name in _AS_IN_A_CONFIG:
        if name in given:
            apply_override(config, f"sample.{name}={given.pop(name)}")
    quantile = given.get("dynamic_threshold", config.sample.dynamic_threshold)
    if "clip_x_0" in typed and quantile:
        raise UserError(
            f"--clip_x_0 has no effect where a dynamic threshold takes its place, here of {quantile:g}: give "
            "--dynamic_threshold=0 too"
        )
    idle = [name for name in _OF_GUIDANCE if name in typed]
    if idle and given.get("guidance_scale", config.sample.guidance_scale) == 1:
        raise UserError(f"--{idle[0]} needs a --guidance_scale other than 1, which is no guidance")
    _check_effect(typed, given.get("sampler", config.sample.sampler))
    variance = given.pop("variance", config.diffusion.variance)
    if "variance" in typed:
        _check_variance(config, variance, given.get("sampler", config.sample.sampler))
    if "respacing" not in given and ("num_sampler_steps" in given or "spacing" in given):
        given["respacing"] = ""  # what is typed takes the place of the run's own
    with config.unlocked():
        config.sample.update(given)
        config.diffusion.variance = variance
        if batch_size is None:
            # The run's batch suits the devices that it was trained on; these may be others.
            batch_size = -(-config.sample.batch_size // num_devices) * num_devices
        config.sample.batch_size = batch_size
    return config.lock()


def _check_effect(typed: set[str], sampler: str) -> None:
    """Raises UserError for a setting that the sampler does not read, or that another one takes the place of."""
    if "sampler" in typed:
        check_one_of("--sampler", sampler, SAMPLERS)
    for name, owner in (("eta", "ddim"), ("churn", "heun")):
        if name in typed and sampler != owner:
            raise UserError(f"--{name} is of --sampler={owner}; got {sampler!r}, which does not read it")
    idle = [name for name in ("num_sampler_steps", "spacing") if name in typed]
    if "respacing" in typed and idle:
        raise UserError(f"--respacing says which steps are visited: leave out --{idle[0]}")


def _check_variance(config: ConfigDict, variance: str, sampler: str) -> None:
    check_one_of("--variance", variance, FIXED_VARIANCES)
    if config.diffusion.variance in LEARNED_VARIANCES:
        raise UserError(
            f"--variance={variance} is for a network that does not give its variance; this one does "
            f"(diffusion.variance={config.diffusion.variance!r}): leave it out"
        )
    if sampler != "ancestral":
        raise UserError(f"--variance={variance} is of --sampler=ancestral; got {sampler!r}, which does not read it")
