"""Guidance by a reference: the prediction is moved away from another one, before x_0 is limited.

Ho and Salimans 2022 ("Classifier-Free Diffusion Guidance"), equation 6:

    eps = (1 + w) eps(x_t | c) - w eps(x_t | none) = eps(x_t | none) + s (eps(x_t | c) - eps(x_t | none)),  s = 1 + w.

Here, as in most code, the number is s: 1 means no guidance. Because the weights sum to 1, guiding x_0, v or the
previous mean, which are affine in eps, is the same. `classifier_free_guidance` is this. In `autoguidance` (Karras et
al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", equation 4) the reference is the prediction of a
weaker network with the same condition.

Variants, of both: an interval of noise levels, rescaling, projection (APG, `projected_guidance`), and CFG++ (Chung et
al. 2025, "CFG++: Manifold-constrained Classifier Free Guidance"), which takes x_0_hat from the guided prediction and
the eps that leads back to x_s from the reference (algorithm 2).
"""

import math
from collections.abc import Callable, Mapping
from typing import no_type_check

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from ddpm_jax.diffusion.forward_process import signal_and_noise
from ddpm_jax.diffusion.parameterisations import Steps
from ddpm_jax.diffusion.process import Prediction, Process
from ddpm_jax.diffusion.projected_guidance import Projection, projected
from ddpm_jax.runtime.errors import UserError, arg, real_number

Condition = Mapping[str, Array]
PredictFn = Callable[[Float[Array, "B *D"], Steps, Condition], Prediction]
Guide = Callable[[PredictFn], PredictFn]


# A pytree's leaves may be shardings or shapes, so its fields are not checked in tests.
@no_type_check
@flax.struct.dataclass
class Guidance:
    """Settings for a batch, all of them arrays, so that one compiled program serves all values. See `make_guidance`."""

    # The condition of the reference, [B, ...] per entry: the null, or another class. Entries that it lacks are those of
    # the image.
    reference: Condition
    scale: Float[Array, ""]
    lowest_log_snr: Float[Array, ""]
    highest_log_snr: Float[Array, ""]
    rescale: Float[Array, ""]
    projection: Projection | None = None  # of APG
    weak_params: PyTree | None = None  # of the weaker network of autoguidance, for who builds its `weak_predict_fn`
    renoises: bool = flax.struct.field(pytree_node=False, default=False)  # CFG++


MAX_SCALE = 1e6  # beyond this, predictions lose all digits


