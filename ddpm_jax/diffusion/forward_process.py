"""The forward process q, its posterior, and the conversions between what a network may predict.

Data may have any rank: x is [B, *D] and t is int32 [B]. Notation and equations: Ho et al. 2020
("Denoising Diffusion Probabilistic Models"); v: Salimans and Ho 2022.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

from ddpm_jax.diffusion.schedules import Schedule

ROUNDING = 1e-2  # of a fractional t, in steps: float32 keeps T = 100,000 to 0.008


def at_step(table: Float[Array, "T"], t: Int[Array, "B"], ndim: int) -> Float[Array, "B ..."]:
    """table[t], shaped [B, 1, ..., 1] with `ndim` axes; NaN for t outside 0..T-1."""
    # Not table[t], which silently clamps an index past the end.
    return jnp.take(table, unsigned(t), mode="fill").reshape((-1,) + (1,) * (ndim - 1))


def unsigned(t: Int[Array, "B"]) -> UInt[Array, "B"]:
    """t as an index that never counts from the end: -1 is beyond the last step."""
    if not jnp.issubdtype(t.dtype, jnp.integer):
        raise TypeError(f"t must be whole steps here; got {t.dtype}")
    return t.astype(jnp.uint32)


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


def signal_and_noise(
    schedule: Schedule, t: Int[Array, "B"] | Float[Array, "B"], ndim: int
) -> tuple[Float[Array, "B ..."], Float[Array, "B ..."]]:
    """sqrt(alpha-bar_t) and sqrt(1 - alpha-bar_t), each [B, 1, ..., 1]; t may be fractional. NaN for t outside 0..T-1.

    Between two whole steps the log SNR is linear in t, as in the time grids of `ddpm_jax.diffusion.timestep_spacing`.
    """
    if jnp.issubdtype(t.dtype, jnp.integer):
        return at_step(schedule.sqrt_alphas_bar, t, ndim), at_step(schedule.sqrt_one_minus_alphas_bar, t, ndim)
    below = jnp.clip(jnp.floor(t).astype(jnp.int32), 0, max(schedule.num_steps - 2, 0))
    low, high = (
        at_step(schedule.half_log_snr, jnp.minimum(i, schedule.num_steps - 1), ndim) for i in (below, below + 1)
    )
    part = (t - below).reshape(low.shape)
    # Not low + part * (high - low): at part = 0 that is NaN where alpha-bar falls to 0 at the next step.
    half_log_snr = jnp.where(part == 0, low, jnp.where(part == 1, high, (1 - part) * low + part * high))
    # Outside 0..T-1, but for rounding, there is no step.
    half_log_snr = jnp.where((part > -ROUNDING) & (part < 1 + ROUNDING), half_log_snr, jnp.nan)
    return jnp.sqrt(jax.nn.sigmoid(2 * half_log_snr)), jnp.sqrt(jax.nn.sigmoid(-2 * half_log_snr))


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


def x_0_from_mean(
    schedule: Schedule, *, x_t: Float[Array, "B *D"], t: Int[Array, "B"], mean: Float[Array, "B *D"]
) -> Float[Array, "B *D"]:
    """The x_0 whose posterior mean mu-tilde(x_t, x_0) is `mean` (Ho et al. 2020, equation 7 inverted)."""
    return (mean - at_step(schedule.posterior_mean_coef_x_t, t, x_t.ndim) * x_t) / at_step(
        schedule.posterior_mean_coef_x_0, t, x_t.ndim
    )
