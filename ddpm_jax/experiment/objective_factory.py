"""From `objective.name` of a config, and the group of that name, to the objective that is trained."""

from collections.abc import Callable

from ml_collections import ConfigDict

from ddpm_jax.experiment import model_factory, training_factory
from ddpm_jax.experiment.codec_factory import build_codec
from ddpm_jax.experiment.config_checks import fields_named
from ddpm_jax.experiment.image_condition import build_derive_fn, build_task
from ddpm_jax.experiment.packaged_configs import base_config
from ddpm_jax.runtime.errors import UserError, check_one_of
from ddpm_jax.training.classifier_objective import ClassifierObjective
from ddpm_jax.training.diffusion_objective import DiffusionObjective
from ddpm_jax.training.objective import Objective

LOSS_REGIONS = ("image", "hole")


def build_diffusion(config: ConfigDict) -> DiffusionObjective:
    """The loss of a diffusion model, from the groups `diffusion`, `schedule`, `model`, `codec` and `train`."""
    process = model_factory.build_process(config)
    codec = build_codec(config)
    model, loss_fn = model_factory.build_model(config), training_factory.build_loss(config, process, codec)
    time_sampler = training_factory.build_timestep_sampler(config)
    hole_only = _hole_only(config)
    with fields_named("diffusion"):
        return DiffusionObjective(
            model,
            loss_fn,
            time_sampler,
            codec,
            self_conditioning=config.diffusion.self_conditioning,
            self_conditioning_rate=config.diffusion.self_conditioning_rate,
            derive_fn=build_derive_fn(config),
            hole_only=hole_only,
        )


def _hole_only(config: ConfigDict) -> bool:
    """Whether the loss is that of the hole; raises UserError where there is none, or for a loss of whole images."""
    diffusion = config.diffusion
    check_one_of("diffusion.loss_region", diffusion.loss_region, LOSS_REGIONS)
    if diffusion.loss_region != "hole":
        return False
    task = build_task(config)
    if task is None or not task.has_hole:
        raise UserError(
            f"diffusion.loss_region='hole' needs a condition.task with a hole, inpaint or uncrop; got "
            f"{config.condition.task!r}"
        )
    if diffusion.loss not in ("simple", "l1", "huber"):
        raise UserError(
            f"diffusion.loss_region='hole' is for the losses simple, l1 and huber; got diffusion.loss="
            f"{diffusion.loss!r}, which is of whole images"
        )
    return True


def build_classifier(config: ConfigDict) -> ClassifierObjective:
    """A classifier of noised images, from the groups `schedule`, `model`, `unet`, `codec` and `train`."""
    if config.condition.drop_rate:
        raise UserError(
            f"condition.drop_rate must be 0 with objective.name='classifier'; got {config.condition.drop_rate}: a "
            "classifier learns from the class of every image"
        )
    if config.condition.task:
        raise UserError(
            f"condition.task must be empty with objective.name='classifier'; got {config.condition.task!r}: a "
            "classifier sees x_t alone"
        )
    if config.diffusion.network_input != "t":
        raise UserError(
            f"diffusion.network_input must be 't' with objective.name='classifier'; got "
            f"{config.diffusion.network_input!r}"
        )
    if config.diffusion.self_conditioning:
        raise UserError(
            "diffusion.self_conditioning must be False with objective.name='classifier'; got True: a classifier "
            "does not estimate x_0"
        )
    if config.optim.ema_stds:
        raise UserError(
            f"optim.ema_stds must be empty with objective.name='classifier'; got {tuple(config.optim.ema_stds)}: no "
            "command reads the snapshots of a classifier; keep other averages by optim.ema_decays"
        )
    return ClassifierObjective(
        model_factory.build_classifier(config),
        model_factory.build_process(config),
        training_factory.build_timestep_sampler(config),
        build_codec(config),
    )


# Name -> function that builds the objective.
OBJECTIVES: dict[str, Callable[[ConfigDict], Objective]] = {
    "diffusion": build_diffusion,
    "classifier": build_classifier,
}


def draws_images(config: ConfigDict) -> bool:
    """Whether the trained model can draw images, as a diffusion model can."""
    return config.objective.name == "diffusion"


def check_plain_diffusion(config: ConfigDict) -> None:
    """Raises UserError unless the config is of a diffusion model that no other network guides, whose cost is known."""
    for field in ("classifier", "autoguidance"):
        if config.sample[field]:
            raise UserError(
                f"benchmark predicts and measures one network at a time; got sample.{field}={config.sample[field]!r}"
            )
    if not draws_images(config):
        raise UserError(
            f"benchmark predicts and measures diffusion models; got objective.name={config.objective.name!r}"
        )


def build_objective(config: ConfigDict) -> Objective:
    """The objective of a config; raises UserError for an unknown name or settings that do not fit together."""
    check_one_of("objective.name", config.objective.name, OBJECTIVES)
    diffusion, default = config.diffusion, base_config().diffusion.self_conditioning_rate
    if not diffusion.self_conditioning and diffusion.self_conditioning_rate != default:
        raise UserError(
            f"diffusion.self_conditioning_rate has no effect without self-conditioning; got "
            f"{diffusion.self_conditioning_rate}: leave it at {default}, or give "
            "--config.diffusion.self_conditioning=true"
        )
    return OBJECTIVES[config.objective.name](config)
