"""The variational bound L_vlb: Gaussian KL, the discretised-Gaussian decoder, bits per dimension.

Ho et al. 2020, equations 5, 8 and 13. Everything returns bits per dimension, [B].
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import erf, erfc
from jaxtyping import Array, Bool, Float, Int, Key

from ddpm_jax.diffusion.denoiser import DenoiseFn
from ddpm_jax.diffusion.forward_process import at_step, eps_from_x_0, q_posterior_mean, q_sample
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys, sample_noise
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.runtime.errors import UserError, arg

PIXEL_BIN = 2.0 / 255.0  # the distance of two adjacent pixel values (of 256) on the scale [-1, 1]
HALF_BIN = PIXEL_BIN / 2

# (x_0, mean=, log_var=) -> log p(x_0 | x_1) in nats, elementwise: the last step of the reverse process.
LogLikelihood = Callable[..., Float[Array, "B *D"]]


def normal_kl(
    mean_1: Float[Array, "..."],
    log_var_1: Float[Array, "..."],
    mean_2: Float[Array, "..."],
    log_var_2: Float[Array, "..."],
) -> Float[Array, "..."]:
    """KL(N(mean_1, var_1) || N(mean_2, var_2)), elementwise, in nats."""
    log_ratio = log_var_1 - log_var_2
    # expm1(r) - r, not -1 - r + exp(r): if both variances are equal, the three terms cancel.
    return 0.5 * (jnp.expm1(log_ratio) - log_ratio + (mean_1 - mean_2) ** 2 * jnp.exp(-log_var_2))


def _mills_ratio(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """(1 - Phi(x)) / phi(x) for x >= 0: 1/(x + 1/(x + 2/(x + 3/(x + ...)))), or by erfc near 0.

    Unlike exp(log_ndtr), it and its gradient keep full float32 precision for any x.
    """
    far = x > 3
    x_far, x_near = jnp.where(far, x, 3.0), jnp.where(far, 0.0, x)
    denominator = x_far
    for k in range(20, 0, -1):  # 20 levels: the truncation error is below 1e-7 at x = 3, and smaller beyond
        denominator = x_far + k / denominator
    near = math.sqrt(math.pi / 2) * jnp.exp(0.5 * x_near**2) * erfc(x_near * math.sqrt(0.5))
    return jnp.where(far, 1 / denominator, near)


def _log_mass(
    low: Float[Array, "..."], high: Float[Array, "..."], unbounded: Bool[Array, "..."]
) -> Float[Array, "..."]:
    """log(Phi(high) - Phi(low)) where low < high and low + high <= 0; log Phi(high) where `unbounded`.

    A bin around 0 is a sum of two erf, a bin in the tail is phi(high) times a difference of two Mills ratios.
    JAX's log_ndtr is not used: beyond 3,000 deviations its gradient is wrong by a factor of e and more, and a
    difference of two of them loses the gradient altogether.
    """
    tail = high <= 0
    # Both branches are computed for every element, so each gets harmless arguments where it is not used.
    high_tail = jnp.where(tail, high, 0.0)
    ratio = jnp.exp(0.5 * (high_tail - low) * (high_tail + low))  # phi(low) / phi(high)
    mills = _mills_ratio(-high_tail) - jnp.where(unbounded, 0.0, _mills_ratio(-low) * ratio)
    in_tail = -0.5 * high_tail**2 - 0.5 * math.log(2 * math.pi) + jnp.log(jnp.maximum(mills, 1e-37))
    erf_high = erf(jnp.where(tail, 1.0, high) * math.sqrt(0.5))
    erf_low = jnp.where(unbounded, -1.0, erf(jnp.where(tail | unbounded, -1.0, low) * math.sqrt(0.5)))
    return jnp.where(tail, in_tail, jnp.log(0.5 * (erf_high - erf_low)))


def discretised_gaussian_log_likelihood(
    x_0: Float[Array, "B *D"], *, mean: Float[Array, "B *D"], log_var: Float[Array, "..."]
) -> Float[Array, "B *D"]:
    """log of the probability of each pixel value's bin under N(mean, var), in nats (Ho et al. 2020, equation 13).

    Bins are 2/255 wide; the bin of -1 extends to -infinity and that of 1 to +infinity, so the 256 probabilities
    sum to 1.

    Differs: the exact normal CDF in log space. The original code uses a tanh approximation and a
    floor of log(1e-12), below which the gradient is zero.

    Args:
      x_0: pixel values on the scale [-1, 1] (uint8 / 127.5 - 1).
      mean, log_var: of the decoder; log_var broadcasts against x_0.
    """
    inv_std = jnp.exp(-0.5 * log_var)
    upper = (x_0 - mean + HALF_BIN) * inv_std
    lower = (x_0 - mean - HALF_BIN) * inv_std
    # Phi(upper) - Phi(lower) loses all digits in the upper tail, so the bin is mirrored to the lower tail.
    unbounded = jnp.abs(x_0) > 1 - HALF_BIN
    mirrored = jnp.where(unbounded, x_0 > 0, upper + lower > 0)
    high = jnp.where(mirrored, -lower, upper)
    low = jnp.where(unbounded, -jnp.abs(high) - 1, jnp.where(mirrored, -upper, lower))
    return _log_mass(low, high, unbounded)


def gaussian_log_likelihood(
    x_0: Float[Array, "B *D"], *, mean: Float[Array, "B *D"], log_var: Float[Array, "..."]
) -> Float[Array, "B *D"]:
    """log N(x_0; mean, exp(log_var)) in nats, elementwise: for an x_0 without bins, such as a latent."""
    return -0.5 * (math.log(2 * math.pi) + log_var + (x_0 - mean) ** 2 * jnp.exp(-log_var))


def bits_per_dim_of(nats: Float[Array, "B *D"]) -> Float[Array, "B"]:
    """The mean over all axes but the first, converted from nats to bits."""
    return jnp.mean(nats.reshape(nats.shape[0], -1), axis=1) / jnp.log(2.0)


def vlb_term(
    process: Process,
    denoise_fn: DenoiseFn,
    *,
    x_0: Float[Array, "B *D"],
    x_t: Float[Array, "B *D"],
    t: Int[Array, "B"],
    log_likelihood: LogLikelihood = discretised_gaussian_log_likelihood,
) -> tuple[Float[Array, "B"], Float[Array, "B *D"]]:
    """L_t of the bound in bits/dim, and x_0_hat: for t > 0 KL(q(x_(t-1) | x_t, x_0) || p(x_(t-1) | x_t)),
    for t = 0 -log p(x_0 | x_1) (Ho et al. 2020, equation 5; t here is the paper's minus 1).

    Args:
      denoise_fn: of a network for this process.
      log_likelihood: of the last step; `gaussian_log_likelihood` if x_0 is continuous.
    """
    schedule = process.schedule
    denoised = denoise_fn(x_t, t)
    p_mean = q_posterior_mean(schedule, x_0=denoised.x_0_hat, x_t=x_t, t=t)
    log_var = process.log_var(t, ndim=x_0.ndim, var_values=denoised.var_values)
    q_mean = q_posterior_mean(schedule, x_0=x_0, x_t=x_t, t=t)
    q_log_var = at_step(schedule.log_var_fixed_small, t, x_0.ndim)
    kl = bits_per_dim_of(normal_kl(q_mean, q_log_var, p_mean, log_var))
    decoder = bits_per_dim_of(-log_likelihood(x_0, mean=p_mean, log_var=log_var))
    return jnp.where(t == 0, decoder, kl), denoised.x_0_hat


def prior_term(schedule: Schedule, x_0: Float[Array, "B *D"]) -> Float[Array, "B"]:
    """L_T = KL(q(x_T | x_0) || N(0, I)) in bits/dim (Ho et al. 2020, equation 5); it has no parameters."""
    last = jnp.full(x_0.shape[:1], schedule.num_steps - 1, jnp.int32)
    mean = at_step(schedule.sqrt_alphas_bar, last, x_0.ndim) * x_0
    log_var = at_step(schedule.log_one_minus_alphas_bar, last, x_0.ndim)
    return bits_per_dim_of(normal_kl(mean, log_var, jnp.zeros_like(mean), jnp.zeros_like(log_var)))


def vlb_terms(
    process: Process,
    denoise_fn: DenoiseFn,
    *,
    x_0: Float[Array, "B *D"],
    keys: Key[Array, "B"],
    steps: Int[Array, "S"],
    log_likelihood: LogLikelihood = discretised_gaussian_log_likelihood,
    noises: Float[Array, "..."] | None = None,  # [S, B, *D]
) -> dict[str, Array]:
    """L_t of the bound in bits/dim at the given steps, with one sample of x_t per step, in one `lax.scan`.

    Args:
      x_0: real images on the scale [-1, 1], from uint8 values unless another log_likelihood is given.
      keys: one per image; step t draws its noise from fold_in(key, t).
      denoise_fn: of a network for this process.
      steps: the wanted t.
      log_likelihood: of the last step; see `vlb_term`.
      noises: eps of each step, in place of what is drawn from the keys.

    Returns:
      terms, x_0_mse and eps_mse, each [S, B].
    """

    if noises is not None and noises.shape != (len(steps), *x_0.shape):
        raise UserError(f"{arg('noises')} must be {[len(steps), *x_0.shape]}; got {list(noises.shape)}")
    schedule = process.schedule

    def one_step(_, step_and_noise: tuple[Int[Array, ""], Float[Array, "B *D"] | None]):
        step, eps = step_and_noise
        t = jnp.full(x_0.shape[:1], step, jnp.int32)
        if eps is None:
            eps = sample_noise(keys, step, x_0.shape[1:])
        x_t = q_sample(schedule, x_0=x_0, t=t, eps=eps)
        term, x_0_hat = vlb_term(process, denoise_fn, x_0=x_0, x_t=x_t, t=t, log_likelihood=log_likelihood)
        eps_hat = eps_from_x_0(schedule, x_t=x_t, t=t, x_0=x_0_hat)
        axes = tuple(range(1, x_0.ndim))
        mse = {"x_0_mse": jnp.mean((x_0_hat - x_0) ** 2, axes), "eps_mse": jnp.mean((eps_hat - eps) ** 2, axes)}
        return None, {"terms": term, **mse}

    return jax.lax.scan(one_step, None, (steps, noises))[1]


def bits_per_dim(
    process: Process,
    denoise_fn: DenoiseFn,
    *,
    x_0: Float[Array, "B *D"],
    key: Key[Array, ""],
    log_likelihood: LogLikelihood = discretised_gaussian_log_likelihood,
    noises: Float[Array, "..."] | None = None,  # [T, B, *D]
) -> dict[str, Array]:
    """The whole bound in bits/dim, one sample of x_t at each of the T steps (Ho et al. 2020, equation 5).

    Args:
      x_0: real images on the scale [-1, 1], from uint8 values unless another log_likelihood is given.
      key: image i draws its noise at step t from fold_in(fold_in(key, i), t).
      denoise_fn: of a network for this process.
      log_likelihood: of the last step; see `vlb_term`.
      noises: eps of step 0, 1, ..., T-1, in place of what is drawn from the key.

    Returns:
      total [B] = sum of terms + prior; terms [T, B]; prior [B]; x_0_mse and eps_mse [T, B].
    """
    keys = sample_keys(key, jnp.arange(x_0.shape[0]))
    steps = jnp.arange(process.num_steps, dtype=jnp.int32)
    by_step = vlb_terms(
        process, denoise_fn, x_0=x_0, keys=keys, steps=steps, log_likelihood=log_likelihood, noises=noises
    )
    prior = prior_term(process.schedule, x_0)
    return {"total": jnp.sum(by_step["terms"], axis=0) + prior, "prior": prior, **by_step}
