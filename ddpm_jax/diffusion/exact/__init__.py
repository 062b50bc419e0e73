"""Data with a known score at every noise level: to measure what a sampler, a guide or an edit draws."""

from ddpm_jax.diffusion.exact.exact_model import exact_class_log_probs_fn, exact_model_fn
from ddpm_jax.diffusion.exact.gaussian_mixture import GaussianMixture, make_empirical, make_mixture
from ddpm_jax.diffusion.exact.observations import blur, downsample, greyscale, observation_matrix

__all__ = [
    "GaussianMixture",
    "blur",
    "downsample",
    "exact_class_log_probs_fn",
    "exact_model_fn",
    "greyscale",
    "make_empirical",
    "make_mixture",
    "observation_matrix",
]
