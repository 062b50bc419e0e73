"""The images that a user names: a file, a folder, or an array file."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ddpm_jax.data.array_file import make_array
from ddpm_jax.data.image_decoding import decode_image, header_shape
from ddpm_jax.data.image_listing import Listing, list_images, printable
from ddpm_jax.data.unreadable_images import reason_of
from ddpm_jax.editing.result_names import result_names
from ddpm_jax.runtime.errors import UserError, arg, arguments_named

ARRAYS = (".npz", ".npy")
NOT_READ = "could not be read as an image"  # before the reason, in messages
_KINDS = {1: "grey", 3: "colour"}


@dataclass(frozen=True)
class Inputs:
    """Images of one size by number; numbers are kept by images that cannot be read.

    Attributes:
      names: of the results; see `result_names.result_names`.
      files: the names of the image files, with folders, separated by "/"; of an array the names of the results.
      sources: the files with their sizes and times of change, by which a job knows them again.
      load: number -> uint8 [H, W, C]; raises UserError for a damaged file.
      notes: lines about what was found.
    """

    names: tuple[str, ...]
    files: tuple[str, ...]
    sources: tuple[str, ...]
    load: Callable[[int], np.ndarray]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


def open_inputs(name: str, path: str, shape: tuple[int, int, int], num_results: int = 1) -> Inputs:
    """The images of `path`, resized and cropped as training data are (`image_decoding.decode_image`).

    Args:
      name: the argument that `path` is, for error messages.
      path: an image file, a folder of them, or an .npz or .npy file of uint8 [N, H, W, C].
      shape: (H, W, C) to load them as, C = 1 or 3.
      num_results: of each image, for the names of the results.

    Raises:
      UserError: nothing there that can be read.
    """
    place = existing(name, path, "an image file, a folder of images, or an .npz or .npy file")
    with arguments_named({"path": arg(name), "num_channels": "the number of channels"}.get):
        if os.path.isdir(place):
            return _folder(place, shape, num_results)
        if place.lower().endswith(ARRAYS):
            return _array(place, shape)
    return _file(name, place, shape, num_results)


def existing(name: str, path: str, wanted: str) -> str:
    """The file or folder that the argument `name` is.

    Raises:
      UserError: there is none, or it is something else, such as a pipe, which may be waited for without end.
    """
    place = os.path.expanduser(path)
    if not path or not os.path.exists(place):
        raise UserError(f"{arg(name)} must name {wanted}; there is no {path!r}")
    if not os.path.isdir(place) and not os.path.isfile(place):
        raise UserError(f"{arg(name)} must name {wanted}; {path!r} is a pipe or a device: save what it gives as a file")
    return place


def _folder(place: str, shape: tuple[int, int, int], num_results: int) -> Inputs:
    listing = list_images(place)

    def load(number: int) -> np.ndarray:
        return _decoded(printable(listing.files[number]), lambda: listing.openable(number), shape)

    sources = tuple(f"{printable(file)} {_stamp(os.path.join(place, file))}" for file in listing.files)
    notes = (*listing.notes(), *_notes_of_sizes(listing, shape))
    return Inputs(result_names(listing.files, num_results), tuple(listing.files), sources, load, notes)


def _notes_of_sizes(listing: Listing, shape: tuple[int, int, int]) -> Iterator[str]:
    """Lines about images of other sizes and channels than `shape`, from their headers."""
    count, first = Counter(), {}
    with large_images():
        for number, file in enumerate(listing.files):
            try:
                changes = _changes(header_shape(listing.openable(number)), shape)
            except Exception:  # a damaged file; it is reported when it is read
                continue
            for kind, text in changes.items():
                count[kind] += 1
                first.setdefault(kind, f"{printable(file)} ({text})")
    for kind, number in count.items():
        yield f"{number} of {len(listing.files)} images {'are' if number > 1 else 'is'} {kind}, such as {first[kind]}"


def _file(name: str, place: str, shape: tuple[int, int, int], num_results: int) -> Inputs:
    file = os.path.basename(place)
    image = _decoded(f"{arg(name)} {place!r}", lambda: place, shape)
    with large_images():
        changes = _changes(header_shape(place), shape)
    notes = (f"{printable(file)}: {', '.join(changes.values())}",) if changes else ()
    sources = (f"{printable(file)} {_stamp(place)}",)
    return Inputs(result_names([file], num_results), (file,), sources, lambda number: image, notes)


def _changes(found: tuple[int, int, int], shape: tuple[int, int, int]) -> dict[str, str]:
    """What is done to an image of one shape so that it has another: in short, and with its sizes."""
    changes = {}
    if found[:2] != shape[:2]:
        resized = f"resized and cropped from {found[0]} x {found[1]} to {shape[0]} x {shape[1]}"
        changes[f"resized and cropped to {shape[0]} x {shape[1]}"] = resized
    if found[2] != shape[2]:
        changes[f"read as {_KINDS[shape[2]]}"] = f"{_KINDS[found[2]]} is read as {_KINDS[shape[2]]}"
    return changes


def _array(place: str, shape: tuple[int, int, int]) -> Inputs:
    with arguments_named({"dtype='float32'": "no edit takes them"}.get):  # the setting of a data set
        source = make_array(split="all", image_size=shape[:2], num_channels=shape[2], path=place)
    digits = len(str(len(source) - 1))
    names = tuple(f"{number:0{digits}}" for number in range(len(source)))
    about = f"{printable(os.path.basename(place))} {_stamp(place)}"
    return Inputs(names, names, (about,), lambda number: source.load(np.array([number]))[0], source.notes)


@contextmanager
def large_images() -> Iterator[None]:
    """Keeps Pillow from warning of large images: what is too large for us has a message of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _decoded(what: str, openable: Callable[[], str], shape: tuple[int, int, int]) -> np.ndarray:
    try:
        with large_images():
            return decode_image(openable(), image_size=shape[:2], num_channels=shape[2])
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise UserError(f"{what} {NOT_READ}: {reason_of(error)}") from None


def _stamp(path: str) -> str:
    """The size of a file in bytes, and the time of its last change."""
    try:
        found = os.stat(path)
    except OSError:
        return "-"
    return f"{found.st_size} {found.st_mtime_ns}"
