"""The masks that a user names: a hole by its name, an image, an array, or a folder with a mask for each image."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from ddpm_jax.data.image_decoding import FORMATS, check_pixels, to_8_bit
from ddpm_jax.data.image_listing import ENDINGS, list_images, printable
from ddpm_jax.data.unreadable_images import reason_of
from ddpm_jax.diffusion.edits import make_mask
from ddpm_jax.editing.inputs import ARRAYS, NOT_READ, existing, large_images
from ddpm_jax.runtime.errors import UserError, arg, arguments_named


@dataclass(frozen=True)
class Masks:
    """The masks of images.

    Attributes:
      of: number of the image -> its mask, bool [H, W, 1], True = known (white).
      by_image: whether each image has its own; else one is that of all.
    """

    of: Callable[[int], np.ndarray]
    by_image: bool = False


def named_hole(hole: str, share: float | None, height: int, width: int) -> np.ndarray:
    """`make_mask`, with a `hole_share` of the pixels in the hole "random", by default a half.

    Raises:
      UserError: an unknown hole; a share outside (0, 1), or one of no pixel or of all.
    """
    if share is None:
        return make_mask(hole, height, width)
    if not 0 < share < 1:
        raise UserError(
            f"{arg('hole_share')} must be above 0 and below 1, the share of the pixels in the hole; got {share:g}"
        )
    mask = make_mask(hole, height, width, share=share)
    if mask.all() or not mask.any():
        pixels = "no pixel" if mask.all() else "every pixel"
        raise UserError(
            f"{arg('hole_share')} {share:g} is {pixels} of {height} x {width}: give at least "
            f"{1 / (height * width):.3g} and at most {1 - 1 / (height * width):.3g}"
        )
    return mask


def open_masks(path: str, files: Sequence[str], size: tuple[int, int], fit: bool) -> Masks:
    """The masks in files.

    Args:
      path: an image file or an .npy or .npz file, for all images or with one mask for each; or a folder with a file of
        the same name for each image, with any ending.
      files: of the images; see `inputs.Inputs`.
      size: (H, W) of the images.
      fit: an image file of another size is resized and cropped like an image, and 128 and more are known.

    Raises:
      UserError: no such file, another size, or other values than two; for a folder also when it is called.
    """
    place = existing("mask", path, "an image file, a folder, or an .npz or .npy file")
    if os.path.isdir(place):
        return _masks_of_folder(place, files, size, fit)
    if place.lower().endswith(ARRAYS):
        masks = _mask_array(place, size, fit)
        if len(masks) not in (1, len(files)):
            raise UserError(
                f"{arg('mask')} {path!r} must hold one mask, or one for each of the {len(files)} images; got "
                f"{len(masks)}"
            )
        return Masks(lambda number: masks[number if len(masks) > 1 else 0], by_image=len(masks) > 1)
    mask = read_mask(place, size, fit)
    return Masks(lambda number: mask)


def _masks_of_folder(place: str, files: Sequence[str], size: tuple[int, int], fit: bool) -> Masks:
    with arguments_named({"path": arg("mask")}.get):
        listing = list_images(place)
    found = _matched(place, files, listing.files)
    for mask in found:
        if mask in listing.irregular:
            raise UserError(f"{arg('mask')} {place!r}: {printable(mask)!r} is {listing.irregular[mask]}")
    return Masks(lambda number: read_mask(os.path.join(place, found[number]), size, fit), by_image=True)


def _matched(place: str, files: Sequence[str], masks: list[str]) -> list[str]:
    """The mask of each image: of the same full name; else `IMAGE.png` for the image `IMAGE`; else of the same name
    without ending, unless that is the mask of another image by its full name."""
    of_images, by_stem = set(files), {}
    for mask in masks:
        if mask not in of_images:
            by_stem.setdefault(_stem(mask), []).append(mask)
    all_masks, found, missing = set(masks), [], []
    for file in files:
        fitting = [file] if file in all_masks else by_stem.get(file) or by_stem.get(_stem(file), [])
        if len(fitting) > 1:
            raise UserError(
                f"{arg('mask')} {place!r} must have one file for {printable(file)!r}; it has "
                f"{', '.join(map(printable, fitting))}: keep one of them"
            )
        missing += [] if fitting else [file]
        found += fitting
    if missing:
        example = f"{missing[0]}.png" if missing[0].lower().endswith(ENDINGS) else f"{missing[0]}"
        raise UserError(
            f"{arg('mask')} {place!r} must have a file for each image; it has none for {len(missing)}, such as "
            f"{printable(missing[0])!r}: add {printable(example)!r}"
        )
    return found


def _stem(name: str) -> str:
    return os.path.splitext(name)[0] if name.lower().endswith(ENDINGS) else name


def read_mask(place: str, size: tuple[int, int], fit: bool) -> np.ndarray:
    """The mask in an image file, bool [H, W, 1]: white is known, black is the hole. Raises what `open_masks` does."""
    try:
        with large_images(), Image.open(place, formats=FORMATS) as image:
            check_pixels(image)
            if image.has_transparency_data:
                raise UserError(
                    f"{arg('mask')} {place!r} is transparent, which does not say what is known: save it without "
                    "transparency, white where the image is known and black in the hole"
                )
            upright = ImageOps.exif_transpose(image)
            grey = to_8_bit(upright, 1)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise UserError(f"{arg('mask')} {place!r} {NOT_READ}: {reason_of(error)}") from None
    height, width = size
    if fit:
        if (grey.height, grey.width) != size:
            grey = ImageOps.fit(grey, (width, height), Image.Resampling.BILINEAR)
        return (np.asarray(grey) > 127)[..., None]
    if (grey.height, grey.width) != size:
        raise UserError(
            f"{arg('mask')} {place!r} must be {height} x {width} pixels (height x width), the size of the run's "
            f"images; got {grey.height} x {grey.width}: give {arg('fit_mask')} to resize it as the images are"
        )
    # The values as they are stored: scaled, small ones of 16 bits would be black.
    values, white = (np.asarray(upright), 65535) if upright.mode.startswith("I") else (np.asarray(grey), 255)
    _check_two_values(place, values, f"0 (black, the hole) and {white} (white, known)", white, 255, 1)
    return (values > 0)[..., None]


def _mask_array(place: str, size: tuple[int, int], fit: bool) -> np.ndarray:
    """bool [N, H, W, 1] of an .npy or .npz file."""
    try:
        loaded = np.load(place, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            names = loaded.files
            if not names:
                raise ValueError("it holds no array")
            loaded = loaded["mask" if "mask" in names else names[0]]
    except Exception as error:  # NumPy parses the header as Python source: nearly anything on a damaged file
        raise UserError(f"{arg('mask')} {place!r} could not be read as an array: {reason_of(error)}") from None
    masks = loaded[..., 0] if loaded.ndim and loaded.shape[-1] == 1 else loaded
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.ndim != 3 or masks.shape[1:] != size or not len(masks):
        remedy = f": {arg('fit_mask')} resizes image files alone" if fit else ""
        raise UserError(
            f"{arg('mask')} {place!r} must be [H, W] or [N, H, W] with (H, W) = {size}, the size of the run's images; "
            f"got {list(loaded.shape)}{remedy}"
        )
    if masks.dtype.kind not in "biuf":
        raise UserError(f"{arg('mask')} {place!r} must hold numbers; got {masks.dtype}")
    if not fit or _has_two_values(masks, 1, 255):
        _check_two_values(place, masks, "0 (the hole) and 1 (known)", 1, 255)
        return (masks > 0)[..., None]
    low, high = masks.min(), masks.max()
    if not (0 <= low and 1 < high <= 255):  # or NaN
        raise UserError(
            f"{arg('mask')} {place!r} must have values in 0..255, of which 128 and more are known, or 0 and 1 only; "
            f"got {low:g}..{high:g}"
        )
    return (masks >= 128)[..., None]


def _has_two_values(values: np.ndarray, *of_known: int) -> bool:
    """Whether there is nothing but 0 and one of `of_known`."""
    found = set(np.unique(values).tolist())
    return any(found <= {0, known} for known in of_known)


def _check_two_values(place: str, values: np.ndarray, wanted: str, *of_known: int) -> None:
    if _has_two_values(values, *of_known):
        return
    found = np.unique(values).tolist()
    unknown = [value for value in found if value not in (0, *of_known)]
    other = (unknown or [value for value in found if value not in (0, of_known[0])])[0]
    raise UserError(
        f"{arg('mask')} {place!r} must have the values {wanted} only; got others, such as {other:g}: "
        f"give {arg('fit_mask')} to take 128 and more as known"
    )
