"""The forward process q, its posterior, and the conversions between what a network may predict.

Data has any rank: x is [B, *D] and t is int32 [B]. Notation and equations: Ho et al. 2020
("Denoising Diffusion Probabilistic Models"); v: Salimans and Ho 2022.
"""

from collections.abc import Callable
from typing import no_type_check

import flax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.errors import UserError, check_one_of
from ddpm_jax.schedules import Schedule

PREDICTIONS = ("eps", "x_0", "v")
VARIANCES = ("fixed_small", "fixed_large")

ModelFn = Callable[[Float[Array, "B *D"], Int[Array, "B"]], Float[Array, "B *D"]]


# A pytree's leaves may be shardings, shapes or scalars of a scan, so its fields are not checked in tests.
@no_type_check
@flax.struct.dataclass
class Denoised:
    """What one call of a denoiser tells about p(x_0 | x_t); a learned variance will be a second field."""

    x_0_hat: Float[Array, "B *D"]


DenoiseFn = Callable[[Float[Array, "B *D"], Int[Array, "B"]], Denoised]


def at_step(table: Float[Array, "T"], t: Int[Array, "B"], ndim: int) -> Float[Array, "B ..."]:
    """table[t], shaped [B, 1, ..., 1] with `ndim` axes; NaN for t >= T."""
    # Not table[t]: that clamps an index past the end without a word.
    return jnp.take(table, t, mode="fill").reshape((-1,) + (1,) * (ndim - 1))


def q_sample(
    schedule: Schedule, *, x_0: Float[Array, "B *D"], t: Int[Array, "B"], eps: Float[Array, "B *D"]
) -> Float[Array, "B *D"]:
    """x_t ~ q(x_t | x_0) = N(sqrt(alpha-bar_t) x_0, (1 - alpha-bar_t) I), with the noise `eps` given.

    Ho et al. 2020, equation 4 (reparameterised as above equation 9).
    """
    mean = at_step(schedule.sqrt_alphas_bar, t, x_0.ndim) * x_0
    return mean + at_step(schedule.sqrt_one_minus_alphas_bar, t, x_0.ndim) * eps


def q_posterior_mean(
    schedule: Schedule, *, x_0: Float[Array, "B *D"], x_t: Float[Array, "B *D"], t: Int[Array, "B"]
) -> Float[Array, "B *D"]:
    """mu-tilde(x_t, x_0), the mean of q(x_(t-1) | x_t, x_0) (Ho et al. 2020, equation 7).

    Its variance is `schedule.posterior_var[t]`.
    """
    return (
        at_step(schedule.posterior_mean_coef_x_0, t, x_0.ndim) * x_0
        + at_step(schedule.posterior_mean_coef_x_t, t, x_0.ndim) * x_t
    )


def p_log_var(schedule: Schedule, *, variance: str, t: Int[Array, "B"], ndim: int) -> Float[Array, "B ..."]:
    """log sigma_t^2 of p(x_(t-1) | x_t), [B, 1, ..., 1] (Ho et al. 2020, section 3.2).

    Args:
      variance: "fixed_small" (beta-tilde_t) or "fixed_large" (beta_t); both are repaired at t=0.

    Raises:
      UserError: another name.
    """
    check_one_of("diffusion.variance", variance, VARIANCES)
    table = schedule.log_var_fixed_small if variance == "fixed_small" else schedule.log_var_fixed_large
    return at_step(table, t, ndim)


def x_0_from_eps(
    schedule: Schedule, *, x_t: Float[Array, "B *D"], t: Int[Array, "B"], eps: Float[Array, "B *D"]
) -> Float[Array, "B *D"]:
    """x_0 = (x_t - sqrt(1 - alpha-bar_t) eps) / sqrt(alpha-bar_t) (Ho et al. 2020, equation 4 inverted)."""
    return (
        at_step(schedule.sqrt_recip_alphas_bar, t, x_t.ndim) * x_t
        - at_step(schedule.sqrt_recipm1_alphas_bar, t, x_t.ndim) * eps
    )


