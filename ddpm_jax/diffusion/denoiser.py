"""From a network to what the reverse process needs: x_0_hat, and what a learned variance is made of."""

from collections.abc import Callable
from typing import no_type_check

import flax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ddpm_jax.diffusion.forward_process import at_step, signal_and_noise, x_0_from_eps, x_0_from_mean, x_0_from_v
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.runtime.errors import UserError, arg, check_one_of

PREDICTIONS = ("eps", "x_0", "v", "mean")
VARIANCES = ("fixed_small", "fixed_large", "learned", "learned_range")
LEARNED_VARIANCES = ("learned", "learned_range")

Steps = Int[Array, "B"] | Float[Array, "B"]
ModelFn = Callable[[Float[Array, "B *D C"], Steps], Float[Array, "B *D C_out"]]


# A pytree's leaves may be shardings, shapes or scalars of a scan, so its fields are not checked in tests.
@no_type_check
@flax.struct.dataclass
class Denoised:
    """What one call of a denoiser tells about p(x_(t-1) | x_t)."""

    x_0_hat: Float[Array, "B *D"]
    # The network's second half where the variance is learned: `p_log_var` says what it means.
    var_values: Float[Array, "B *D"] | None = None


DenoiseFn = Callable[[Float[Array, "B *D"], Steps], Denoised]
# (params, labels of the batch or None) -> its denoiser: for what runs a network on all devices.
DenoiserOf = Callable[[PyTree, Int[Array, "B"] | None], DenoiseFn]


def p_log_var(
    schedule: Schedule,
    *,
    variance: str,
    t: Int[Array, "B"],
    ndim: int,
    var_values: Float[Array, "B *D"] | None = None,
) -> Float[Array, "B ..."]:
    """log sigma_t^2 of p(x_(t-1) | x_t), [B, 1, ..., 1] if fixed (Ho et al. 2020, section 3.2), else [B, *D].

    Args:
      variance: "fixed_small" (beta-tilde_t) or "fixed_large" (beta_t), both repaired at t=0; "learned":
        `var_values` is the log variance itself; "learned_range": with u = (var_values + 1)/2,
        u log beta_t + (1 - u) log beta-tilde_t, beta-tilde repaired at t=0 (Nichol and Dhariwal 2021,
        equation 15). u is not limited to [0, 1].
      var_values: of `Denoised`, for the learned variances.

    Raises:
      UserError: another name.
    """
    check_one_of("variance", variance, VARIANCES)
    if variance == "learned":
        return var_values
    if variance == "learned_range":
        shift, scale = learned_range(schedule.log_var_fixed_small, schedule.log_betas)
        return at_step(shift, t, ndim) + at_step(scale, t, ndim) * var_values
    table = schedule.log_var_fixed_small if variance == "fixed_small" else schedule.log_var_fixed_large
    return at_step(table, t, ndim)


def learned_range(log_small: Array | np.ndarray, log_large: Array | np.ndarray) -> tuple:
    """(shift, scale) with shift + scale * v = log_small at v = -1 and log_large at v = 1."""
    return (log_large + log_small) / 2, (log_large - log_small) / 2


def split_output(
    output: Float[Array, "B *D C_out"], *, variance: str, num_channels: int
) -> tuple[Float[Array, "B *D C"], Float[Array, "B *D C"] | None]:
    """(prediction, var_values or None): with a learned variance the last axis holds both, the prediction first.

    Raises:
      ValueError: the network has another number of output channels.
    """
    wanted = num_channels * (2 if variance in LEARNED_VARIANCES else 1)
    if output.shape[-1] != wanted:
        raise ValueError(
            f"with {num_channels} channels and variance={variance!r} the network must give {wanted} channels; "
            f"got {output.shape[-1]}"
        )
    if variance in LEARNED_VARIANCES:
        return output[..., :num_channels], output[..., num_channels:]
    return output, None


