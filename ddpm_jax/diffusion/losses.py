"""Training losses, [B] each: L_simple (L2, L1, Huber), the terms of the variational bound, and L_hybrid."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.diffusion.denoiser import Denoised
from ddpm_jax.diffusion.forward_process import at_step, q_sample
from ddpm_jax.diffusion.process import ModelFn, Prediction, Process
from ddpm_jax.diffusion.variational_bound import LogLikelihood, discretised_gaussian_log_likelihood, vlb_term
from ddpm_jax.runtime.errors import UserError, arg, check_one_of

LOSSES = ("simple", "l1", "huber", "vlb", "rescaled_vlb", "hybrid")
BOUNDS = ("vlb", "rescaled_vlb")


@dataclass(frozen=True)
class LossFn:
    """loss_fn(model_fn, x_0=, t=, eps=, region=None) -> {"loss": [B], and its parts by name}; see `make_loss_fn`."""

    process: Process
    losses: Callable[..., dict[str, Float[Array, "B"]]]

    def __call__(
        self,
        model_fn: ModelFn,
        *,
        x_0: Float[Array, "B *D"],
        t: Int[Array, "B"],
        eps: Float[Array, "B *D"],
        region: Float[Array, "B *R"] | None = None,
    ) -> dict[str, Float[Array, "B"]]:
        """The losses of the images at their steps, for the given noise.

        Args:
          region: 1 where the network's error counts and 0 elsewhere, broadcast over x_0, such as [B, H, W, 1]: the
            means over dimensions are over this region. None: everywhere. Only for "simple", "l1" and "huber".
        """
        given = {} if region is None else {"region": region}
        return self.losses(model_fn, x_0=x_0, t=t, eps=eps, **given)


def _mean_over_dims(values: Float[Array, "B *D"], region: Float[Array, "B *R"] | None = None) -> Float[Array, "B"]:
    if region is None:
        return jnp.mean(values.reshape(values.shape[0], -1), axis=1)
    axes = tuple(range(1, values.ndim))
    # An image without a region has the loss 0.
    count = jnp.maximum(jnp.sum(jnp.broadcast_to(region, values.shape), axis=axes), 1.0)
    return jnp.sum(values * region, axis=axes) / count


def _huber(error: Float[Array, "B *D"], delta: float) -> Float[Array, "B *D"]:
    """error^2 inside +-delta, 2 delta |error| - delta^2 outside: L2 for small errors, L1 for large."""
    size = jnp.abs(error)
    return jnp.where(size <= delta, error**2, 2 * delta * size - delta**2)


def make_loss_fn(
    process: Process,
    *,
    loss: str = "simple",
    huber_delta: float = 1.0,
    vlb_lambda: float = 0.001,
    weights: Float[Array, "T"] | None = None,
    log_likelihood: LogLikelihood = discretised_gaussian_log_likelihood,
) -> LossFn:
    """loss_fn(model_fn, x_0=, t=, eps=, region=None) -> {"loss": [B], and its parts by name}.

    "simple": mean over dimensions of (target - output)^2 (Ho et al. 2020, equation 14), where the target is
    what the network predicts. "l1" and "huber": the same with |.| and Huber's function. "vlb": the term L_t
    of the bound in bits/dim (equation 5), with the discretised-Gaussian decoder at t=0. "rescaled_vlb":
    T L_t, whose mean over uniform t, plus the prior term, is the bound. "hybrid": simple + vlb_lambda * vlb
    (Nichol and Dhariwal 2021, equation 16), where the part "vlb" is T L_t and its gradient reaches the
    variance only: its mean is frozen. Nothing is clipped in training.

    Args:
      loss: one of `LOSSES`.
      huber_delta: > 0, where "huber" changes from the square to the absolute value.
      vlb_lambda: > 0, lambda of "hybrid", the factor on the bound in bits/dim summed over t. The papers' code with
        "rescaled" losses uses 0.001, without them 1/T.
      weights: [T], factors on the part "simple", "l1" or "huber" at step t; see `loss_weights`.
      log_likelihood: of the last step of the bound, at t=0; `gaussian_log_likelihood` if x_0 is continuous.

    Raises:
      UserError: an unknown loss; huber_delta or vlb_lambda is not above 0; weights for a
        bound; a learned variance that no part of the loss trains, or "hybrid" without a learned variance.

    Example:
      >>> from ddpm_jax.diffusion.schedules import make_schedule
      >>> loss_fn = make_loss_fn(Process(make_schedule("linear")))
      >>> x_0, eps, t = jnp.zeros((2, 3)), jnp.ones((2, 3)), jnp.array([0, 999])
      >>> loss_fn(lambda x_t, t: 0 * x_t, x_0=x_0, t=t, eps=eps)["loss"]
      Array([1., 1.], dtype=float32)
    """
    _check_loss(loss, process, {"huber_delta": huber_delta, "vlb_lambda": vlb_lambda}, weights)

    def simple_of(prediction: Prediction, region: Array | None, **at: Array) -> Float[Array, "B"]:
        error = process.target(**at) - prediction.value
        values = {"l1": jnp.abs, "huber": lambda error: _huber(error, huber_delta)}.get(loss, jnp.square)(error)
        losses = _mean_over_dims(values, region)
        return losses if weights is None else at_step(weights, at["t"], 1) * losses

    def bound_of(prediction: Prediction, *, x_0: Array, x_t: Array, t: Array) -> Float[Array, "B"]:
        denoised = Denoised(process.x_0_hat(prediction.value, x_t=x_t, t=t), prediction.var_values)
        term, _ = vlb_term(process, lambda *_: denoised, x_0=x_0, x_t=x_t, t=t, log_likelihood=log_likelihood)
        return term if loss == "vlb" else process.num_steps * term

    def losses(
        model_fn: ModelFn,
        *,
        x_0: Float[Array, "B *D"],
        t: Int[Array, "B"],
        eps: Float[Array, "B *D"],
        region: Float[Array, "B *R"] | None = None,
    ) -> dict[str, Float[Array, "B"]]:
        if region is not None and loss in (*BOUNDS, "hybrid"):
            raise UserError(f"{arg('loss')}={loss!r} is of whole images; for a region take 'simple', 'l1' or 'huber'")
        x_t = q_sample(process.schedule, x_0=x_0, t=t, eps=eps)
        prediction = process.predict(model_fn, x_t, t)
        if loss in BOUNDS:
            return {"loss": bound_of(prediction, x_0=x_0, x_t=x_t, t=t)}
        simple = simple_of(prediction, region, x_0=x_0, x_t=x_t, t=t, eps=eps)
        if loss != "hybrid":
            return {"loss": simple}
        frozen = prediction._replace(value=jax.lax.stop_gradient(prediction.value))
        term = bound_of(frozen, x_0=x_0, x_t=x_t, t=t)
        return {"loss": simple + vlb_lambda * term, "simple": simple, "vlb": term}

    return LossFn(process, losses)


def _check_loss(
    loss: str, process: Process, positive: dict[str, float], weights: Float[Array, "T"] | None
) -> None:
    """Raises UserError for arguments of `make_loss_fn` that are unknown or do not fit together."""
    check_one_of("loss", loss, LOSSES)
    for name, value in positive.items():
        if not value > 0:
            raise UserError(f"{arg(name)} must be above 0; got {value}")
    if loss in BOUNDS and weights is not None:
        raise UserError(f"{arg('weights')} must be None with {arg('loss')}={loss!r}, whose weights are given")
    variance = process.variance
    if process.learns_variance and loss not in (*BOUNDS, "hybrid"):
        raise UserError(
            f"{arg('variance')}={variance!r} is not trained by {arg('loss')}={loss!r}: "
            "take 'hybrid', 'vlb' or 'rescaled_vlb', or a fixed variance"
        )
    if loss == "hybrid" and not process.learns_variance:
        raise UserError(
            f"{arg('loss')}='hybrid' trains a learned variance; got {arg('variance')}={variance!r}: "
            f"take 'learned_range', or {arg('loss')}='simple'"
        )
