"""Random holes of images: boolean masks that are True where the image is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

STROKES_PROBABILITY = 0.6  # Palette's; otherwise rectangles
MAX_STROKES, SEGMENTS = 8, (4, 8)  # at most; of a stroke, least and most
BRUSH_WIDTH = (12 / 256, 40 / 256)  # times the root of the number of pixels
MAX_RECTANGLES = 5


def free_form_mask(key: Key[Array, ""], height: int, width: int, share: tuple[float, float]) -> Bool[Array, "H W 1"]:
    """A mask whose hole is, at random, of brush strokes (probability 0.6) or of 1 to 5 rectangles (0.4).

    Saharia et al. 2022, appendix B, with strokes in the manner of Yu et al. 2019 ("Free-form image inpainting with
    gated convolution", algorithm 1): zigzag lines with round joints. Differs: the number of pixels in the hole is drawn
    first, uniformly. Strokes are drawn until their areas add up to it; then the widths of all strokes, or the sizes of
    all rectangles, get the common factor by which the hole has that many pixels.

    Args:
      height, width: in pixels, at least 2 each.
      share: (low, high) of the pixels that are in the hole, 0 < low <= high < 1. Rectangles grow by rows and columns,
        so they keep to a range that is narrower than 1/min(height, width) up to one row or column. At least one pixel
        is in the hole, and one is known.
    """
    of_kind, of_number, of_strokes, of_rectangles = jax.random.split(key, 4)
    num_pixels = height * width
    least = min(max(math.ceil(share[0] * num_pixels), 1), num_pixels - 1)
    most = max(min(math.floor(share[1] * num_pixels), num_pixels - 1), least)
    num_hole = jax.random.randint(of_number, (), least, most + 1, jnp.int32)
    factors = jnp.where(
        jax.random.bernoulli(of_kind, jnp.float32(STROKES_PROBABILITY)),
        _stroke_factors(of_strokes, height, width, num_hole),
        _rectangle_factors(of_rectangles, height, width),
    )
    threshold = jnp.sort(factors, axis=None)[num_hole - 1]
    # With pixels of equal factors, such as a row of a rectangle, this has more pixels than asked for.
    hole, fewer = factors <= threshold, factors < threshold
    hole = jnp.where((jnp.sum(hole) > most) & jnp.any(fewer), fewer, hole)
    return ~hole[..., None]


def uncropping_mask(key: Key[Array, ""], height: int, width: int) -> Bool[Array, "H W 1"]:
    """A mask with half of the image in the hole: on all four sides (probability 1/2), or on one side (1/8 each).

    Saharia et al. 2022, section 5.3 and appendix B. Odd sizes: the hole of one side has the smaller half. Four sides:
    the known part is in the middle and has round(H/sqrt(2)) x round(W/sqrt(2)) pixels.

    Args:
      height, width: in pixels, at least 2 each.
    """
    rows, columns = round(height * math.sqrt(0.5)), round(width * math.sqrt(0.5))
    top, left = (height - rows) // 2, (width - columns) // 2
    # Of the known part: first row, row after the last, first column, column after the last.
    four_sides = (top, top + rows, left, left + columns)
    one_side = [
        (height // 2, height, 0, width),
        (0, height - height // 2, 0, width),
        (0, height, width // 2, width),
        (0, height, 0, width - width // 2),
    ]
    first_row, end_row, first_column, end_column = jnp.take(
        jnp.asarray([*one_side, *[four_sides] * 4], jnp.int32), jax.random.randint(key, (), 0, 8, jnp.int32), axis=0
    )
    row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    return (row >= first_row) & (row < end_row) & (column >= first_column) & (column < end_column)


def _stroke_factors(key: Key[Array, ""], height: int, width: int, num_hole: Int[Array, ""]) -> Float[Array, "H W"]:
    """The square of the factor by which the strokes must be wider to reach each pixel."""
    of_path, of_brush = jax.random.split(key)
    starts, ends = _zigzags(of_path, height, width)
    number, brush = jnp.split(jax.random.uniform(of_brush, (MAX_STROKES, 2), jnp.float32), 2, axis=1)
    drawn = jnp.arange(SEGMENTS[1])[None, :] < SEGMENTS[0] + jnp.floor(number * (SEGMENTS[1] - SEGMENTS[0] + 1))
    low, high = (share * math.sqrt(height * width) for share in BRUSH_WIDTH)
    widths = low + (high - low) * brush
    areas = jnp.where(drawn, widths * jnp.linalg.norm(ends - starts, axis=-1), 0.0)
    drawn = drawn & (jnp.cumsum(areas.reshape(-1)).reshape(areas.shape) - areas < num_hole)

    # One stroke after another: all at once would take 64 times the memory of the image.
    def draw(least: Float[Array, "H W"], stroke: tuple[Array, ...]) -> tuple[Float[Array, "H W"], None]:
        starts, ends, width_of_brush, drawn = stroke
        factors = _squared_distances(starts, ends, height, width) / jnp.square(0.5 * width_of_brush)
        factors = jnp.where(drawn[:, None, None], factors, jnp.inf)
        return jnp.minimum(least, jnp.min(factors, axis=0)), None

    nothing = jnp.full((height, width), jnp.inf, jnp.float32)
    return jax.lax.scan(draw, nothing, (starts, ends, widths[..., None, None], drawn))[0]


def _zigzags(key: Key[Array, ""], height: int, width: int) -> tuple[Float[Array, "N M 2"], Float[Array, "N M 2"]]:
    """Both ends (row, column) of the segments of each stroke: angles and lengths of Yu et al. 2019.

    Differs: each stroke has its own direction, and the border of the image reflects the vertices.
    """
    of_angle, of_length = jax.random.split(key)
    num, size = SEGMENTS[1], np.asarray([height, width], np.float32)[None, None]
    drawn = jax.random.uniform(of_angle, (MAX_STROKES, 3 + num), jnp.float32)
    start, direction, turn = drawn[:, None, :2] * size, 2 * math.pi * drawn[:, 2:3], 2 * drawn[:, 3:] - 1
    side = np.where(np.arange(num) % 2, -1, 1).astype(np.float32)[None, :]
    angle = direction + side * (2 * math.pi / 5 + turn * 2 * math.pi / 15)
    mean_length = math.hypot(height, width) / 8
    length = mean_length * (1 + 0.5 * jax.random.normal(of_length, (MAX_STROKES, num), jnp.float32))
    length = jnp.clip(length, 0.0, 2 * mean_length)
    steps = length[..., None] * jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    vertices = jnp.concatenate([start, start + jnp.cumsum(steps, axis=1)], axis=1)
    vertices = size - jnp.abs(jnp.mod(vertices, 2 * size) - size)
    return vertices[:, :-1], vertices[:, 1:]


def _squared_distances(
    starts: Float[Array, "N 2"], ends: Float[Array, "N 2"], height: int, width: int
) -> Float[Array, "N H W"]:
    """From each segment to the centre of each pixel."""
    row, column = _centres(height)[None, :, None], _centres(width)[None, None, :]
    from_row, from_column = (row - starts[:, 0, None, None]), (column - starts[:, 1, None, None])
    along_row, along_column = (ends - starts)[:, 0, None, None], (ends - starts)[:, 1, None, None]
    squared_length = jnp.maximum(jnp.square(along_row) + jnp.square(along_column), 1e-12)
    nearest = jnp.clip((from_row * along_row + from_column * along_column) / squared_length, 0.0, 1.0)
    return jnp.square(from_row - nearest * along_row) + jnp.square(from_column - nearest * along_column)


def _centres(size: int) -> Float[np.ndarray, "N"]:
    """Where the pixels are along an axis."""
    return np.arange(size, dtype=np.float32) + 0.5


def _rectangle_factors(key: Key[Array, ""], height: int, width: int) -> Float[Array, "H W"]:
    """By which factor the rectangles must be larger to reach each pixel."""
    drawn = jax.random.uniform(key, (MAX_RECTANGLES + 1, 4), jnp.float32)
    num, drawn = 1 + jnp.floor(MAX_RECTANGLES * drawn[0, 0]), drawn[1:, :, None, None]
    row, column = _centres(height)[None, :, None], _centres(width)[None, None, :]
    half, ratio = 0.5 + drawn[:, 2], jnp.exp2(drawn[:, 3] - 0.5)
    by_row = jnp.abs(row - drawn[:, 0] * height) / (half * ratio * height)
    by_column = jnp.abs(column - drawn[:, 1] * width) / (half / ratio * width)
    exists = np.arange(MAX_RECTANGLES)[:, None, None] < num
    return jnp.min(jnp.where(exists, jnp.maximum(by_row, by_column), jnp.inf), axis=0)
