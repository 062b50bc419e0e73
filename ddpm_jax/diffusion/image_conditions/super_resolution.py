"""Super-resolution: the network is shown an enlarged small image (Saharia et al. 2021, "Image super-resolution via
iterative refinement", SR3), with conditioning augmentation (Ho et al. 2021, "Cascaded diffusion models for high
fidelity image generation", CDM, section 3).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from ddpm_jax.diffusion.image_conditions.blur import MIN_STD, smoothed
from ddpm_jax.diffusion.image_conditions.image_task import ImageTask, Shown, check_no_known, checked_range
from ddpm_jax.diffusion.image_conditions.resizing import UPSAMPLINGS, enlarged, shrunk
from ddpm_jax.diffusion.schedules import Schedule, schedule_from_betas
from ddpm_jax.runtime.errors import UserError, arg, check_between, check_one_of, whole_number

NAME = "super_resolve"
AUGMENTATIONS = ("none", "noise", "blur")
BLUR_SHARE, BLUR_RADIUS, MAX_BLUR_STD = 0.5, 1, 10.0  # CDM blurs half of the images, with 3x3 weights
MAX_FACTOR = 1024


@dataclass(frozen=True)
class SuperResolution:
    """Settings of the task; each is checked by `super_resolution_task`.

    Attributes:
      factor: how many times larger the image is than the small one on each side, at least 2.
      upsampling: one of `resizing.UPSAMPLINGS`: how the small image is enlarged.
      augmentation: of the small image z, before it is enlarged. "none". "noise": z_s = sqrt(alpha-bar) z +
        sqrt(1 - alpha-bar) eps for a level s that is drawn for each image, uniformly in 0..max_level (CDM's
        non-truncated augmentation); level 0 is z itself, level i has the noise of the step t = i - 1 of the schedule,
        and the network is told the level. "blur": half of the images are blurred by weights of 3x3 pixels, with a
        standard deviation uniform in a range; the network is not told it.
      augmentation_blur_std: that range, in pixels of the small image.
      schedule: of the noise; its T is the highest level that there is.
      max_level: the highest level that is drawn; 0: T.
    """

    factor: int = 4
    upsampling: str = "bilinear"
    augmentation: str = "none"
    augmentation_blur_std: tuple[float, ...] = (0.4, 0.6)
    schedule: Schedule | None = None
    max_level: int = 0


def super_resolution_task(settings: SuperResolution) -> ImageTask:
    """The task, the same object for the same settings. What is shown of an image: its small version (`shrunk`),
    augmented and enlarged.

    Raises:
      UserError: a setting outside its range; noise without a schedule. When called: sizes that the factor does not
        divide.
    """
    factor = whole_number("factor", settings.factor)
    check_between("factor", factor, 2, MAX_FACTOR)
    check_one_of("upsampling", settings.upsampling, UPSAMPLINGS)
    check_one_of("augmentation", settings.augmentation, AUGMENTATIONS)
    low, high = checked_range(
        "augmentation_blur_std",
        settings.augmentation_blur_std,
        f"{MIN_STD:g} <= LOW <= HIGH <= {MAX_BLUR_STD:g}",
        lambda low, high: np.float32(MIN_STD) <= low and high <= MAX_BLUR_STD,
    )
    if settings.augmentation == "noise":
        return _noisy(factor, settings.upsampling, _betas_of_levels(settings.schedule, settings.max_level))
    if settings.augmentation == "blur":
        return _blurred(factor, settings.upsampling, (float(low), float(high)))
    return _plain(factor, settings.upsampling)


def _betas_of_levels(schedule: Schedule | None, max_level: int) -> tuple[float, ...]:
    """beta of the steps of the levels 1..max_level."""
    max_level = whole_number("max_level", max_level)
    if schedule is None:
        raise UserError(f"{arg('schedule')} must be given for {arg('augmentation')}='noise', whose levels it defines")
    if not 0 <= max_level <= schedule.num_steps:
        raise UserError(
            f"{arg('max_level')} must be in 0..{schedule.num_steps}, the T of the schedule, or 0 for T; got {max_level}"
        )
    return schedule.betas_float64[: max_level or schedule.num_steps]


# Cached, so that settings that are equal give one task, with which `jit` traces once.


@functools.cache
def _plain(factor: int, upsampling: str) -> ImageTask:
    def make(x_0: Float[Array, "H W C"], key: Key[Array, ""]) -> Shown:
        return Shown(enlarged(shrunk(x_0, factor), factor, upsampling))

    return _task(factor, make, lambda x_0: Shown(enlarged(x_0, factor, upsampling)))


@functools.cache
def _blurred(factor: int, upsampling: str, std: tuple[float, float]) -> ImageTask:
    def make(x_0: Float[Array, "H W C"], key: Key[Array, ""]) -> Shown:
        of_std, of_coin = jax.random.split(key)
        drawn = jax.random.uniform(of_std, (), jnp.float32, *std)
        z = shrunk(x_0, factor)
        blurred = smoothed(z, drawn, radius=BLUR_RADIUS)
        z = jnp.where(jax.random.bernoulli(of_coin, jnp.float32(BLUR_SHARE)), blurred, z)
        return Shown(enlarged(z, factor, upsampling))

    return _task(factor, make, lambda x_0: Shown(enlarged(x_0, factor, upsampling)))


@functools.cache
def _noisy(factor: int, upsampling: str, betas: tuple[float, ...]) -> ImageTask:
    with jax.ensure_compile_time_eval():  # so that the first call may be inside jit
        schedule = schedule_from_betas(np.asarray(betas))
        signal = np.append(np.float32(1), np.asarray(schedule.sqrt_alphas_bar))
        noise = np.append(np.float32(0), np.asarray(schedule.sqrt_one_minus_alphas_bar))

    def at_level(x_0: Float[Array, "h w C"], level: Int[Array, ""] | int, key: Key[Array, ""]) -> Shown:
        level = jnp.asarray(level, jnp.int32)
        # Not signal[level], which silently clamps an index past the end.
        a, b = (jnp.take(jnp.asarray(table), level.astype(jnp.uint32), mode="fill") for table in (signal, noise))
        return of_noised(a * x_0 + b * jax.random.normal(key, x_0.shape, jnp.float32), level)

    def of_noised(z_s: Float[Array, "h w C"], level: Int[Array, ""]) -> Shown:
        return Shown(enlarged(z_s, factor, upsampling), level=level)

    def make(x_0: Float[Array, "H W C"], key: Key[Array, ""]) -> Shown:
        of_level, of_noise = jax.random.split(key)
        level = jax.random.randint(of_level, (), 0, len(betas) + 1, jnp.int32)
        return at_level(shrunk(x_0, factor), level, of_noise)

    def clean(x_0: Float[Array, "h w C"]) -> Shown:
        return Shown(enlarged(x_0, factor, upsampling), level=jnp.zeros((), jnp.int32))

    of_noise = {"at_level": at_level, "of_noised": of_noised, "alphas_bar": (1.0, *schedule.host_alphas_bar.tolist())}
    return _task(factor, make, clean, max_level=len(betas), **of_noise)


def _task(factor: int, make: Callable, clean: Callable, **of_noise: object) -> ImageTask:
    def of_given(x_0: Float[Array, "h w C"], known: Shaped[Array | np.ndarray, "H W 1"] | None = None) -> Shown:
        check_no_known(NAME, known)
        return clean(x_0)

    return ImageTask(NAME, False, lambda channels: channels, make, of_given, factor, **of_noise)
