"""What an image looks like after it was saved as a JPEG file and opened again.

Baseline JPEG (ITU-T T.81) with the choices of libjpeg, which Pillow and most programs use: its rule of the quality, its
means and its triangle filter for subsampled colours, its roundings and its padding. The entropy coding of the files
loses nothing and is left out. Only the cosine transforms differ: here float32, there whole numbers with errors below
one level.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax.diffusion.image_conditions.levels import from_levels, nearest_integer, to_levels
from ddpm_jax.runtime.errors import UserError, arg, check_between, check_one_of

SUBSAMPLINGS = ("4:2:0", "4:4:4")

# The steps of T.81, annex K: tables K.1 (luma) and K.2 (chroma), for quality 50.
LUMA_STEPS = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
])  # fmt: skip
CHROMA_STEPS = np.full((8, 8), 99)
CHROMA_STEPS[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]


def jpeg_round_trip(
    x_0: Float[Array, "H W C"], quality: Int[Array, ""] | int, *, subsampling: str = "4:2:0"
) -> Float[Array, "H W C"]:
    """The image from a JPEG file of x_0, in [-1, 1] with 256 levels.

    Args:
      x_0: in [-1, 1], rounded to the 256 levels first; C is 1 (grey) or 3 (RGB).
      quality: in 1..100, as `quality` of Pillow and of cjpeg; may be traced.
      subsampling: "4:2:0", the usual one, in which colours have half the resolution, or "4:4:4", all of it.

    Raises:
      UserError: another number of channels, subsampling or quality (the last is not seen where it is traced).
    """
    check_one_of("subsampling", subsampling, SUBSAMPLINGS)
    height, width, channels = x_0.shape
    if channels not in (1, 3):
        raise UserError(f"{arg('x_0')} must have 1 channel (grey) or 3 (RGB); got {channels}")
    if not isinstance(quality, jax.core.Tracer):
        check_between("quality", int(quality), 1, 100)
    levels, factor = to_levels(x_0), _scale(quality)
    if channels == 1:
        return from_levels(_coded(levels[None, ..., 0], _steps(LUMA_STEPS, factor))[0, ..., None])
    luma, chroma = _to_luma_and_chroma(levels)
    luma = _coded(luma, _steps(LUMA_STEPS, factor))
    steps = _steps(CHROMA_STEPS, factor)
    if subsampling == "4:4:4":
        chroma = _coded(chroma, steps)
    else:
        chroma = _upsampled(_coded(_halved(chroma), steps)[:, : (height + 1) // 2, : (width + 1) // 2])
    return from_levels(_to_rgb(luma, chroma[:, :height, :width]))


def cosine_basis() -> Float[np.ndarray, "8 8"]:
    """sqrt(8) times the orthonormal cosine transform of 8 values: row u is sqrt(2) cos((2x + 1) u pi / 16), row 0 is 1.

    Rows 0 and 4 are +-1: their products with whole numbers are exact, and so are the halves that are to be rounded.
    """
    basis = math.sqrt(2.0) * np.cos((2 * np.arange(8)[None, :] + 1) * np.arange(8)[:, None] * math.pi / 16)
    basis[0] = 1.0
    return basis.astype(np.float32)


def _scale(quality: Int[Array, ""] | int) -> Int[Array, ""]:
    """Of the steps, in per cent: libjpeg's rule, in whole numbers."""
    quality = jnp.asarray(quality, jnp.int32)
    return jnp.where(quality < 50, 5000 // quality, 200 - 2 * quality)


def _steps(at_50: np.ndarray, scale: Int[Array, ""]) -> Float[Array, "8 8"]:
    return jnp.clip((jnp.asarray(at_50, jnp.int32) * scale + 50) // 100, 1, 255).astype(jnp.float32)


def _coded(planes: Float[Array, "N H W"], steps: Float[Array, "8 8"]) -> Float[Array, "N H W"]:
    """Levels -> the levels after the cosine transform of each block of 8x8 was rounded to multiples of `steps`."""
    num, height, width = planes.shape
    padded = jnp.pad(planes, ((0, 0), (0, -height % 8), (0, -width % 8)), mode="edge")
    blocks = padded.reshape(num, padded.shape[1] // 8, 8, padded.shape[2] // 8, 8)
    basis, exact = jnp.asarray(cosine_basis()), jax.lax.Precision.HIGHEST
    blocks = jnp.einsum("nyrxc,ur,vc->nyuxv", blocks - 128.0, basis, basis, precision=exact)
    blocks = nearest_integer(blocks) / 8.0  # the resolution of libjpeg's transform
    steps = steps[None, None, :, None, :]
    magnitude = nearest_integer(jnp.abs(blocks) / steps)  # halves away from 0
    blocks = jnp.einsum(
        "nyuxv,ur,vc->nyrxc", jnp.sign(blocks) * magnitude * steps, basis, basis, precision=exact
    )  # fmt: skip
    levels = jnp.clip(nearest_integer(blocks / 8.0 + 128.0), 0.0, 255.0)
    return levels.reshape(padded.shape)[:, :height, :width]


def _to_luma_and_chroma(levels: Float[Array, "H W 3"]) -> tuple[Float[Array, "1 H W"], Float[Array, "2 H W"]]:
    """Y, and Cb and Cr, rounded: JFIF 1.02, that is ITU-R BT.601 with all 256 levels."""
    red, green, blue = (levels[..., channel].astype(jnp.int32) for channel in range(3))
    # libjpeg's whole numbers, 2^16 times the weights. Halves of chroma go down.
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    half = (128 << 16) + 32767
    chroma = jnp.stack([
        (-11058 * red - 21710 * green + 32768 * blue + half) >> 16,
        (32768 * red - 27439 * green - 5329 * blue + half) >> 16,
    ])  # fmt: skip
    return luma[None].astype(jnp.float32), chroma.astype(jnp.float32)


def _to_rgb(luma: Float[Array, "1 H W"], chroma: Float[Array, "2 H W"]) -> Float[Array, "H W 3"]:
    blue, red = chroma[0] - 128.0, chroma[1] - 128.0
    offsets = [1.402 * red, -0.344136286 * blue - 0.714136286 * red, 1.772 * blue]
    return jnp.clip(jnp.stack([luma[0] + nearest_integer(offset) for offset in offsets], axis=-1), 0.0, 255.0)


def _halved(planes: Float[Array, "N H W"]) -> Float[Array, "N h w"]:
    """The means of 2x2 levels, rounded down and up in turns; their columns are padded to whole blocks of 8.

    As in libjpeg, columns are padded before the means are taken and rows after (by `_coded`).
    """
    _, height, width = planes.shape
    planes = jnp.pad(planes, ((0, 0), (0, height % 2), (0, -width % 16)), mode="edge")
    sums = planes[:, 0::2, 0::2] + planes[:, 0::2, 1::2] + planes[:, 1::2, 0::2] + planes[:, 1::2, 1::2]
    bias = 1.0 + np.arange(sums.shape[2], dtype=np.float32)[None, None] % 2
    return jnp.floor((sums + bias) / 4.0)


def _upsampled(planes: Float[Array, "N h w"]) -> Float[Array, "N H W"]:
    """Twice the size: 3/4 of the nearer level + 1/4 of the next one along both axes (libjpeg's "fancy" upsampling)."""
    if planes.shape[2] <= 2:  # as in libjpeg
        return jnp.repeat(jnp.repeat(planes, 2, axis=1), 2, axis=2)
    padded = jnp.pad(planes, ((0, 0), (1, 1), (1, 1)), mode="edge")
    middle = 3 * padded[:, 1:-1]
    rows = jnp.stack([middle + padded[:, :-2], middle + padded[:, 2:]], axis=2)
    rows = rows.reshape(planes.shape[0], -1, padded.shape[2])
    middle = 3 * rows[..., 1:-1]
    columns = jnp.stack([middle + rows[..., :-2] + 8, middle + rows[..., 2:] + 7], axis=3)
    return jnp.floor(columns / 16.0).reshape(*rows.shape[:2], -1)
