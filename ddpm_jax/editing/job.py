"""A folder of results: which are done, so that an interrupted job continues, and a grid of the first ones."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_jax.data.image_listing import is_hidden, printable
from ddpm_jax.editing.same_job import difference
from ddpm_jax.runtime.atomic_files import check_folder, replace_file
from ddpm_jax.runtime.errors import UserError, arg
from ddpm_jax.runtime.image_files import save_strip
from ddpm_jax.runtime.json_files import read_json

SETTINGS_FILE, GRID_FILE = "settings.json", "grid.png"
MAX_GRID = 8  # images and results of each in the grid
_PART = len("..4194304.part")  # what the name of a file has more until it is complete; see `replace_file`
_PAPER = 52  # brightness of what an image smaller than the results leaves free


def check_out(folder: str, images: str | None) -> None:
    """Raises UserError for no folder, and for one inside the folder of images, where results would be images."""
    if not folder:
        raise UserError(f"{arg('out')} must name a folder; got '': for the current one give {arg('out=.')}")
    if not images or not os.path.isdir(os.path.expanduser(images)):
        return
    place, inputs = (Path(os.path.realpath(os.path.expanduser(path))) for path in (folder, images))
    if place == inputs or not place.is_relative_to(inputs):
        return
    if not any(map(is_hidden, place.relative_to(inputs).parts)):  # hidden ones are not listed
        raise UserError(
            f"{arg('out')} must not be inside the folder of {arg('images')}, {images!r}, where the results would be "
            f"taken for images; got {folder!r}: give another"
        )


def number_end(k: int, num_results: int) -> str:
    """What the name of result k of an image ends with: its number, if there are several."""
    return f"_{k:0{len(str(num_results - 1))}}" if num_results > 1 else ""


class EditJob:
    """The results of one command in a folder, a PNG each, written one by one; the same command continues.

    Args:
      folder: a new or empty one, or one of the same job.
      facts: everything that the results depend on, as JSON; also shown to people.
      names: of the images; see `inputs.Inputs`.
      num_results: of each image.

    Raises:
      UserError: the folder or one of the results cannot be written, or it holds something else.
    """

    def __init__(self, folder: str, facts: Mapping[str, object], names: tuple[str, ...], num_results: int):
        self.folder, self._names, self._num_results = folder, names, num_results
        self._settings = Path(folder, SETTINGS_FILE)
        facts = json.loads(json.dumps(facts))  # as it will be read
        self.continues = self._settings.exists()
        if self.continues:
            self._check_same(facts)
        elif os.path.isdir(folder) and os.listdir(folder):
            raise UserError(f"{arg('out')} must be a new or empty folder; {folder} holds other files: give another")
        self._check_paths()
        self._made_folder = not os.path.isdir(folder)
        check_folder("--out", folder)
        if not self.continues:
            with replace_file(self._settings, "w") as file:
                json.dump(facts, file, indent=2)

    def _check_same(self, facts: dict) -> None:
        try:
            found = read_json(self._settings, dict)
        except (OSError, ValueError) as error:
            raise UserError(f"{self._settings} cannot be read ({error}): give another {arg('out')}") from None
        other = difference(found, facts)
        if other is not None:
            raise UserError(
                f"{arg('out')} {self.folder} holds results of another {other}; give another folder, or delete this one"
            )

    def _check_paths(self) -> None:
        """Raises UserError for a result that the system would not write; else this would show only after drawing."""
        most_name, most_path = _limits(self.folder)
        wanted = [self.path_of(number) for number in range(len(self._names) * self._num_results)]
        for path in wanted:
            if len(os.fsencode(path.name)) + _PART > most_name or len(os.fsencode(path)) + _PART >= most_path:
                raise UserError(
                    f"{arg('out')} {self.folder}: the name of the result {printable(path.name)!r} is too long to be "
                    f"written: give the image a shorter name, or {arg('out')} a shorter path"
                )
        if not self.continues:  # the folder is empty
            return
        for path in [Path(self.folder, GRID_FILE), *wanted]:
            if path.is_dir():
                raise UserError(f"{_shown(path)} must be a file, a result; it is a folder: give another {arg('out')}")
        for path in {parent for name in self._names for parent in Path(self.folder, name).parents}:
            if path.exists() and not path.is_dir():
                raise UserError(f"{_shown(path)} must be a folder of results; it is a file: give another {arg('out')}")

    def path_of(self, number: int) -> Path:
        """The file of a result; several of an image have their numbers in their names."""
        image, k = divmod(number, self._num_results)
        return Path(self.folder, f"{self._names[image]}{number_end(k, self._num_results)}.png")

    def is_done(self, number: int) -> bool:
        """Whether a result is written and can be read: a disk that was full or removed may leave a part of it."""
        path = self.path_of(number)
        if not path.is_file():
            return False
        try:
            with Image.open(path) as image:
                image.verify()  # the checksums of a PNG
        except Exception:  # Pillow raises nearly anything on a damaged file
            return False
        return True

    def give_up(self) -> None:
        """Leaves the folder to other jobs, after a failure before the first result."""
        if not self.continues:
            self._settings.unlink(missing_ok=True)
            if self._made_folder and not os.listdir(self.folder):
                os.rmdir(self.folder)

    def write(self, number: int, image: np.ndarray) -> None:
        """Writes a result, uint8 [H, W, C]."""
        with replace_file(self.path_of(number)) as file:
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")

    def read(self, number: int) -> np.ndarray:
        """A result that is done, uint8 [H, W, C]."""
        with Image.open(self.path_of(number)) as image:
            array = np.asarray(image)
        return array[..., None] if array.ndim == 2 else array

    def write_grid(self, rows: list[list[np.ndarray]], labels: list[str]) -> None:
        """Writes the grid: rows of images, uint8 [H, W, C]; smaller ones are padded to the largest, grey to colour."""
        cells = [cell for row in rows for cell in row]
        shape = [max(cell.shape[axis] for cell in cells) for axis in range(3)]
        frames = np.stack([[_padded(cell, shape) for cell in column] for column in zip(*rows, strict=True)])
        save_strip(Path(self.folder, GRID_FILE), frames, labels)


def digest(*parts: object) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of texts and arrays."""
    found = hashlib.sha256()
    for part in parts:
        data = part.tobytes() if isinstance(part, np.ndarray) else str(part).encode(errors="backslashreplace")
        found.update(f"{len(data)} ".encode() + data)
    return found.hexdigest()[:16]


def _padded(image: np.ndarray, shape: list[int]) -> np.ndarray:
    more = [size - there for size, there in zip(shape[:2], image.shape[:2], strict=True)]
    image = np.repeat(image, shape[2], axis=-1) if image.shape[-1] == 1 else image
    around = [(size // 2, size - size // 2) for size in more]
    return np.pad(image, [*around, (0, 0)], constant_values=_PAPER)


def _limits(folder: str) -> tuple[int, int]:
    """The most bytes of the name of a file there, and of its path."""
    place = os.path.abspath(folder)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    try:
        return os.pathconf(place, "PC_NAME_MAX"), os.pathconf(place, "PC_PATH_MAX")
    except (AttributeError, OSError, ValueError):  # Windows
        return 255, 4096


def _shown(path: Path) -> str:
    return repr(printable(str(path)))
