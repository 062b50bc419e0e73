"""Training losses, each [B]: L_simple (L2, L1, Huber) and the terms of the variational bound."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.diffusion import PREDICTIONS, VARIANCES, ModelFn, make_denoiser, q_sample, v_from_x_0
from ddpm_jax.errors import UserError, check_one_of
from ddpm_jax.likelihood import vlb_term
from ddpm_jax.schedules import Schedule

LOSSES = ("simple", "l1", "huber", "vlb")

LossFn = Callable[..., Float[Array, "B"]]


def _mean_over_dims(values: Float[Array, "B *D"]) -> Float[Array, "B"]:
    return jnp.mean(values.reshape(values.shape[0], -1), axis=1)


def _huber(error: Float[Array, "B *D"], delta: float) -> Float[Array, "B *D"]:
    """error^2 inside +-delta, 2 delta |error| - delta^2 outside: L2 for small errors, L1 for large."""
    size = jnp.abs(error)
    return jnp.where(size <= delta, error**2, 2 * delta * size - delta**2)


def make_loss_fn(
    schedule: Schedule,
    *,
    loss: str = "simple",
    prediction: str = "eps",
    variance: str = "fixed_large",
    huber_delta: float = 1.0,
) -> LossFn:
    """loss_fn(model_fn, x_0=, t=, eps=) -> [B].

    "simple": mean over dimensions of (target - output)^2 (Ho et al. 2020, equation 14), where the target is
    what the network predicts. "l1" and "huber": the same with |.| and Huber's function. "vlb": the term L_t
    of the bound in bits/dim (equation 5), with the discretised-Gaussian decoder at t=0; T times its mean over
    uniform t, plus the prior term, is the bound. Nothing is clipped in training.

    Args:
      loss: one of `LOSSES`.
      prediction: what the network predicts: "eps", "x_0" or "v".
      variance: of p for "vlb": "fixed_small" or "fixed_large".
      huber_delta: > 0, where "huber" turns from the square to the absolute value.

    Raises:
      UserError: an unknown loss, prediction or variance; huber_delta not above 0.

    Example:
      >>> from ddpm_jax.schedules import make_schedule
      >>> loss_fn = make_loss_fn(make_schedule("linear"))
      >>> x_0, eps, t = jnp.zeros((2, 3)), jnp.ones((2, 3)), jnp.array([0, 999])
      >>> loss_fn(lambda x_t, t: 0 * x_t, x_0=x_0, t=t, eps=eps)
      Array([1., 1.], dtype=float32)
    """
    check_one_of("diffusion.loss", loss, LOSSES)
    check_one_of("diffusion.prediction", prediction, PREDICTIONS)
    check_one_of("diffusion.variance", variance, VARIANCES)
    if not huber_delta > 0:
        raise UserError(f"diffusion.huber_delta must be above 0; got {huber_delta}")

    def regression(
        model_fn: ModelFn, *, x_0: Float[Array, "B *D"], t: Int[Array, "B"], eps: Float[Array, "B *D"]
    ) -> Float[Array, "B"]:
        target = {"eps": eps, "x_0": x_0}.get(prediction)
        if target is None:
            target = v_from_x_0(schedule, x_0=x_0, t=t, eps=eps)
        error = target - model_fn(q_sample(schedule, x_0=x_0, t=t, eps=eps), t)
        if loss == "l1":
            return _mean_over_dims(jnp.abs(error))
        return _mean_over_dims(_huber(error, huber_delta) if loss == "huber" else error**2)

    def bound(
        model_fn: ModelFn, *, x_0: Float[Array, "B *D"], t: Int[Array, "B"], eps: Float[Array, "B *D"]
    ) -> Float[Array, "B"]:
        denoise_fn = make_denoiser(schedule, model_fn, prediction=prediction, clip_x_0=False)
        x_t = q_sample(schedule, x_0=x_0, t=t, eps=eps)
        return vlb_term(schedule, denoise_fn, x_0=x_0, x_t=x_t, t=t, variance=variance)[0]

    return bound if loss == "vlb" else regression
