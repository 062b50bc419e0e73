"""Editing without training: known parts, measurements, and starts between noise and the image."""

from ddpm_jax.diffusion.edits.ilvr import block_average, ilvr
from ddpm_jax.diffusion.edits.inpainting import known_region
from ddpm_jax.diffusion.edits.masks import make_mask
from ddpm_jax.diffusion.edits.posterior_sampling import posterior_sampling
from ddpm_jax.diffusion.edits.projections import (
    Measurement,
    average_measurement,
    channel_measurement,
    pixel_measurement,
    range_null_projection,
)
from ddpm_jax.diffusion.edits.repaint import repaint_table
from ddpm_jax.diffusion.edits.sdedit import noised_start, partial_table

__all__ = [
    "Measurement",
    "average_measurement",
    "block_average",
    "channel_measurement",
    "ilvr",
    "known_region",
    "make_mask",
    "noised_start",
    "partial_table",
    "pixel_measurement",
    "posterior_sampling",
    "range_null_projection",
    "repaint_table",
]
