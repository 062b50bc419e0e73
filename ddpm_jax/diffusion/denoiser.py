"""From a network's output to the inputs of the reverse process: x_0_hat, and the values of a learned variance."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import no_type_check

import flax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ddpm_jax.diffusion.guidance import Guide, PredictFn
from ddpm_jax.diffusion.parameterisations import Steps
from ddpm_jax.diffusion.process import ModelFn, Prediction, Process
from ddpm_jax.diffusion.self_conditioning import with_estimate
from ddpm_jax.runtime.errors import UserError, arg


# A pytree's leaves may be shardings, shapes or scalars of a scan, so its fields are not checked in tests.
@no_type_check
@flax.struct.dataclass
class Denoised:
    """The result of one call of a denoiser, which determines p(x_(t-1) | x_t)."""

    x_0_hat: Float[Array, "B *D"]
    # The second half of the network's output if the variance is learned; see `Process.log_var`.
    var_values: Float[Array, "B *D"] | None = None
    # Added to the mean of p(x_s | x_t), times its variance; see `make_denoiser`.
    shift: Float[Array, "B *D"] | None = None
    # Added to x_s as it is; see `edits.posterior_sampling`.
    x_s_shift: Float[Array, "B *D"] | None = None
    # The x_0_hat of the guide's reference, from which CFG++ takes eps; see `guidance.Guidance.renoises`.
    x_0_reference: Float[Array, "B *D"] | None = None
    # Of a network with self-conditioning: what its next call sees, which is x_0_hat.
    carry: Float[Array, "B *D"] | None = None


DenoiseFn = Callable[..., Denoised]  # of (x_t, t); with self-conditioning (x_t, t, carry of the call before)
ShiftFn = Callable[[Float[Array, "B *D"], Steps], Float[Array, "B *D"]]
ProjectFn = Callable[[Float[Array, "B *D"], Steps], Float[Array, "B *D"]]
# (params, condition of the batch, {} for none) -> its denoiser: for code that runs a network on all devices.
DenoiserOf = Callable[[PyTree, Mapping[str, Array]], DenoiseFn]
# The same, or with `guidance`, of type Guidance, and `classifier`, of type ClassifierGuidance.
GuidedDenoiserOf = Callable[..., DenoiseFn]


def make_denoiser(
    process: Process,
    model_fn: ModelFn,
    *,
    condition: Mapping[str, Array] | None = None,
    guide: Guide | None = None,
    x_0_limit: float | None = 1.0,
    dynamic_threshold: float = 0.0,
    project_fn: ProjectFn | None = None,
    mean_shift_fn: ShiftFn | None = None,
    self_conditioning: bool = False,
    x_0_prev_limit: float | None = 1.0,
) -> DenoiseFn:
    """denoise_fn(x_t, t, carry = None) -> Denoised, for a network that predicts what the process defines.

    Args:
      model_fn: (x_t [B, *D], t int32 [B]) -> the prediction [B, *D], with twice as many channels if the variance is
        learned. t is float32 if a sampler's grid has fractional steps. With a condition: (x_t, t, condition).
      condition: the condition of each image, [B, ...] per entry.
      guide: such as `guidance.classifier_free_guidance(process, ...)`: changes a prediction before x_0_hat is computed
        from it and clipped.
      x_0_limit: x_0_hat is clipped to [-x_0_limit, x_0_limit], 1 for pixels, as Ho et al. do in sampling and in the
        likelihood, but never in training; None: no clipping. Differs: with "mean" the mean follows from the clipped
        x_0_hat (the original keeps the network's own mean).
      dynamic_threshold: a quantile in (0, 1], such as 0.995, or 0 for none. Instead of clipping, x_0_hat of an image is
        limited to [-s, s] and divided by s / x_0_limit, where s is that quantile of its |x_0_hat|, at least
        x_0_limit (Saharia et al. 2022, section 2.3).
      project_fn: (x_0_hat, t) -> x_0_hat after the limit, such as `edits.range_null_projection`, whose x_0_hat agrees
        with a measurement. CFG++'s x_0_hat of the reference and the carry of self-conditioning are projected, too.
      mean_shift_fn: (x_t, t) -> [B, *D], such as scale * grad log p(label | x_t): times the variance of the step, it is
        added to the mean of p(x_s | x_t), after x_0_hat was clipped (Dhariwal and Nichol 2021, algorithm 1). Only for
        `ancestral_table`; other samplers take `gradient_guidance.gradient_guidance` as `guide`.
      self_conditioning: the network also sees the previous x_0_hat: model_fn gets concat(x_t, carry), [B, *D, 2 C],
        with zeros without a carry. `Denoised.carry` is the carry for the next call; see `self_conditioning`.
      x_0_prev_limit: with self_conditioning, the carry is x_0_hat clipped to [-x_0_prev_limit, x_0_prev_limit], as in
        training (`DiffusionObjective`), whatever x_0_limit is; None: no clipping.

    Raises:
      UserError: x_0_limit is not above 0 or not finite; a quantile is outside [0, 1], or given without an x_0_limit.

    Example:
      >>> from ddpm_jax.diffusion.schedules import make_schedule
      >>> denoise_fn = make_denoiser(Process(make_schedule("linear")), lambda x_t, t: 0 * x_t)
      >>> denoise_fn(jnp.full((1, 2), 0.5), jnp.array([0])).x_0_hat
      Array([[0.500025, 0.500025]], dtype=float32)
    """
    if not 0 <= dynamic_threshold <= 1:
        raise UserError(f"{arg('dynamic_threshold')} must be in [0, 1], 0 for none; got {dynamic_threshold}")
    if x_0_limit is not None and not (x_0_limit > 0 and math.isfinite(x_0_limit)):
        raise UserError(f"{arg('x_0_limit')} must be above 0 and finite, or None for none; got {x_0_limit}")
    if dynamic_threshold and x_0_limit is None:
        raise UserError(f"{arg('dynamic_threshold')} needs an {arg('x_0_limit')}; got {dynamic_threshold} and None")

    def predict(x_t: Array, t: Steps, condition: Mapping[str, Array], x_0_prev: Array | None = None) -> Prediction:
        told_fn = (lambda x_t, t: model_fn(x_t, t, condition)) if condition else model_fn
        return process.predict(told_fn if x_0_prev is None else with_estimate(told_fn, x_0_prev), x_t, t)

    def guided_fn(x_0_prev: Array | None) -> PredictFn:
        predict_fn = functools.partial(predict, x_0_prev=x_0_prev)
        return predict_fn if guide is None else guide(predict_fn)

    def limited(x_0_hat: Float[Array, "B *D"]) -> Float[Array, "B *D"]:
        if dynamic_threshold:
            return _limit_to_quantile(x_0_hat, float(dynamic_threshold), x_0_limit)
        return x_0_hat if x_0_limit is None else jnp.clip(x_0_hat, -x_0_limit, x_0_limit)

    def estimate(value: Float[Array, "B *D"], x_t: Float[Array, "B *D"], t: Steps) -> Float[Array, "B *D"]:
        x_0_hat = limited(process.x_0_hat(value, x_t=x_t, t=t))
        return x_0_hat if project_fn is None else project_fn(x_0_hat, t)

    def denoise_fn(x_t: Float[Array, "B *D"], t: Steps, carry: Float[Array, "B *D"] | None = None) -> Denoised:
        if self_conditioning and carry is None:
            carry = jnp.zeros_like(x_t)
        value, var_values, reference = guided_fn(carry if self_conditioning else None)(x_t, t, condition or {})
        x_0_hat, next_carry = estimate(value, x_t, t), None
        if self_conditioning:
            next_carry = x_0_hat if x_0_prev_limit is None else jnp.clip(x_0_hat, -x_0_prev_limit, x_0_prev_limit)
        return Denoised(
            x_0_hat,
            var_values,
            shift=None if mean_shift_fn is None else mean_shift_fn(x_t, t),
            x_0_reference=None if reference is None else estimate(reference, x_t, t),
            carry=next_carry,
        )

    return denoise_fn


def without_carry(denoise_fn: DenoiseFn) -> DenoiseFn:
    """(x_t, t) -> Denoised of a network with self-conditioning that never sees an estimate: x_0_prev is 0 in each call.

    For sampling loops that must be a fixed function of x_t and t, such as DDIM inversion and the sampling that undoes
    it.
    """
    return lambda x_t, t: denoise_fn(x_t, t).replace(carry=None)


def _limit_to_quantile(x_0: Float[Array, "B *D"], quantile: float, least: float) -> Float[Array, "B *D"]:
    sizes = jnp.abs(x_0).reshape(x_0.shape[0], -1)
    limit = jnp.maximum(jnp.quantile(sizes, quantile, axis=1), least).reshape((-1,) + (1,) * (x_0.ndim - 1))
    return jnp.clip(x_0, -limit, limit) / (limit / least)
