"""Writes batches as image files: a grid, a strip of a reverse process over time, an animation; and arrays as .npz.

Images are uint8 [N, H, W, C] with C = 1 (grey) or 3 (RGB); with more channels, the first 3 are shown.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddpm_jax.runtime.atomic_files import replace_file
from ddpm_jax.runtime.errors import UserError

# In pixels of the output image.
_CELL_SIDE = 64  # each image is enlarged to about this
_MAX_SIDE = 1200  # but the whole grid to at most this
_GAP = 5  # between and around the images
_PAPER, _INK = 52, 235  # brightness of separators and text, distinct from black and white pixels
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}


def image_grid(images: np.ndarray, num_columns: int | None = None, scale: int | None = None,
               title: str | None = None) -> np.ndarray:
    """The images of a batch, arranged in a grid, as one image.

    Args:
      images: uint8 [N, H, W, C].
      num_columns: images per row; None makes the grid about as high as wide.
      scale: the side of the square that a pixel becomes, in pixels; None enlarges small images so that they are
        easy to see.
      title: a line of text above; None for none.

    Returns:
      uint8 [height, width] for grey images, else [height, width, 3].

    Raises:
      UserError: `images` is empty, not uint8, not [N, H, W, C], or has 2 channels; or `num_columns` or
        `scale` is not positive.
    """
    images = _shown_channels(images)
    num_images, height, width, _ = images.shape
    if num_columns is None:
        num_columns = min(math.ceil(math.sqrt(num_images * height / width)), num_images)
    _check_positive("num_columns", num_columns)
    num_rows = math.ceil(num_images / num_columns)
    scale = _scale(height, width, num_rows, num_columns, scale)
    picture = _tile(images, num_rows, num_columns, scale)
    if title is None:
        return picture
    return np.concatenate([_text_row(picture, [title], picture.shape[1]), picture])


def grid_of_groups(parts: Mapping[str, np.ndarray], num_groups: int | None = None) -> np.ndarray:
    """A grid in which the images that belong together are side by side, with the names of the parts above.

    Args:
      parts: name -> uint8 [N, H, W, C]; grey images beside colour become colour.
      num_groups: per row; None makes the grid about as high as wide.

    Returns:
      uint8 [height, width] or [height, width, 3], as `image_grid`.

    Raises:
      UserError: as `image_grid`.
    """
    arrays = [_shown_channels(images) for images in parts.values()]
    num_channels = max(images.shape[-1] for images in arrays)
    arrays = [np.broadcast_to(images, (*images.shape[:-1], num_channels)) for images in arrays]
    num_images, height, width, _ = arrays[0].shape
    if num_groups is None:
        num_groups = min(math.ceil(math.sqrt(num_images * height / (len(parts) * width))), num_images)
    cells = np.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])
    num_columns = num_groups * len(parts)
    picture = image_grid(cells, num_columns)
    column = (picture.shape[1] - _GAP) // num_columns
    return np.concatenate([_text_row(picture, [*parts] * num_groups, column), picture])


def class_columns(num_images: int, num_classes: int) -> int | None:
    """Columns of a grid of classes that are drawn in turn, such that each column has one class; None: as usual.

    As many columns as classes, or a multiple of that which makes the grid about as high as wide.
    """
    square = math.ceil(math.sqrt(num_images))
    if not 1 < num_classes <= min(2 * square, num_images):
        return None
    return num_classes * max(1, round(square / num_classes))


def save_grid(path: str | os.PathLike, images: np.ndarray, num_columns: int | None = None,
              scale: int | None = None, title: str | None = None) -> None:
    """Writes `image_grid(images, ...)` to `path`; the file extension decides the format.

    Raises:
      UserError: an unknown format, or an error of `image_grid`.
    """
    save_picture(path, image_grid(images, num_columns, scale, title))


def save_strip(path: str | os.PathLike, frames: np.ndarray, labels: Sequence[str],
               scale: int | None = None) -> None:
    """Writes a batch over time: one row per image, one column per moment, such as x_T on the left, x_0 on the right.

    Args:
      path: the file; its extension decides the format.
      frames: uint8 [K, N, H, W, C], K moments of N images.
      labels: K texts above the columns, such as `t=999`.
      scale: as in `image_grid`.

    Raises:
      UserError: not K labels, an unknown format, or an error of `image_grid`.
    """
    frames = _check_frames(frames)
    num_moments, num_images = frames.shape[:2]
    if len(labels) != num_moments:
        raise UserError(f"a strip needs one label for each of its {num_moments} columns; got {len(labels)}")
    rows = np.swapaxes(frames, 0, 1).reshape(num_images * num_moments, *frames.shape[2:])
    picture = image_grid(rows, num_moments, scale)
    column = (picture.shape[1] - _GAP) // num_moments
    save_picture(path, np.concatenate([_text_row(picture, labels, column), picture]))


def save_gif(path: str | os.PathLike, frames: np.ndarray, duration_ms: int = 60, hold_last_ms: int = 2000,
             num_columns: int | None = None, scale: int | None = None) -> None:
    """Writes an endless animation of a batch over time; each frame is a grid.

    Args:
      path: the .gif file.
      frames: uint8 [K, N, H, W, C], K moments of N images.
      duration_ms: how long a frame is shown, in milliseconds, at least 20 (browsers slow down shorter frames).
      hold_last_ms: how long the last frame is shown, in milliseconds.
      num_columns: as in `image_grid`.
      scale: as in `image_grid`.

    Raises:
      UserError: a shorter duration, another format than GIF, or an error of `image_grid`.
    """
    if Path(path).suffix.lower() != ".gif":
        raise UserError(f"an animation must be a .gif file; got {str(path)!r}")
    if min(duration_ms, hold_last_ms) < 20:
        raise UserError(f"a GIF frame must be shown for at least 20 ms; got {min(duration_ms, hold_last_ms)}")
    frames = _check_frames(frames)
    pages = [Image.fromarray(image_grid(images, num_columns, scale)) for images in frames]
    if pages[0].mode == "RGB":  # one palette per frame, because noise and images share few colours
        pages = [page.quantize(256) for page in pages]
    durations = [duration_ms] * (len(pages) - 1) + [hold_last_ms]
    with replace_file(path) as file:
        pages[0].save(file, "GIF", save_all=True, append_images=pages[1:], duration=durations, loop=0)


def can_be_drawn(images: np.ndarray) -> bool:
    """Whether a batch is one of images that `image_grid` draws: uint8 [N, H, W, C], C not 2."""
    return images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] != 2


def save_npz(path: str | os.PathLike, images: np.ndarray, condition: Mapping[str, np.ndarray] | None = None) -> None:
    """Writes images, uint8 [N, H, W, C], or other arrays [N, ...] as `arr_0`, "label" [N] as `arr_1` (the names that
    common evaluation tools read), and other entries of the condition, [N, ...] each, by their names.

    Raises:
      UserError: the file name does not end in .npz.
    """
    if Path(path).suffix != ".npz":
        raise UserError(f"an array file must end in .npz; got {str(path)!r}")
    images = np.asarray(images)
    with replace_file(path) as file:
        others = dict(condition or {})
        labels = [np.asarray(others.pop("label"), np.int64)] if "label" in others else []
        np.savez(file, images, *labels, **others)


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise UserError(f"images must be uint8 [N, H, W, C]; got {images.dtype} {list(images.shape)}")


def _check_frames(frames: np.ndarray) -> np.ndarray:
    """`frames` as an array, checked to be uint8 [K, N, H, W, C] with K > 0."""
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 5 or not frames.size:
        raise UserError(f"frames must be uint8 [K, N, H, W, C]; got {frames.dtype} {list(frames.shape)}")
    return frames


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{name} must be at least 1; got {value}")


def _shown_channels(images: np.ndarray) -> np.ndarray:
    """`images` with the 1 or 3 channels that an image file can have."""
    images = np.asarray(images)
    _check_images(images)
    num_channels = images.shape[-1]
    if not images.size:
        raise UserError(f"an image grid needs at least one image; got an array of shape {list(images.shape)}")
    if num_channels == 2:
        raise UserError("an image grid needs images with 1 channel (grey), or 3 or more (RGB first); got 2")
    return images[..., :3]


def _scale(height: int, width: int, num_rows: int, num_columns: int, scale: int | None) -> int:
    """The enlargement factor of a pixel: `scale` if given, else so that the cells are easy to see."""
    if scale is None:
        wanted = math.ceil(_CELL_SIDE / min(height, width))
        fitting = min((_MAX_SIDE - _GAP * (num_rows + 1)) // (num_rows * height),
                      (_MAX_SIDE - _GAP * (num_columns + 1)) // (num_columns * width))
        scale = max(min(wanted, fitting), 1)
    _check_positive("scale", scale)
    return scale


def _tile(images: np.ndarray, num_rows: int, num_columns: int, scale: int) -> np.ndarray:
    """The grid itself: [height, width] or [height, width, 3]."""
    num_images, height, width, num_channels = images.shape
    cell_height, cell_width = height * scale + _GAP, width * scale + _GAP
    shape = (num_rows * cell_height + _GAP, num_columns * cell_width + _GAP, num_channels)
    picture = np.full(shape, _PAPER, np.uint8)
    for index in range(num_images):
        top = index // num_columns * cell_height + _GAP
        left = index % num_columns * cell_width + _GAP
        # By repetition: with interpolation, an 8x8 digit would look better than it is.
        enlarged = images[index].repeat(scale, axis=0).repeat(scale, axis=1)
        picture[top : top + height * scale, left : left + width * scale] = enlarged
    return picture[..., 0] if num_channels == 1 else picture


def _text_row(picture: np.ndarray, texts: Sequence[str], column: int) -> np.ndarray:
    """A row as wide as `picture`, with each text centred in its `column` pixels."""
    size = 15
    font = ImageFont.load_default(size)
    while size > 8 and max(font.getlength(text) for text in texts) > column - 2:
        size -= 1
        font = ImageFont.load_default(size)
    row = Image.new("L", (picture.shape[1], size + 10), _PAPER)
    draw = ImageDraw.Draw(row)
    for index, text in enumerate(texts):
        draw.text((_GAP / 2 + (index + 0.5) * column, row.height / 2 + 1), text, _INK, font, anchor="mm")
    row = np.asarray(row)
    return row if picture.ndim == 2 else np.repeat(row[..., None], 3, axis=-1)


def save_picture(path: str | os.PathLike, picture: np.ndarray) -> None:
    """Writes one image, uint8 [height, width] or [height, width, 3]; the file extension decides the format.

    Raises:
      UserError: an unknown format.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise UserError(f"an image file must end in one of {sorted(_FORMATS)}; got {str(path)!r}")
    with replace_file(path) as file:
        Image.fromarray(picture).save(file, _FORMATS[suffix])
