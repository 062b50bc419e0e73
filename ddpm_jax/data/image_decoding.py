"""Converts one image of any mode and size to uint8 [H, W, C]."""

import io
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import ExifTags, Image, ImageOps

# Recognised by content, not by file name. The list keeps Pillow from passing untrusted files to decoders that start
# other programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")

# Pillow's own limit against small files that unpack to gigabytes; Pillow only warns.
MAX_PIXELS = 89_478_485
# Images above this size are decoded one after the other in one thread. Several at once would need several gigabytes,
# and the system's allocator keeps the memory that a thread has freed for that thread.
_LARGE_PIXELS = 2**24
_large = ThreadPoolExecutor(1, thread_name_prefix="ddpm_jax-large")


def read_header(file: str | os.PathLike) -> None:
    """Raises Pillow's error if `file` does not begin like an image, ValueError if the image is too large."""
    with Image.open(file, formats=FORMATS) as image:
        if image.format != "JPEG":  # a JPEG may be decoded at an eighth of its size
            check_pixels(image)


def stored_shape(file: str | os.PathLike) -> tuple[int, int, int]:
    """(H, W, C) of an image in its upright orientation; C is 1 for grey, 3 for everything else."""
    with Image.open(file, formats=FORMATS) as image:
        check_pixels(image)
        upright = ImageOps.exif_transpose(image)
        return upright.height, upright.width, _stored_channels(image)


def header_shape(file: str | os.PathLike) -> tuple[int, int, int]:
    """`stored_shape` from the header alone, of an image of any size and of one that is damaged further on."""
    with Image.open(file, formats=FORMATS) as image:
        # That of the base class: of a PNG, Pillow's own decodes all pixels to look for EXIF data behind them.
        is_turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        sizes = (image.width, image.height) if is_turned else (image.height, image.width)
        return *sizes, _stored_channels(image)


def decode_image(file: str | os.PathLike | bytes, *, image_size: tuple[int, int], num_channels: int) -> np.ndarray:
    """The image in `file` (a path, or the encoded bytes), upright, resized to cover image_size, and centre-cropped.

    Of an animation, the first frame is used. EXIF orientation is applied. Transparent pixels show white behind them, as
    on a page (the colour stored under full transparency is arbitrary, mostly black). 16-bit grey is scaled,
    65535 -> 255. CMYK becomes RGB, colour becomes grey by the luma weights of ITU-R 601. Colour profiles are not
    applied.

    Args:
        file: a path or the bytes of a PNG, JPEG, WebP, BMP or GIF.
        image_size: (H, W) in pixels.
        num_channels: 1 or 3.

    Returns:
        uint8 [H, W, C].

    Raises:
        ValueError: the image is implausibly large.
        Exception: many types, from Pillow's decoders, if the file is damaged.
    """
    height, width = image_size
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
        # JPEG can be decoded at 1/2, 1/4, 1/8 of its size in a fraction of the time. We ask for at least twice the size
        # on both sides, in either orientation, so that the resize below still does the antialiasing.
        image.draft(None, (2 * max(height, width),) * 2)
        check_pixels(image)
        if image.width * image.height > _LARGE_PIXELS:
            fitted = _large.submit(_load, image, image_size, num_channels).result()
        else:
            fitted = _load(image, image_size, num_channels)
    return np.array(fitted).reshape(height, width, num_channels)


def fit_array(image: np.ndarray, *, image_size: tuple[int, int], num_channels: int) -> np.ndarray:
    """uint8 [h, w, c] -> uint8 [H, W, C]: covers image_size, centre-cropped, antialiased; 1 <-> 3 channels.

    Any number of channels is allowed if num_channels = c; then the channels are resized one by one.
    """
    if image.shape == (*image_size, num_channels):
        return image
    channels = image.shape[-1]
    if channels in (1, 3) and num_channels in (1, 3):
        picture = Image.fromarray(np.ascontiguousarray(image[:, :, 0] if channels == 1 else image))
        resized = _fit(picture.convert("L" if num_channels == 1 else "RGB"), image_size)
        return np.array(resized).reshape(*image_size, num_channels)
    if channels != num_channels:
        raise ValueError(f"{channels} channels cannot become {num_channels}")
    planes = [Image.fromarray(np.ascontiguousarray(image[:, :, c])) for c in range(channels)]
    return np.stack([np.array(_fit(plane, image_size)) for plane in planes], axis=-1)


def _stored_channels(image: Image.Image) -> int:
    is_grey = image.mode in ("1", "L") or image.mode.startswith("I")
    return 1 if is_grey and not image.has_transparency_data else 3


def check_pixels(image: Image.Image) -> None:
    """Raises ValueError if an opened image is too large to decode."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels; the most is {MAX_PIXELS:,}: make it smaller")


def _load(image: Image.Image, image_size: tuple[int, int], num_channels: int) -> Image.Image:
    """The image of an opened file in mode L or RGB and at image_size."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # a copy of a large image would need a lot of memory
    return _fit(to_8_bit(image, num_channels), image_size)


def to_8_bit(image: Image.Image, num_channels: int) -> Image.Image:
    """Converts any of Pillow's modes to L or RGB; 16-bit grey is scaled, 65535 -> 255."""
    if image.mode.startswith("I"):  # I;16, I;16B, and I, which older versions of Pillow use for 16-bit PNGs
        values = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        # Pillow's own conversion to L clips at 255, which would make such images white.
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    elif image.has_transparency_data:
        image = image.convert("RGBA") if image.mode != "RGBA" else image
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    elif image.mode not in ("L", "1", "RGB"):
        image = image.convert("RGB")
    mode = "L" if num_channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _fit(image: Image.Image, image_size: tuple[int, int]) -> Image.Image:
    """The centre crop with the aspect ratio of image_size, resized to that size in one resampling."""
    height, width = image_size
    if (image.height, image.width) == (height, width):
        return image
    scale = max(height / image.height, width / image.width)
    half_height, half_width = height / scale / 2, width / scale / 2
    box = (
        max(image.width / 2 - half_width, 0.0),
        max(image.height / 2 - half_height, 0.0),
        min(image.width / 2 + half_width, image.width),
        min(image.height / 2 + half_height, image.height),
    )
    # Pillow widens the bicubic kernel when it shrinks an image (antialiasing). A large image is first averaged over
    # whole boxes down to three times the size: visually the same, and several times faster.
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
