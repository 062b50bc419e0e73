"""Editing without training: known parts, measurements, and starts between noise and the image."""

from ddpm_jax.diffusion.edits.inpainting import known_region
from ddpm_jax.diffusion.edits.masks import make_mask
from ddpm_jax.diffusion.edits.repaint import repaint_table

__all__ = [
    "known_region",
    "make_mask",
    "repaint_table",
]
