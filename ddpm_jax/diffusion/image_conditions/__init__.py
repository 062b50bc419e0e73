"""What an image-conditional model is shown of an image: with a hole, grey, as a JPEG file, blurred, or small."""

from ddpm_jax.diffusion.image_conditions.blur import gaussian_blur
from ddpm_jax.diffusion.image_conditions.image_task import ImageTask, Shown
from ddpm_jax.diffusion.image_conditions.jpeg import jpeg_round_trip
from ddpm_jax.diffusion.image_conditions.levels import grey
from ddpm_jax.diffusion.image_conditions.random_masks import free_form_mask, uncropping_mask
from ddpm_jax.diffusion.image_conditions.resizing import area_mean, enlarged, shrunk
from ddpm_jax.diffusion.image_conditions.super_resolution import SuperResolution
from ddpm_jax.diffusion.image_conditions.tasks import TASKS, make_image_task

__all__ = [
    "TASKS",
    "ImageTask",
    "Shown",
    "SuperResolution",
    "area_mean",
    "enlarged",
    "free_form_mask",
    "gaussian_blur",
    "grey",
    "jpeg_round_trip",
    "make_image_task",
    "shrunk",
    "uncropping_mask",
]
