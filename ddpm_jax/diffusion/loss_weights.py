"""Weights of L_simple by step: min-SNR-gamma and P2, for whatever the network predicts."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.diffusion.process import Process
from ddpm_jax.runtime.errors import UserError, arg, check_one_of

WEIGHTINGS = ("none", "min_snr", "p2")


def loss_weights(
    process: Process,
    weighting: str,
    *,
    min_snr_gamma: float = 5.0,
    p2_gamma: float = 1.0,
    p2_k: float = 1.0,
) -> Float[Array, "T"] | None:
    """The factor on the squared error of the prediction at every step, or None for "none".

    "min_snr": min(SNR, gamma) on the error of x_0, SNR_t = alpha-bar_t / (1 - alpha-bar_t) (Hang et al. 2023,
    "min_snr": min(SNR, gamma) on the error of x_0, SNR_t = alpha-bar_t / (1 - alpha-bar_t) (Hang et al. 2023,
    equation 8). "p2": 1/(k + SNR)^gamma on the error of eps (Choi et al. 2022, equation 8). Both are converted
    to the actual prediction: at a given x_t, an error e of x_0 is an error e sqrt(SNR) of eps, e sqrt(SNR + 1)
    of v, and e times its coefficient of the previous mean (Ho et al. 2020, eq. 7).

    Args:
      min_snr_gamma, p2_k: > 0.
      p2_gamma: >= 0; 0 means no weighting.

    Raises:
      UserError: an unknown name, a number out of its range, or an infinite weight at some step.
    """
    check_one_of("weighting", weighting, WEIGHTINGS)
    for name, value, least in (("min_snr_gamma", min_snr_gamma, "above 0"), ("p2_k", p2_k, "above 0")):
        if not value > 0:
            raise UserError(f"{arg(name)} must be {least}; got {value}")
    if not p2_gamma >= 0:
        raise UserError(f"{arg('p2_gamma')} must be at least 0; got {p2_gamma}")
    if weighting == "none":
        return None
    schedule = process.schedule
    snr = schedule.host_alphas_bar / schedule.host_one_minus_alphas_bar
    if weighting == "min_snr":
        on_x_0 = np.minimum(snr, min_snr_gamma)
    else:
        on_x_0 = snr / (p2_k + snr) ** p2_gamma
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = on_x_0 / process.parameterisation.error_of_x_0(schedule)
    if not np.all(np.isfinite(weights)):
        raise UserError(
            f"{arg('weighting')}={weighting!r} with {arg('prediction')}={process.parameterisation.name!r} is infinite "
            "where alpha-bar falls to 0: predict 'x_0' or 'v', or take another schedule"
        )
    return jnp.asarray(weights, jnp.float32)
