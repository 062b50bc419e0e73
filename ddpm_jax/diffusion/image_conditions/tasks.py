"""What an image-conditional model is shown of an image: Palette (Saharia et al. 2022, "Palette: image-to-image
diffusion models"), section 5 and appendix B; a blurred image; and a small one (`super_resolution`).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from ddpm_jax.diffusion.edits.inputs import as_mask
from ddpm_jax.diffusion.image_conditions.blur import MIN_STD, gaussian_blur
from ddpm_jax.diffusion.image_conditions.image_task import ImageTask, Shown, check_no_known, checked_range
from ddpm_jax.diffusion.image_conditions.jpeg import SUBSAMPLINGS, jpeg_round_trip
from ddpm_jax.diffusion.image_conditions.levels import grey
from ddpm_jax.diffusion.image_conditions.random_masks import free_form_mask, uncropping_mask
from ddpm_jax.diffusion.image_conditions.super_resolution import NAME as SUPER_RESOLVE
from ddpm_jax.diffusion.image_conditions.super_resolution import SuperResolution, super_resolution_task
from ddpm_jax.runtime.errors import UserError, arg, arguments_named, check_one_of, whole_number

TASKS: tuple[str, ...] = ("inpaint", "uncrop", "colourise", "jpeg", "deblur", SUPER_RESOLVE)
QUALITY_DECAY = 10.0  # the probability of a JPEG quality is proportional to exp(-quality / 10)
MAX_STD = 100.0  # pixels: the kernel then has 801


def make_image_task(
    name: str,
    *,
    hole_share: tuple[float, ...] = (0.1, 0.6),
    jpeg_quality: tuple[int, ...] = (5, 30),
    jpeg_subsampling: str = "4:2:0",
    blur_std: tuple[float, ...] = (0.5, 3.0),
    super_resolution: SuperResolution | None = None,
) -> ImageTask:
    """The task of a name, the same object for the same settings.

    "inpaint": holes of brush strokes or rectangles, from `free_form_mask`. "uncrop": half of the image is unknown, on
    one or all sides, from `uncropping_mask`. "colourise": the image is grey, from `grey`. "jpeg": the image comes from
    a JPEG file, from `jpeg_round_trip`; the quality q has a probability proportional to exp(-q / 10). "deblur": the
    image is blurred, from `gaussian_blur`. "super_resolve": the image is small and enlarged again, from
    `super_resolution_task`. Differs: the paper has no blur, fills holes with noise and shows no mask.

    Args:
      name: one of `TASKS`.
      hole_share: lowest and highest share of the pixels in the hole, uniform between them; above 0 and below 1. Only
        for "inpaint".
      jpeg_quality: lowest and highest quality, both included, in 1..100. Only for "jpeg".
      jpeg_subsampling: "4:2:0" or "4:4:4", of the colours. Only for "jpeg".
      blur_std: lowest and highest standard deviation of the blur in pixels, uniform between them; at least 0.01 and at
        most 100. Only for "deblur".
      super_resolution: its settings; None: their defaults. Only for "super_resolve".

    Raises:
      UserError: an unknown name; a setting outside its range. When called: colourise needs 3 channels, jpeg 1 or 3;
        inpaint and uncrop at least 2 x 2 pixels; super_resolve sizes that are multiples of its factor.

    Example:
      >>> task = make_image_task("uncrop")
      >>> shown = task.make(jnp.ones((4, 4, 3)), jax.random.key(0))
      >>> shown.image.shape, shown.known.shape
      ((4, 4, 3), (4, 4, 1))
    """
    check_one_of("name", name, TASKS)
    check_one_of("jpeg_subsampling", jpeg_subsampling, SUBSAMPLINGS)
    low, high = checked_range("hole_share", hole_share, "0 < LOW <= HIGH < 1", lambda low, high: 0 < low and high < 1)
    hole_share = (float(low), float(high))
    jpeg_quality = checked_range(
        "jpeg_quality", jpeg_quality, "1 <= LOW <= HIGH <= 100", lambda low, high: 1 <= low and high <= 100
    )
    jpeg_quality = tuple(whole_number("jpeg_quality", quality) for quality in jpeg_quality)
    low, high = checked_range(
        "blur_std",
        blur_std,
        f"{MIN_STD:g} <= LOW <= HIGH <= {MAX_STD:g}",
        lambda low, high: np.float32(MIN_STD) <= low and high <= MAX_STD,
    )
    builders = {
        "inpaint": lambda: _inpaint(hole_share),
        "uncrop": _uncrop,
        "colourise": _colourise,
        "jpeg": lambda: _jpeg(jpeg_quality, jpeg_subsampling),
        "deblur": lambda: _deblur((float(low), float(high))),
        SUPER_RESOLVE: lambda: super_resolution_task(super_resolution or SuperResolution()),
    }
    return builders[name]()


# Cached, so that settings that are equal give one task, with which `jit` traces once.


@functools.cache
def _inpaint(share: tuple[float, float]) -> ImageTask:
    return _with_hole("inpaint", lambda key, height, width: free_form_mask(key, height, width, share))


@functools.cache
def _uncrop() -> ImageTask:
    return _with_hole("uncrop", uncropping_mask)


def _with_hole(name: str, make_mask: Callable) -> ImageTask:
    def shown(x_0: Float[Array, "H W C"], known: Shaped[Array | np.ndarray, "H W 1"]) -> Shown:
        return Shown(jnp.where(known, x_0, 0.0), jnp.asarray(known, jnp.float32))

    def make(x_0: Float[Array, "H W C"], key: Key[Array, ""]) -> Shown:
        height, width, _ = x_0.shape
        if min(height, width) < 2:
            raise UserError(f"{arg('name')}={name!r} needs images of at least 2 x 2 pixels; got {height} x {width}")
        return shown(x_0, make_mask(key, height, width))

    def of_given(x_0: Float[Array, "H W C"], known: Shaped[Array | np.ndarray, "H W 1"] | None = None) -> Shown:
        if known is None:
            raise UserError(f"{arg('known')} must be given for {arg('name')}={name!r}: 1 where the image is known")
        with arguments_named({"mask": arg("known"), "mask > 127": arg("known > 127")}.get):
            return shown(x_0, as_mask(known))

    return ImageTask(name, True, lambda channels: channels, make, of_given)


def _without_hole(
    name: str, num_channels: Callable[[int], int], make: Callable, of_given: Callable = lambda x_0: x_0
) -> ImageTask:
    """`make` and `of_given` return images."""

    def make_shown(x_0: Float[Array, "H W C"], key: Key[Array, ""]) -> Shown:
        num_channels(x_0.shape[-1])
        return Shown(make(x_0, key))

    def shown_of_given(x_0: Float[Array, "H W C"], known: Shaped[Array | np.ndarray, "H W 1"] | None = None) -> Shown:
        check_no_known(name, known)
        return Shown(of_given(x_0))

    return ImageTask(name, False, num_channels, make_shown, shown_of_given)


@functools.cache
def _colourise() -> ImageTask:
    def num_channels(channels: int) -> int:
        _check_channels("colourise", channels, {3: "RGB"})
        return 1

    def of_given(x_0: Float[Array, "H W C"]) -> Float[Array, "H W 1"]:
        _check_channels("colourise", x_0.shape[-1], {1: "grey", 3: "RGB"})
        return x_0 if x_0.shape[-1] == 1 else grey(x_0)

    return _without_hole("colourise", num_channels, lambda x_0, key: grey(x_0), of_given)


@functools.cache
def _jpeg(quality: tuple[int, int], subsampling: str) -> ImageTask:
    qualities = np.arange(quality[0], quality[1] + 1)

    def num_channels(channels: int) -> int:
        _check_channels("jpeg", channels, {1: "grey", 3: "RGB"})
        return channels

    def make(x_0: Float[Array, "H W C"], key: Key[Array, ""]) -> Float[Array, "H W C"]:
        drawn = jax.random.categorical(key, jnp.asarray(-qualities / QUALITY_DECAY, jnp.float32))
        return jpeg_round_trip(x_0, quality[0] + drawn.astype(jnp.int32), subsampling=subsampling)

    return _without_hole("jpeg", num_channels, make)


@functools.cache
def _deblur(std: tuple[float, float]) -> ImageTask:
    def make(x_0: Float[Array, "H W C"], key: Key[Array, ""]) -> Float[Array, "H W C"]:
        drawn = jax.random.uniform(key, (), jnp.float32, std[0], std[1])
        return gaussian_blur(x_0, drawn, highest_std=std[1])

    return _without_hole("deblur", lambda channels: channels, make)


def _check_channels(name: str, channels: int, allowed: dict[int, str]) -> None:
    if channels not in allowed:
        kinds = " or ".join(f"{number} ({kind})" for number, kind in allowed.items())
        raise UserError(f"{arg('name')}={name!r} needs images with {kinds} channels; got {channels}")
