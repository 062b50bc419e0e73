"""Guidance by the gradient of a log-probability: of a classifier of noised images, or of any differentiable function.

The score of p(x_t) p(y | x_t)^scale, normalised, is grad log p(x_t) + scale grad log p(y | x_t). There are two rules
(Dhariwal and Nichol 2021, section 4):

- eps - sqrt(1 - alpha-bar_t) scale grad log p(y | x_t), in place of eps, for DDIM and every other sampler (algorithm 2,
  equation 14): `gradient_guidance`.
- the mean of p(x_(t-1) | x_t) + its variance scale grad log p(y | x_t), for ancestral sampling (algorithm 1, equation
  10): `gradient_shift`, as the `mean_shift_fn` of a denoiser.

They differ by terms that vanish as the steps become small.
"""

from collections.abc import Callable
from typing import no_type_check

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ddpm_jax.diffusion.denoiser import ShiftFn
from ddpm_jax.diffusion.guidance import Condition, Guide, PredictFn
from ddpm_jax.diffusion.parameterisations import Steps
from ddpm_jax.diffusion.process import Prediction, Process


# A pytree's leaves may be shardings or shapes, so its fields are not checked in tests.
@no_type_check
@flax.struct.dataclass
class ClassifierGuidance:
    """The arrays of a classifier's guidance for a batch, so that one compiled program serves all values."""

    params: PyTree  # of the classifier
    label: Int[Array, "B"]
    scale: Float[Array, ""]


LogProbFn = Callable[[Float[Array, "B *D"], Steps], Float[Array, "B"]]
Scale = float | Float[Array, ""] | Float[Array, "B"]


def class_log_prob(
    logits_fn: Callable[[Float[Array, "B *D"], Steps], Float[Array, "B C"]], label: Int[Array, "B"]
) -> LogProbFn:
    """(x_t, t) -> log p(label | x_t) of a classifier, [B]; NaN for a label out of range."""

    def log_prob(x_t: Float[Array, "B *D"], t: Steps) -> Float[Array, "B"]:
        log_probs = jax.nn.log_softmax(logits_fn(x_t, t).astype(jnp.float32))
        known = (label >= 0) & (label < log_probs.shape[1])
        of_label = jnp.take_along_axis(log_probs, jnp.where(known, label, 0)[:, None], axis=1)[:, 0]
        return of_label * jnp.where(known, 1.0, jnp.nan)  # a product, so that the gradient is NaN, too

    return log_prob


def gradient_shift(process: Process, log_prob_fn: LogProbFn, *, scale: Scale = 1.0) -> ShiftFn:
    """(x_t, t) -> scale grad log p(y | x_t), [B, *D], for the `mean_shift_fn` of `denoiser.make_denoiser`.

    Args:
      log_prob_fn: (x_t, t) -> log p(y | x_t), nats [B], which may lack a constant. Image i must not depend on others.
        Called with the t of the network, 0..T-1 of the process that it was trained for.
      scale: 0: no guidance; one number, or one per image.
    """

    def shift(x_t: Float[Array, "B *D"], t: Steps) -> Float[Array, "B *D"]:
        network_t = process.network_t(t)
        # The gradient of the sum is that of each image, because images do not depend on each other.
        gradient = jax.grad(lambda x_t: jnp.sum(log_prob_fn(x_t, network_t)))(x_t)
        # Where alpha-bar is 0, x_t is noise alone: no function of it says anything of y.
        signal, _ = process.levels(t, ndim=x_t.ndim)
        return jnp.where(signal > 0, _per_image(scale, x_t) * gradient, 0.0)

    return shift


def gradient_guidance(process: Process, log_prob_fn: LogProbFn, *, scale: Scale = 1.0) -> Guide:
    """predict_fn -> predict_fn whose eps is eps - sqrt(1 - alpha-bar_t) scale grad log p(y | x_t), for any sampler.

    The prediction is changed as this eps changes it; the variance values stay. Apply it after classifier-free guidance:
    `lambda predict_fn: gradient_guidance(...)(classifier_free_guidance(...)(predict_fn))`.

    Args: as for `gradient_shift`.
    """
    shift = gradient_shift(process, log_prob_fn, scale=scale)

    def guide(predict_fn: PredictFn) -> PredictFn:
        def predict(x_t: Float[Array, "B *D"], t: Steps, condition: Condition) -> Prediction:
            return _shifted(process, predict_fn(x_t, t, condition), shift(x_t, t), t)

        return predict

    return guide


def x_0_hat_guidance(
    process: Process, log_prob_of_x_0_fn: Callable[[Float[Array, "B *D"]], Float[Array, "B"]], *, scale: Scale = 1.0
) -> Guide:
    """Like `gradient_guidance`, with grad log p(y | x_0_hat(x_t)), through the network.

    The function need not know noised images: p(y | x_t) is approximated by p(y | x_0_hat) (Chung et al. 2023,
    "Diffusion posterior sampling", equation 10). A call costs the network's forward and backward pass.

    Args:
      log_prob_of_x_0_fn: x_0 -> log p(y | x_0), nats [B]. It gets x_0_hat without clipping.
      scale: as for `gradient_shift`. Differs: the paper divides it by the norm of the residual.
    """

    def guide(predict_fn: PredictFn) -> PredictFn:
        def predict(x_t: Float[Array, "B *D"], t: Steps, condition: Condition) -> Prediction:
            def log_prob(x_t: Array) -> tuple[Array, Prediction]:
                predicted = predict_fn(x_t, t, condition)
                x_0_hat = process.x_0_hat(predicted.value, x_t=x_t, t=t)
                return jnp.sum(log_prob_of_x_0_fn(x_0_hat)), predicted

            gradient, predicted = jax.grad(log_prob, has_aux=True)(x_t)
            return _shifted(process, predicted, _per_image(scale, x_t) * gradient, t)

        return predict

    return guide


def _shifted(process: Process, predicted: Prediction, shift: Float[Array, "B *D"], t: Steps) -> Prediction:
    """The prediction whose eps is eps - sqrt(1 - alpha-bar_t) shift; with CFG++ the reference too, so that both
    x_0_hat and the eps that leads back to x_s are shifted."""
    change = _change_of_value(process, shift, t)
    reference = None if predicted.reference is None else predicted.reference + change
    return predicted._replace(value=predicted.value + change, reference=reference)


def _change_of_value(process: Process, shift: Float[Array, "B *D"], t: Steps) -> Float[Array, "B *D"]:
    """By how much the prediction changes if eps changes by -sqrt(1 - alpha-bar_t) shift at the same x_t."""
    signal, noise = process.levels(t, ndim=shift.ndim)
    says = signal > 0  # else x_t is noise alone, and nothing changes
    shift = jnp.where(says, shift, 0.0)
    x_0 = noise**2 / jnp.where(says, signal, 1.0) * shift
    return process.change_of_value(x_0=x_0, eps=-noise * shift, t=t)


def _per_image(scale: Scale, x: Float[Array, "B *D"]) -> Float[Array, "..."]:
    scale = jnp.asarray(scale, x.dtype)
    return scale if scale.ndim == 0 else scale.reshape(-1, *(1,) * (x.ndim - 1))
