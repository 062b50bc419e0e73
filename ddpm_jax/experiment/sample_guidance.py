"""From the group `sample` of a config to the guidance of samples by a reference: the null class, other classes, or a
weaker network."""

import math

from ml_collections import ConfigDict

from ddpm_jax.data.condition import Condition, has_null, null_condition
from ddpm_jax.diffusion.guidance import Guidance, make_guidance
from ddpm_jax.diffusion.projected_guidance import Projection, make_projection
from ddpm_jax.experiment.conditions import condition_spec, negative_of
from ddpm_jax.experiment.config_checks import fields_named
from ddpm_jax.experiment.sample_inputs import GuidanceOf
from ddpm_jax.experiment.weak_network import WeakNetwork, weak_network_of_samples
from ddpm_jax.runtime.errors import UserError


def is_guided(config: ConfigDict) -> bool:
    """Whether samples are guided by a reference. With CFG++ a scale of 1 is not the absence of guidance."""
    return config.sample.guidance_scale != 1 or config.sample.cfg_plus_plus


def guidance_of(config: ConfigDict, weak: WeakNetwork | None = None) -> GuidanceOf:
    """Numbers of samples -> their guidance; None if there is none.

    The reference is a weaker network, the classes of `conditions.negative_of`, or else the null condition.

    Args:
      weak: that of `sample.autoguidance`, if it was read before.

    Raises:
      UserError: a setting out of its range, or guidance for a network that was not trained for it.
    """
    sample, spec = config.sample, condition_spec(config)
    given = tuple(sample.guidance_interval)
    interval = given or (-math.inf, math.inf)
    if len(interval) != 2 or not all(type(end) in (int, float) for end in interval):
        raise UserError(f"sample.guidance_interval must be LOW,HIGH of the log SNR, or empty; got {given}")
    negative = negative_of(config)
    projection = _projection(config)

    def settings(reference: Condition) -> Guidance:
        with fields_named("sample"):
            return make_guidance(
                reference,
                scale=sample.guidance_scale,
                interval=interval,
                rescale=sample.guidance_rescale,
                projection=projection,
                renoises=sample.cfg_plus_plus,
            )

    settings({})
    weak = weak_network_of_samples(config) if weak is None else weak
    if not is_guided(config):
        return lambda ids: None
    if weak is not None:
        of_weak = settings({}).replace(weak_params=weak.params)
        return lambda ids: of_weak
    if negative is None and not has_null(spec):
        what, remedy = f"sample.guidance_scale={sample.guidance_scale}", "take 1"
        if sample.cfg_plus_plus:
            what, remedy = "sample.cfg_plus_plus=True", "leave it out"
        raise UserError(
            f"{what} needs a network that was also trained without the condition; the run has "
            f"condition.drop_rate={config.condition.drop_rate} and model.num_classes={config.model.num_classes}: "
            f"{remedy}, or train with condition.drop_rate=0.1"
            + ("" if config.model.num_classes else " and model.num_classes=N")
        )
    if negative is not None:
        return lambda ids: settings(negative(ids))
    return lambda ids: settings(null_condition(spec, len(ids)))


def _projection(config: ConfigDict) -> Projection | None:
    """That of adaptive projected guidance; None if it would change nothing."""
    eta, norm_limit = config.sample.apg_eta, config.sample.apg_norm
    with fields_named("sample"):
        projection = make_projection(eta=eta, norm_limit=norm_limit)
    return None if eta == 1 and norm_limit == 0 else projection