def eps_from_x_0(
    schedule: Schedule, *, x_t: Float[Array, "B *D"], t: Int[Array, "B"], x_0: Float[Array, "B *D"]
) -> Float[Array, "B *D"]:
    """eps = (x_t - sqrt(alpha-bar_t) x_0) / sqrt(1 - alpha-bar_t) (Ho et al. 2020, equation 4 inverted)."""
    residual = x_t - at_step(schedule.sqrt_alphas_bar, t, x_t.ndim) * x_0
    return residual / at_step(schedule.sqrt_one_minus_alphas_bar, t, x_t.ndim)


def v_from_x_0(
    schedule: Schedule, *, x_0: Float[Array, "B *D"], t: Int[Array, "B"], eps: Float[Array, "B *D"]
) -> Float[Array, "B *D"]:
    """v = sqrt(alpha-bar_t) eps - sqrt(1 - alpha-bar_t) x_0 (Salimans and Ho 2022, section 4)."""
    return (
        at_step(schedule.sqrt_alphas_bar, t, x_0.ndim) * eps
        - at_step(schedule.sqrt_one_minus_alphas_bar, t, x_0.ndim) * x_0
    )


def x_0_from_v(
    schedule: Schedule, *, x_t: Float[Array, "B *D"], t: Int[Array, "B"], v: Float[Array, "B *D"]
) -> Float[Array, "B *D"]:
    """x_0 = sqrt(alpha-bar_t) x_t - sqrt(1 - alpha-bar_t) v (Salimans and Ho 2022, section 4)."""
    return (
        at_step(schedule.sqrt_alphas_bar, t, x_t.ndim) * x_t
        - at_step(schedule.sqrt_one_minus_alphas_bar, t, x_t.ndim) * v
    )


def make_denoiser(
    schedule: Schedule, model_fn: ModelFn, *, prediction: str = "eps", clip_x_0: bool = True
) -> DenoiseFn:
    """denoise_fn(x_t, t) -> x_0_hat, from a network that predicts eps, x_0 or v.

    Args:
      model_fn: (x_t [B, *D], t int32 [B]) -> the prediction [B, *D].
      prediction: "eps", "x_0" or "v".
      clip_x_0: limit x_0_hat to [-1, 1], as Ho et al. do in sampling and in the likelihood, never in
        training.

    Raises:
      UserError: an unknown prediction; "eps" where alpha-bar falls to 0, as under "jsd".

    Example:
      >>> from ddpm_jax.schedules import make_schedule
      >>> denoise_fn = make_denoiser(make_schedule("linear"), lambda x_t, t: 0 * x_t)
      >>> denoise_fn(jnp.full((1, 2), 0.5), jnp.array([0])).x_0_hat
      Array([[0.500025, 0.500025]], dtype=float32)
    """
    check_one_of("diffusion.prediction", prediction, PREDICTIONS)
    # 1/sqrt(alpha-bar) of float32 would be inf, and x_0_hat = inf - inf.
    if prediction == "eps" and schedule.host_alphas_bar[-1] < float(jnp.finfo(jnp.float32).max) ** -2:
        raise UserError(
            "diffusion.prediction='eps' says nothing about x_0 where alpha-bar falls to 0, as at this "
            "schedule's last step: predict 'x_0' or 'v', or take another schedule"
        )

    def denoise_fn(x_t: Float[Array, "B *D"], t: Int[Array, "B"]) -> Denoised:
        output = model_fn(x_t, t)
        if prediction == "eps":
            x_0_hat = x_0_from_eps(schedule, x_t=x_t, t=t, eps=output)
        elif prediction == "v":
            x_0_hat = x_0_from_v(schedule, x_t=x_t, t=t, v=output)
        else:
            x_0_hat = output
        return Denoised(x_0_hat=jnp.clip(x_0_hat, -1.0, 1.0) if clip_x_0 else x_0_hat)

    return denoise_fn
