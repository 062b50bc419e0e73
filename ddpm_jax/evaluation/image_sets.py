"""The image sets that sample metrics compare: images from a file, a folder or a named data set, and their identity."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.data import ImageSource, make_source
from ddpm_jax.data.array_file import make_array
from ddpm_jax.data.image_folder import first_image_shape, make_folder
from ddpm_jax.data.wrapped_sources import RenamingSource
from ddpm_jax.runtime.errors import UserError, arguments_named
from ddpm_jax.runtime.resume_file import fingerprint

# (H, W, C) of data sets with a fixed size.
_NATIVE = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


@dataclass(frozen=True)
class ImageSet:
    """The first `num_images` images of a source.

    Attributes:
      facts: their identity as JSON: name, split, size, count, and a fingerprint of the content.
      identity: the part of the facts that is the same for any number of images.
    """

    source: ImageSource
    num_images: int
    facts: dict[str, Any]
    identity: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.source.image_shape

    def load(self, start: int, num_images: int) -> np.ndarray:
        """uint8 [at most num_images, H, W, C] from image `start` on."""
        return self.source.load(np.arange(start, min(start + num_images, self.num_images)))

    def __str__(self) -> str:
        height, width, channels = self.image_shape
        kind = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
        return f"{self.num_images} of {self.facts['name']} ({height}x{width}, {kind})"


def open_images(
    flag: str,
    given: str,
    *,
    image_size: tuple[int, int] | None = None,
    shape_of_others: tuple[int, int, int] | None = None,
    data_path: str = "",
    num_images: int = 0,
) -> ImageSet:
    """The images that the user named.

    Args:
      flag: the flag that named them, for error messages.
      given: an `.npz` or `.npy` file of uint8 [N, H, W, C]; a folder of images; or NAME:SPLIT, a data set.
      image_size: (H, W); None: that of an array, else that of `shape_of_others`, else that of a folder's first image
        or of the data set.
      shape_of_others: (H, W, C) of the images to compare with.
      data_path: the folder of the original files of a named data set.
      num_images: use the first `num_images`; 0: all.

    Raises:
      UserError: nothing with that name, or fewer images than asked for.
    """
    is_path = os.path.exists(os.path.expanduser(given))
    names = {
        "path": flag if is_path else "--data_path",
        "path=DIR": "--data_path=DIR",
        "split": f"the split of {flag}",
        "name": f"the name in {flag}",
        "image_size": "--image_size",
        "data_dir": "TFDS_DATA_DIR",
    }
    shape = shape_of_others
    with arguments_named(names.get):
        if os.path.isdir(os.path.expanduser(given)):
            shape = shape or first_image_shape(given)
            source = make_folder(
                split="all", image_size=image_size or shape[:2], num_channels=shape[2], path=given
            )
            identity = {"name": given, "files": _files_fingerprint(Path(os.path.expanduser(given)))}
        elif os.path.isfile(os.path.expanduser(given)):
            source = make_array(split="all", image_size=image_size, num_channels=None, path=given)
            identity = {"name": given, "files": _files_fingerprint(Path(os.path.expanduser(given)))}
        elif ":" in given:
            name, _, split = given.partition(":")
            if not (shape or image_size or name in _NATIVE):
                raise UserError(f"{flag}={given} needs the size of the images: give --image_size=H,W")
            shape = shape or _NATIVE.get(name) or (*image_size, 3)
            source = make_source(
                name=name, split=split, image_size=image_size or shape[:2], num_channels=shape[2], path=data_path
            )
            identity = {"name": f"{name}:{split}"}
        else:
            raise UserError(
                f"{flag} must be an .npz or .npy file, a folder of images, or a data set and its split such as "
                f"digits:train; there is no {given!r}"
            )
    return image_set(flag, RenamingSource(source, names.get), identity, num_images)


def image_set(flag: str, source: ImageSource, identity: dict[str, Any], num_images: int = 0) -> ImageSet:
    """The first `num_images` (0: all) images of a source; `flag` is for error messages.

    Raises:
      UserError: fewer images than asked for.
    """
    if num_images > len(source):
        raise UserError(f"{flag} has {len(source)} images; got a request for the first {num_images} of them")
    num_images = num_images or len(source)
    # Some images from all over the set are hashed, so that changed contents under the same name are noticed.
    looked_at = source.load(np.unique(np.linspace(0, num_images - 1, 64).astype(np.int64)))
    facts = identity | {
        "num_images": num_images,
        "image_shape": list(source.image_shape),
        "pictures_fingerprint": fingerprint(looked_at),
    }
    return ImageSet(source, num_images, facts, identity)


def _files_fingerprint(path: Path) -> str:
    """A hash of the names, sizes and times of a file, or of all files in a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    stats = [(file.relative_to(path.parent).as_posix(), file.stat()) for file in files]
    return fingerprint("\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats))
