"""The network that predicts a Gaussian mixture without error: E[x_0 | x_t] and its relatives in closed form.

x_t = a x_0 + n eps is again a mixture, of N(a mu_k, a^2 Sigma_k + n^2 I), so that with r_k = p(component k | x_t)

    E[x_0 | x_t] = sum_k r_k (mu_k + a Sigma_k (a^2 Sigma_k + n^2 I)^-1 (x_t - a mu_k)),
    E[eps | x_t] = sum_k r_k n (a^2 Sigma_k + n^2 I)^-1 (x_t - a mu_k) = -n grad log p(x_t).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.diffusion.exact.gaussian_mixture import GaussianMixture
from ddpm_jax.diffusion.forward_process import at_step
from ddpm_jax.diffusion.parameterisations import Steps
from ddpm_jax.diffusion.process import Process, learned_range


class Posterior(NamedTuple):
    """Moments of p(x_0 | x_t)."""

    x_0_hat: Float[Array, "B *D"]  # E[x_0 | x_t]
    eps_hat: Float[Array, "B *D"]  # E[eps | x_t]
    var: Float[Array, "B *D"]  # Var[x_0 | x_t], of each value
    log_r: Float[Array, "B K"]  # log p(component | x_t)


def exact_posterior(
    law: GaussianMixture,
    x_t: Float[Array, "B *D"],
    *,
    signal: Float[Array | np.ndarray, "..."],
    noise: Float[Array | np.ndarray, "..."],
    log_weights: Float[Array, "B K"] | None = None,
) -> Posterior:
    """The moments of p(x_0 | x_t) for x_t = signal x_0 + noise eps, in float32.

    Args:
      signal, noise: one number per x_t, with B values, such as from `Process.levels`.
      log_weights: of the components for each x_t, in place of those of the law; need not be normalised.
    """
    to_device = lambda values: jnp.asarray(values, jnp.float32)  # noqa: E731
    means, variances = to_device(law.means)[None], to_device(law.variances)[None]
    a, n = signal.reshape(-1, 1, 1), noise.reshape(-1, 1, 1)
    apart = x_t.reshape(x_t.shape[0], 1, -1) - a * means  # [B, K, D]
    precision = 1 / (a**2 * variances + n**2)
    if law.bases is None:
        along, back, back_squared = apart, lambda v: v, lambda v: v
    else:
        bases, exact = to_device(law.bases), jax.lax.Precision.HIGHEST
        along = jnp.einsum("bkd,kde->bke", apart, bases, precision=exact)
        back = lambda v: jnp.einsum("bke,kde->bkd", v, bases, precision=exact)  # noqa: E731
        back_squared = lambda v: jnp.einsum("bke,kde->bkd", v, bases**2, precision=exact)  # noqa: E731
    if log_weights is None:
        log_weights = jnp.log(to_device(law.weights))[None]
    log_r = log_weights + 0.5 * jnp.sum(jnp.log(precision) - along**2 * precision, axis=-1)
    log_r = jax.nn.log_softmax(log_r, axis=-1)
    r = jnp.exp(log_r)[..., None]
    of_component = means + back(a * variances * precision * along)
    x_0_hat = jnp.sum(r * of_component, axis=1)
    eps_hat = jnp.sum(r * back(n * precision * along), axis=1)
    var = jnp.sum(r * (back_squared(n**2 * variances * precision) + (of_component - x_0_hat[:, None]) ** 2), axis=1)
    return Posterior(x_0_hat.reshape(x_t.shape), eps_hat.reshape(x_t.shape), var.reshape(x_t.shape), log_r)


def exact_model_fn(
    process: Process, law: GaussianMixture
) -> Callable[[Float[Array, "B *D"], Steps, Mapping[str, Array] | None], Float[Array, "B *D C_out"]]:
    """model_fn(x_t, t, condition=None): what a network without error predicts, in the process's parameterisation.

    With condition["label"], int [B], the data of image i is p(x_0 | class label[i]); the label `law.num_classes` means
    no class, as in the networks.

    A learned variance is the variance of p(x_(t-1) | x_t) in each value, beta-tilde_t + c_t^2 Var[x_0 | x_t], c_t the
    coefficient of x_0 in mu-tilde: the best diagonal one (Bao et al. 2022, "Analytic-DPM", equation 7, of each value).
    Between two steps it is not defined, and the values are 0; samplers with fractional steps do not use them.

    Args:
      process: that the network was trained for, not a respaced one.
      law: with values on the last axis of x_t, as its channels.
    """
    log_of_label = _log_weights_of_label(law)
    schedule = process.schedule

    def model_fn(
        x_t: Float[Array, "B *D C"], t: Steps, condition: Mapping[str, Array] | None = None
    ) -> Float[Array, "B *D C_out"]:
        signal, noise = process.levels(t, ndim=x_t.ndim)
        log_weights = jnp.take(log_of_label, condition["label"], axis=0) if condition else None
        known = exact_posterior(law, x_t, signal=signal, noise=noise, log_weights=log_weights)
        value = process.target(x_0=known.x_0_hat, x_t=x_t, t=t, eps=known.eps_hat)
        if not process.learns_variance:
            return value
        if not jnp.issubdtype(t.dtype, jnp.integer):
            return jnp.concatenate([value, jnp.zeros_like(value)], axis=-1)
        coefficient = at_step(schedule.posterior_mean_coef_x_0, t, x_t.ndim)
        log_var = jnp.log(at_step(schedule.posterior_var, t, x_t.ndim) + coefficient**2 * known.var)
        if process.variance == "learned_range":
            shift, scale = learned_range(schedule.log_var_fixed_small, schedule.log_betas)
            log_var = (log_var - at_step(shift, t, x_t.ndim)) / at_step(scale, t, x_t.ndim)
        return jnp.concatenate([value, log_var], axis=-1)

    return model_fn


def exact_class_log_probs_fn(
    process: Process, law: GaussianMixture
) -> Callable[[Float[Array, "B *D"], Steps], Float[Array, "B C"]]:
    """(x_t, t) -> log p(class | x_t), [B, num_classes]: a classifier of noised images without error."""
    of_class = jnp.asarray(law.classes == np.arange(law.num_classes)[:, None])

    def class_log_probs(x_t: Float[Array, "B *D"], t: Steps) -> Float[Array, "B C"]:
        signal, noise = process.levels(t, ndim=x_t.ndim)
        log_r = exact_posterior(law, x_t, signal=signal, noise=noise).log_r
        return jax.nn.logsumexp(log_r[:, None, :], axis=-1, where=of_class[None])

    return class_log_probs


def _log_weights_of_label(law: GaussianMixture) -> Float[Array, "C K"]:
    """Of every class, and in the last row of no class."""
    of_class = law.classes == np.arange(law.num_classes)[:, None]
    allowed = np.concatenate([of_class, np.ones((1, len(law.classes)), bool)])
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(np.where(allowed, law.weights, 0.0)), jnp.float32)
