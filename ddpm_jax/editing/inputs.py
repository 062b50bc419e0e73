"""The images and masks that a user names: a file, a folder, or an array file."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from ddpm_jax.data.array_file import make_array
from ddpm_jax.data.image_decoding import decode_image, stored_shape
from ddpm_jax.data.image_listing import ENDINGS, list_images, printable
from ddpm_jax.data.unreadable_images import reason_of
from ddpm_jax.diffusion.edits import make_mask
from ddpm_jax.runtime.errors import UserError, arg, arguments_named

_ARRAYS = (".npz", ".npy")


@dataclass(frozen=True)
class Inputs:
    """Images of one size by number; numbers are kept by images that cannot be read.

    Attributes:
      names: of the results, without an ending; unique; may have folders, separated by "/".
      sources: the files with their sizes and times of change, by which a job knows them again.
      load: number -> uint8 [H, W, C]; raises UserError for a damaged file.
      notes: lines about what was found.
    """

    names: tuple[str, ...]
    sources: tuple[str, ...]
    load: Callable[[int], np.ndarray]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


def open_inputs(name: str, path: str, shape: tuple[int, int, int]) -> Inputs:
    """The images of `path`, resized and cropped as training data are (`image_decoding.decode_image`).

    Args:
      name: the argument that `path` is, for error messages.
      path: an image file, a folder of them, or an .npz or .npy file of uint8 [N, H, W, C].
      shape: (H, W, C) to load them as, C = 1 or 3.

    Raises:
      UserError: nothing there that can be read.
    """
    place = os.path.expanduser(path)
    if not path or not os.path.exists(place):
        raise UserError(
            f"{arg(name)} must name an image file, a folder of images, or an .npz or .npy file; there is no {path!r}"
        )
    with arguments_named({"path": name, "num_channels": "the number of channels"}.get):
        if os.path.isdir(place):
            return _folder(place, shape)
        if place.lower().endswith(_ARRAYS):
            return _array(place, shape)
    return _file(name, place, shape)


def _folder(place: str, shape: tuple[int, int, int]) -> Inputs:
    listing = list_images(place)

    def load(number: int) -> np.ndarray:
        return _decoded(printable(listing.files[number]), lambda: listing.openable(number), shape)

    sources = tuple(f"{printable(file)} {_stamp(os.path.join(place, file))}" for file in listing.files)
    return Inputs(_names(listing.files), sources, load, listing.notes())


def _file(name: str, place: str, shape: tuple[int, int, int]) -> Inputs:
    file = os.path.basename(place)
    image = _decoded(f"{arg(name)} {place!r}", lambda: place, shape)
    height, width, channels = stored_shape(place)
    kinds = {1: "grey", 3: "colour"}
    changes = []
    if (height, width) != shape[:2]:
        changes.append(f"resized and cropped from {height} x {width} to {shape[0]} x {shape[1]}")
    if channels != shape[2]:
        changes.append(f"{kinds[channels]} is read as {kinds[shape[2]]}")
    notes = (f"{printable(file)}: {', '.join(changes)}",) if changes else ()
    return Inputs(_names([file]), (f"{printable(file)} {_stamp(place)}",), lambda number: image, notes)


def _array(place: str, shape: tuple[int, int, int]) -> Inputs:
    source = make_array(split="all", image_size=shape[:2], num_channels=shape[2], path=place)
    digits = len(str(len(source) - 1))
    names = tuple(f"{number:0{digits}}" for number in range(len(source)))
    about = f"{printable(os.path.basename(place))} {_stamp(place)}"
    return Inputs(names, (about,), lambda number: source.load(np.array([number]))[0], source.notes)


def _decoded(what: str, openable: Callable[[], str], shape: tuple[int, int, int]) -> np.ndarray:
    try:
        return decode_image(openable(), image_size=shape[:2], num_channels=shape[2])
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise UserError(f"{what} could not be read as an image: {reason_of(error)}") from None


def _stamp(path: str) -> str:
    """The size of a file in bytes, and the time of its last change."""
    try:
        found = os.stat(path)
    except OSError:
        return "-"
    return f"{found.st_size} {found.st_mtime_ns}"


def _names(files: list[str]) -> tuple[str, ...]:
    """The names without their endings, unless two would be the same."""
    stems = [os.path.splitext(file)[0] for file in files]
    count = {"grid": 1}  # the name of the job's own image
    for stem in stems:
        count[stem.lower()] = count.get(stem.lower(), 0) + 1
    return tuple(stem if count[stem.lower()] == 1 else file for stem, file in zip(stems, files, strict=True))


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


def open_masks(path: str, names: tuple[str, ...], size: tuple[int, int], fit: bool) -> Callable[[int], np.ndarray]:
    """number of the image -> its mask, bool [H, W, 1], True = known (white).

    Args:
      path: an image file or an .npy or .npz file, for all images or with one mask for each; or a folder with a file of
        the same name for each image.
      names: of the images.
      size: (H, W) of the images.
      fit: a mask of another size is resized and cropped like an image, and grey is known from 128 on.

    Raises:
      UserError: no such file, another size, or other values than two; for a folder also when it is called.
    """
    place = os.path.expanduser(path)
    if not path or not os.path.exists(place):
        raise UserError(f"{arg('mask')} must name an image file, a folder or an .npy file; there is no {path!r}")
    if os.path.isdir(place):
        return _masks_of_folder(place, names, size, fit)
    if place.lower().endswith(_ARRAYS):
        masks = _mask_array(place, size)
        if len(masks) not in (1, len(names)):
            raise UserError(
                f"{arg('mask')} {path!r} must hold one mask, or one for each of the {len(names)} images; got "
                f"{len(masks)}"
            )
        return lambda number: masks[number if len(masks) > 1 else 0]
    mask = read_mask(place, size, fit)
    return lambda number: mask


def _masks_of_folder(
    place: str, names: tuple[str, ...], size: tuple[int, int], fit: bool
) -> Callable[[int], np.ndarray]:
    with arguments_named({"path": "mask"}.get):
        files = {os.path.splitext(file)[0]: file for file in list_images(place).files}
    missing = [name for name in names if _stem(name) not in files]
    if missing:
        raise UserError(
            f"{arg('mask')} {place!r} must have a file for each image; it has none for {len(missing)}, such as "
            f"{printable(missing[0])!r}"
        )
    return lambda number: read_mask(os.path.join(place, files[_stem(names[number])]), size, fit)


def _stem(name: str) -> str:
    return os.path.splitext(name)[0] if name.lower().endswith(ENDINGS) else name


def read_mask(place: str, size: tuple[int, int], fit: bool) -> np.ndarray:
    """The mask in an image file, bool [H, W, 1]: white is known, black is the hole. Raises what `open_masks` does."""
    try:
        stored_shape(place)  # for its checks
        with Image.open(place) as image:
            if image.has_transparency_data:
                raise UserError(
                    f"{arg('mask')} {place!r} is transparent, which does not say what is known: save it without "
                    "transparency, white where the image is known and black in the hole"
                )
            grey = ImageOps.exif_transpose(image).convert("L")
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise UserError(f"{arg('mask')} {place!r} could not be read as an image: {reason_of(error)}") from None
    height, width = size
    if (grey.height, grey.width) != size:
        if not fit:
            raise UserError(
                f"{arg('mask')} {place!r} must be {height} x {width} pixels (height x width), the size of the run's "
                f"images; got {grey.height} x {grey.width}: give {arg('fit_mask')} to resize it as the images are"
            )
        grey = ImageOps.fit(grey, (width, height), Image.Resampling.BILINEAR)
    values = np.asarray(grey)
    if not fit:
        _check_two_values(place, values, "0 (black, the hole) and 255 (white, known)", (0, 255), (0, 1))
        return (values > 0)[..., None]
    return (values > 127)[..., None]


def _mask_array(place: str, size: tuple[int, int]) -> np.ndarray:
    """bool [N, H, W, 1] of an .npy or .npz file."""
    try:
        loaded = np.load(place, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            names = loaded.files
            loaded = loaded["mask" if "mask" in names else names[0]]
    except Exception as error:  # NumPy parses the header as Python source: nearly anything on a damaged file
        raise UserError(f"{arg('mask')} {place!r} could not be read as an array: {reason_of(error)}") from None
    masks = loaded[..., 0] if loaded.ndim and loaded.shape[-1] == 1 else loaded
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.ndim != 3 or masks.shape[1:] != size or not len(masks):
        raise UserError(
            f"{arg('mask')} {place!r} must be [H, W] or [N, H, W] with (H, W) = {size}, the size of the run's images; "
            f"got {list(loaded.shape)}"
        )
    if masks.dtype.kind not in "biuf":
        raise UserError(f"{arg('mask')} {place!r} must hold numbers; got {masks.dtype}")
    _check_two_values(place, masks, "0 (the hole) and 1 (known)", (0, 1), (0, 255))
    return (masks > 0)[..., None]


def _check_two_values(place: str, values: np.ndarray, wanted: str, *allowed: tuple[int, int]) -> None:
    found = np.unique(values)
    if not any(set(found.tolist()) <= set(pair) for pair in allowed):
        other = next(value for value in found.tolist() if value not in (0, 1, 255))
        raise UserError(
            f"{arg('mask')} {place!r} must have the values {wanted} only; got others, such as {other:g}: "
            f"give {arg('fit_mask')} to take 128 and more as known"
        )