def make_guidance(
    reference: Mapping[str, np.ndarray | Array],
    *,
    scale: float,
    interval: tuple[float, ...] = (-math.inf, math.inf),
    rescale: float = 0.0,
    projection: Projection | None = None,
    renoises: bool = False,
) -> Guidance:
    """Checked guidance settings.

    Args:
      reference: the condition to guide away from, [B, ...] per entry: the null (`data.condition.null_condition`), or,
        as a "negative prompt", any other condition. Entries that it lacks, such as an image that is to be edited, are
        the same for both.
      scale: s in 0..MAX_SCALE; 1 means no guidance, 0 only the reference.
      interval: (low, high): guidance only where the log SNR = log(alpha-bar / (1 - alpha-bar)) = -2 log sigma is
        between them (Kynkaanniemi et al. 2024); outside, the network is called once instead of twice.
      rescale: phi in 0..1: how far the standard deviation of an image's prediction is changed back to that of its
        conditional prediction (Lin et al. 2024, section 3.4). As there, it is applied to the network's prediction.
      projection: from `make_projection`, for adaptive projected guidance; None: the whole difference.
      renoises: CFG++: x_s has the eps of the reference. Then `scale` is the paper's lambda, in 0..1: 0 gives samples of
        the reference, and 1 is not the absence of guidance. For `ancestral_table` and `ddim_table`.

    Raises:
      UserError: a number out of its range.
    """
    if not isinstance(reference, Mapping):
        raise UserError(f"{arg('reference')} must be arrays by name, such as {{'label': rows}}; got {reference!r:.60}")
    scale, rescale = real_number("guidance_scale", scale), real_number("guidance_rescale", rescale)
    if not 0 <= scale <= MAX_SCALE:
        raise UserError(
            f"{arg('guidance_scale')} must be in 0..{MAX_SCALE:g}; got {scale}: 1 means no guidance, try 1.5 to 3"
        )
    ends = [real_number("guidance_interval", end) for end in interval]
    if len(ends) != 2 or not ends[0] < ends[1]:
        got = ",".join(map(str, interval)) or "nothing"
        raise UserError(f"{arg('guidance_interval')} must be LOW,HIGH of the log SNR, LOW below HIGH; got {got}")
    if renoises and projection is not None:
        name, neutral = ("apg_eta", 1) if projection.eta != 1 else ("apg_norm", 0)
        raise UserError(
            f"{arg(name)} must be {neutral} with {arg('cfg_plus_plus')}, whose scale is in [0, 1]: there is no "
            "difference beyond the conditional prediction to project"
        )
    if renoises and not scale <= 1:
        raise UserError(
            f"{arg('guidance_scale')} must be in [0, 1] with {arg('cfg_plus_plus')}; got {scale}: it is the paper's "
            "lambda, try 0.2 to 0.8"
        )
    if not 0 <= rescale <= 1:
        raise UserError(f"{arg('guidance_rescale')} must be in [0, 1], 0 for none; got {rescale}")
    with np.errstate(over="ignore"):  # an end beyond float32 means unlimited
        numbers = [np.asarray(number, np.float32) for number in (scale, *ends, rescale)]
    return Guidance(dict(reference), *numbers, projection=projection, renoises=renoises)


def classifier_free_guidance(process: Process, guidance: Guidance) -> Guide:
    """predict_fn -> predict_fn that calls the given one with the condition and with the reference of each image, and
    moves the conditional prediction away from the reference.

    The two rows of an image are adjacent in one call, 2i and 2i + 1, so that both are on the image's device.
    A learned variance is that of the conditional prediction.

    Args:
      guidance: from `make_guidance`. The t of the first image decides whether there is guidance; all images have the
        same t.

    Raises:
      UserError: something else in place of one of them.
    """
    _check_guidance(process, guidance)

    def guide(predict_fn: PredictFn) -> PredictFn:
        def both(x_t: Array, t: Steps, condition: Condition) -> tuple[Prediction, Array]:
            of_both = {
                name: interleave(rows, guidance.reference.get(name, rows)) for name, rows in condition.items()
            }
            predicted = predict_fn(interleave(x_t, x_t), interleave(t, t), of_both)
            value, reference = separate(predicted.value)
            var_values = predicted.var_values
            return Prediction(value, None if var_values is None else separate(var_values)[0]), reference

        return _guided(process, guidance, predict_fn, both)

    return guide


def autoguidance(process: Process, guidance: Guidance, weak_predict_fn: PredictFn) -> Guide:
    """predict_fn -> predict_fn that moves the prediction away from that of a weaker network, with the same condition.

    Args:
      guidance: as for `classifier_free_guidance`; its `reference` is not used.
      weak_predict_fn: (x_t, t, condition) -> its prediction, of the same process: of a smaller network, or of one that
        was trained for less time.

    Raises:
      UserError: something else in place of one of them.
    """
    _check_guidance(process, guidance)
    if not callable(weak_predict_fn):
        raise UserError(f"{arg('weak_predict_fn')} must be a function; got {weak_predict_fn!r:.60}")

    def guide(predict_fn: PredictFn) -> PredictFn:
        def both(x_t: Array, t: Steps, condition: Condition) -> tuple[Prediction, Array]:
            return predict_fn(x_t, t, condition), weak_predict_fn(x_t, t, condition).value

        return _guided(process, guidance, predict_fn, both)

    return guide


