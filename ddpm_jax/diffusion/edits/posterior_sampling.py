"""DPS (Chung et al. 2023): samples that fit a measurement, linear or not, by the gradient through the network."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ddpm_jax.diffusion.denoiser import Denoised, DenoiseFn
from ddpm_jax.diffusion.edits.inputs import aligned, as_floats
from ddpm_jax.diffusion.gradient_guidance import Scale
from ddpm_jax.diffusion.parameterisations import Steps
from ddpm_jax.runtime.errors import UserError, arg


def posterior_sampling(
    denoise_fn: DenoiseFn,
    measure_fn: Callable[[Array], Array],
    y: Shaped[Array | np.ndarray, "..."],
    *,
    zeta: Scale = 0.5,
) -> DenoiseFn:
    """denoise_fn whose rows end at x_s - zeta_t grad_{x_t} |y - A(x_0_hat)|^2, with zeta_t = zeta / |y - A(x_0_hat)|.

    Chung et al. 2023, "Diffusion posterior sampling for general noisy inverse problems", algorithm 1, for Gaussian
    noise. For every sampler; the paper's is `ancestral_table`. The gradient goes through the network, which is called
    once a row, forward and backward.

    x_0_hat is that of the denoiser, after guidance and after its limit, as in the paper's code: a value at the limit
    has no gradient. Algorithm 1 has no limit: `x_0_limit=None`.

    Differs: the paper's code follows the gradient of the norm, so that its `scale` is 2 zeta; its norm is of the whole
    batch, here it is of each sample.

    Args:
      denoise_fn: from `make_denoiser`, or of a run.
      measure_fn: A, from samples [B, *D] to their y, differentiable: `Measurement.measure`, or any other function,
        linear or not.
      y: what was measured, with or without noise, of one sample for all or [B, ...].
      zeta: at least 0; 0: y is not used; one number, or one per sample. The paper's code has 0.15 to 0.25 for linear
        measurements, with 1,000 steps; fewer steps need more.

    Raises:
      UserError: y is not finite floats, or zeta is below 0 or not finite; when called, y has not the shape of a
        measurement.
    """
    if not isinstance(zeta, jax.core.Tracer):
        rates = np.asarray(zeta)
        if rates.dtype.kind not in "iuf" or not np.all((rates >= 0) & np.isfinite(rates)):
            raise UserError(f"{arg('zeta')} must be finite and at least 0, 0 for no influence; got {zeta!r:.60}")
    y = as_floats("y", y)

    def of_posterior(x_t: Float[Array, "B *D"], t: Steps, *carry: Float[Array, "B *D"]) -> Denoised:
        def misfit(x_t: Float[Array, "B *D"]) -> tuple[Float[Array, ""], tuple[Denoised, Float[Array, "B"]]]:
            denoised = denoise_fn(x_t, t, *carry)
            measured = measure_fn(denoised.x_0_hat)
            squares = jnp.sum((aligned("y", y, measured.shape) - measured) ** 2, axis=tuple(range(1, measured.ndim)))
            return jnp.sum(squares), (denoised, squares)  # the gradient of the sum is that of each sample

        gradient, (denoised, squares) = jax.grad(misfit, has_aux=True)(x_t)
        fits = squares == 0  # the gradient is 0, whatever it is divided by
        rate = jnp.asarray(zeta, x_t.dtype) / jnp.sqrt(jnp.where(fits, 1.0, squares))
        shift = -rate.reshape(-1, *(1,) * (x_t.ndim - 1)) * gradient
        return denoised.replace(x_s_shift=shift if denoised.x_s_shift is None else denoised.x_s_shift + shift)

    return of_posterior
