"""What an image-conditional model is shown of an image: with a hole, grey, as a JPEG file, or blurred."""

from ddpm_jax.diffusion.image_conditions.blur import gaussian_blur
from ddpm_jax.diffusion.image_conditions.jpeg import jpeg_round_trip
from ddpm_jax.diffusion.image_conditions.levels import grey
from ddpm_jax.diffusion.image_conditions.random_masks import free_form_mask, uncropping_mask
from ddpm_jax.diffusion.image_conditions.tasks import TASKS, ImageTask, Shown, make_image_task

__all__ = [
    "TASKS",
    "ImageTask",
    "Shown",
    "free_form_mask",
    "gaussian_blur",
    "grey",
    "jpeg_round_trip",
    "make_image_task",
    "uncropping_mask",
]