def _check_guidance(process: Process, guidance: Guidance) -> None:
    if not isinstance(process, Process):
        raise UserError(f"{arg('process')} must be a Process; got {process!r:.60}")
    if not isinstance(guidance, Guidance):
        raise UserError(f"{arg('guidance')} must come from make_guidance; got {guidance!r:.60}")


def _guided(
    process: Process,
    guidance: Guidance,
    predict_fn: PredictFn,
    both: Callable[[Array, Steps, Condition], tuple[Prediction, Array]],
) -> PredictFn:
    """Guides where the log SNR is in the interval; elsewhere it calls `predict_fn` alone.

    Args:
      both: (x_t, t, condition) -> the prediction, and the value of the reference.
    """

    def inside(x_t: Array, t: Steps, condition: Condition) -> Prediction:
        predicted, reference = both(x_t, t, condition)
        value = predicted.value
        if guidance.projection is None:
            guided = reference + guidance.scale * (value - reference)
        else:
            guided = value + _projected_change(process, guidance, value, reference, x_t, t)
        guided = _rescaled(guided, value, guidance.rescale)
        return predicted._replace(value=guided, reference=reference if guidance.renoises else None)

    def outside(x_t: Array, t: Steps, condition: Condition) -> Prediction:
        predicted = predict_fn(x_t, t, condition)
        return predicted._replace(reference=predicted.value) if guidance.renoises else predicted

    def predict(x_t: Float[Array, "B *D"], t: Steps, condition: Condition) -> Prediction:
        signal, noise = signal_and_noise(process.schedule, t[:1], 1)
        log_snr = 2 * (jnp.log(signal[0]) - jnp.log(noise[0]))
        is_inside = (log_snr >= guidance.lowest_log_snr) & (log_snr <= guidance.highest_log_snr)
        return jax.lax.cond(is_inside, inside, outside, x_t, t, condition)

    return predict


def _projected_change(
    process: Process, guidance: Guidance, value: Array, reference: Array, x_t: Array, t: Steps
) -> Float[Array, "B *D"]:
    """What adaptive projected guidance adds to the value; the projection is that of the difference of x_0_hat."""
    x_0_hat, of_reference = (process.x_0_hat(one, x_t=x_t, t=t) for one in (value, reference))
    change = (guidance.scale - 1) * projected(x_0_hat - of_reference, x_0_hat, guidance.projection)
    signal, noise = process.levels(t, ndim=x_t.ndim)
    return process.change_of_value(x_0=change, eps=-(signal / noise) * change, t=t)


def interleave(
    first: Shaped[Array | np.ndarray, "B ..."], second: Shaped[Array | np.ndarray, "B ..."]
) -> Shaped[Array, "2*B ..."]:
    """Rows 2i are from the first, rows 2i + 1 from the second."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def separate(rows: Shaped[Array, "B2 ..."]) -> tuple[Shaped[Array, "B ..."], Shaped[Array, "B ..."]]:
    """The two arrays that `interleave` joined."""
    pairs = rows.reshape(-1, 2, *rows.shape[1:])
    return pairs[:, 0], pairs[:, 1]


def _rescaled(
    guided: Float[Array, "B *D"], conditional: Float[Array, "B *D"], part: Float[Array | np.ndarray, ""]
) -> Float[Array, "B *D"]:
    """part * guided * std(conditional)/std(guided) + (1 - part) * guided, with the deviations per image."""
    axes = tuple(range(1, guided.ndim))
    deviation = jnp.std(guided, axes, keepdims=True)
    # A prediction that is constant over the image cannot be rescaled.
    varies = deviation > 0
    ratio = jnp.where(varies, jnp.std(conditional, axes, keepdims=True) / jnp.where(varies, deviation, 1.0), 1.0)
    return jnp.where(part > 0, guided * (part * ratio + (1 - part)), guided)