def make_denoiser(
    schedule: Schedule,
    model_fn: ModelFn,
    *,
    prediction: str = "eps",
    variance: str = "fixed_large",
    clip_x_0: bool = True,
    dynamic_threshold: float = 0.0,
) -> DenoiseFn:
    """denoise_fn(x_t, t) -> Denoised, from a network that predicts eps, x_0, v or the previous mean.

    Args:
      model_fn: (x_t [B, *D], t int32 [B]) -> the prediction [B, *D]; with a learned variance twice as many
        channels. t is float32 where a sampler's grid has fractional steps.
      prediction: "eps", "x_0", "v" or "mean" (mu-tilde, the mean of x_(t-1); whole steps alone).
      variance: one of `VARIANCES`; the learned ones alone matter here.
      clip_x_0: limit x_0_hat to [-1, 1], as Ho et al. do in sampling and in the likelihood, never in
        training. Differs: with "mean" the mean follows from the clipped x_0_hat (the original keeps the
        network's own).
      dynamic_threshold: a quantile in (0, 1], such as 0.995, or 0 for none: in place of the clip, x_0_hat of an
        image is limited to [-s, s] and divided by s, where s is that quantile of its |x_0_hat|, at least 1
        (Saharia et al. 2022, section 2.3).

    Raises:
      UserError: an unknown prediction or variance; a quantile outside [0, 1]; "eps" where alpha-bar falls to 0,
        as under "jsd".

    Example:
      >>> from ddpm_jax.diffusion.schedules import make_schedule
      >>> denoise_fn = make_denoiser(make_schedule("linear"), lambda x_t, t: 0 * x_t)
      >>> denoise_fn(jnp.full((1, 2), 0.5), jnp.array([0])).x_0_hat
      Array([[0.500025, 0.500025]], dtype=float32)
    """
    check_one_of("prediction", prediction, PREDICTIONS)
    check_one_of("variance", variance, VARIANCES)
    check_prediction(schedule, prediction)
    if not 0 <= dynamic_threshold <= 1:
        raise UserError(f"{arg('dynamic_threshold')} must be in [0, 1], 0 for none; got {dynamic_threshold}")

    def denoise_fn(x_t: Float[Array, "B *D"], t: Steps) -> Denoised:
        output, var_values = split_output(model_fn(x_t, t), variance=variance, num_channels=x_t.shape[-1])
        x_0_hat = _x_0_hat(schedule, prediction, x_t, t, output)
        if dynamic_threshold:
            x_0_hat = _limit_to_quantile(x_0_hat, dynamic_threshold)
        elif clip_x_0:
            x_0_hat = jnp.clip(x_0_hat, -1.0, 1.0)
        return Denoised(x_0_hat, var_values)

    return denoise_fn


def _limit_to_quantile(x_0: Float[Array, "B *D"], quantile: float) -> Float[Array, "B *D"]:
    sizes = jnp.abs(x_0).reshape(x_0.shape[0], -1)
    limit = jnp.maximum(jnp.quantile(sizes, quantile, axis=1), 1.0).reshape((-1,) + (1,) * (x_0.ndim - 1))
    return jnp.clip(x_0, -limit, limit) / limit


def check_prediction(schedule: Schedule, prediction: str) -> None:
    """Raises UserError where the prediction does not determine x_0 at every step of the schedule."""
    # 1/sqrt(alpha-bar) of float32 would be inf, and x_0_hat = inf - inf.
    if prediction == "eps" and schedule.host_alphas_bar[-1] < float(jnp.finfo(jnp.float32).max) ** -2:
        raise UserError(
            f"{arg('prediction')}='eps' says nothing about x_0 where alpha-bar falls to 0, as at this "
            "schedule's last step: predict 'x_0' or 'v', or take another schedule"
        )


def _x_0_hat(
    schedule: Schedule, prediction: str, x_t: Float[Array, "B *D"], t: Steps, output: Float[Array, "B *D"]
) -> Float[Array, "B *D"]:
    if prediction == "x_0":
        return output
    whole = jnp.issubdtype(t.dtype, jnp.integer)
    if prediction == "mean":
        if not whole:
            raise ValueError("the previous mean belongs to a whole step t; got fractional steps")
        return x_0_from_mean(schedule, x_t=x_t, t=t, mean=output)
    if whole:
        if prediction == "eps":
            return x_0_from_eps(schedule, x_t=x_t, t=t, eps=output)
        return x_0_from_v(schedule, x_t=x_t, t=t, v=output)
    signal, noise = signal_and_noise(schedule, t, x_t.ndim)
    return (x_t - noise * output) / signal if prediction == "eps" else signal * x_t - noise * output
