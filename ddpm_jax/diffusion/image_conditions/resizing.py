"""Smaller and larger images: means of blocks, and the usual ways to enlarge by a whole factor."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.diffusion.image_conditions.levels import from_levels, to_levels
from ddpm_jax.runtime.errors import UserError, arg, check_one_of

UPSAMPLINGS = ("nearest", "bilinear", "bilinear_corners", "bicubic")
BICUBIC_A = -0.75  # of Keys' cubic convolution; PyTorch's and OpenCV's choice


def area_mean(x: Float[Array, "H W C"], factor: int) -> Float[Array, "h w C"]:
    """The means of blocks of factor x factor pixels: `F.interpolate(mode="area")` of PyTorch.

    Raises:
      UserError: a factor that does not divide both sizes.
    """
    return jnp.mean(_blocks(x, factor), axis=(1, 3))


def shrunk(x_0: Float[Array, "H W C"], factor: int) -> Float[Array, "h w C"]:
    """`area_mean` of the levels of an image, rounded to one of the 256 levels; in [-1, 1].

    A small image in a file has these levels only: without rounding a network would learn to use digits that no file
    has. Whole numbers, halves upwards, so that no rounding depends on the compiler.

    Raises:
      UserError: a factor that does not divide both sizes.
    """
    sums = jnp.sum(_blocks(to_levels(x_0).astype(jnp.int32), factor), axis=(1, 3), dtype=jnp.int32)
    return from_levels(((2 * sums + factor**2) // (2 * factor**2)).astype(jnp.float32))


def enlarged(x: Float[Array, "h w C"], factor: int, upsampling: str) -> Float[Array, "H W C"]:
    """The image at `factor` times its height and width.

    Args:
      upsampling: "nearest": each pixel is repeated. "bilinear": linear between the centres of pixels, which are at
        half pixels (`align_corners=False` of PyTorch); constant beyond the outermost. "bilinear_corners": linear, and
        the corner pixels of both images coincide (`align_corners=True`). "bicubic": cubic convolution (Keys 1981) with
        a = -0.75 between the same centres as "bilinear", border pixels repeated; values can leave the range of x.

    Raises:
      UserError: another rule.
    """
    check_one_of("upsampling", upsampling, UPSAMPLINGS)
    if upsampling == "nearest":
        return jnp.repeat(jnp.repeat(x, factor, axis=0), factor, axis=1)
    exact, (height, width, _) = jax.lax.Precision.HIGHEST, x.shape
    rows = jnp.einsum("Hh,hwc->Hwc", _weights(height, factor, upsampling), x, precision=exact)
    return jnp.einsum("Ww,Hwc->HWc", _weights(width, factor, upsampling), rows, precision=exact)


def check_factor(height: int, width: int, factor: int) -> None:
    """Raises UserError unless the factor divides both sizes."""
    if height % factor or width % factor:
        raise UserError(f"{arg('factor')} must divide the size of the images, {height} x {width}; got {factor}")


def _blocks(x: Array, factor: int) -> Array:
    """[H/factor, factor, W/factor, factor, C]."""
    height, width, channels = x.shape
    check_factor(height, width, factor)
    return x.reshape(height // factor, factor, width // factor, factor, channels)


def _weights(size: int, factor: int, upsampling: str) -> Float[Array, "large small"]:
    """Row i: the weights of the pixels along one axis for pixel i of the larger image; they sum to 1."""
    large = np.arange(size * factor, dtype=np.float64)
    if upsampling == "bilinear_corners":
        place = large * ((size - 1) / max(size * factor - 1, 1))
    else:
        place = (large + 0.5) / factor - 0.5
    if upsampling == "bicubic":
        taps, kernel = range(-1, 3), _cubic
    else:
        taps, kernel = range(2), lambda distance: 1 - distance
    weights = np.zeros((size * factor, size))
    below = np.floor(place).astype(int)
    for tap in taps:
        at = np.clip(below + tap, 0, size - 1)  # the border pixels go on beyond the border
        np.add.at(weights, (large.astype(int), at), kernel(np.abs(place - (below + tap))))
    return jnp.asarray(weights, jnp.float32)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """The kernel of cubic convolution (Keys 1981, equation 4) for distances in 0..2."""
    a, d = BICUBIC_A, distance
    inner = (a + 2) * d**3 - (a + 3) * d**2 + 1
    return np.where(d <= 1, inner, a * (d**3 - 5 * d**2 + 8 * d - 4))
