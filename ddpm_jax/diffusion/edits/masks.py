"""Holes of images by name, for inpainting: boolean masks that are True where the image is known."""

import numpy as np
from jaxtyping import Bool

from ddpm_jax.runtime.errors import UserError, arg, check_between, check_one_of, real_number, whole_number

HOLES = ("centre", "left", "right", "top", "bottom", "expand", "stripes", "random")


def make_mask(
    hole: str, height: int, width: int, *, share: float | None = None, seed: int = 0
) -> Bool[np.ndarray, "H W 1"]:
    """The mask of an image with a hole: True where the image is known, False in the hole, bool [H, W, 1].

    "centre": the hole is the middle half of the rows and columns. "left", "right", "top", "bottom": that half of the
    image. "expand": all but the middle half of the rows and columns. "stripes": every second row, from the second.
    "random": round(share * H * W) pixels without a pattern. Most are those of Lugmayr et al. 2022, section 5.2.

    Args:
      hole: one of `HOLES`.
      share: of the pixels that are in the hole, in [0, 1]; only for "random", where None is a half.
      seed: of the choice of pixels, at least 0; only for "random".

    Raises:
      UserError: an unknown name; a size below 1; a share or seed outside its range; a share of another hole.

    Example:
      >>> make_mask("top", 2, 2)[..., 0]
      array([[False, False],
             [ True,  True]])
    """
    check_one_of("hole", hole, HOLES)
    height, width, seed = (whole_number(*one) for one in (("height", height), ("width", width), ("seed", seed)))
    check_between("height", height, 1)
    check_between("width", width, 1)
    if share is not None and hole != "random":
        raise UserError(f"{arg('share')} is of {arg('hole=random')}; got {hole!r}, which has its own: leave it out")
    rows, columns = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    middle = _middle(rows, height) & _middle(columns, width)
    everywhere = np.ones((height, width, 1), bool)
    if hole == "random":
        return _random(height, width, 0.5 if share is None else real_number("share", share), seed)
    known = {
        "centre": ~middle,
        "left": columns >= width // 2,
        "right": columns < width - width // 2,
        "top": rows >= height // 2,
        "bottom": rows < height - height // 2,
        "expand": middle,
        "stripes": rows % 2 == 0,
    }[hole]
    return known & everywhere


def _middle(at: np.ndarray, size: int) -> np.ndarray:
    return (at >= size // 4) & (at < size - size // 4)


def _random(height: int, width: int, share: float, seed: int) -> Bool[np.ndarray, "H W 1"]:
    if not 0 <= share <= 1:
        raise UserError(f"{arg('share')} must be in [0, 1], the share of the pixels in the hole; got {share}")
    check_between("seed", seed, 0)
    order = np.random.default_rng(seed).permutation(height * width)
    return (order >= round(share * height * width)).reshape(height, width, 1)
