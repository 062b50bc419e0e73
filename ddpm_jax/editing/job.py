"""A folder of results: which are done, so that an interrupted job continues, and a grid of the first ones."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_jax.runtime.atomic_files import check_folder, replace_file
from ddpm_jax.runtime.errors import UserError, arg
from ddpm_jax.runtime.image_files import save_strip
from ddpm_jax.runtime.json_files import read_json

SETTINGS_FILE, GRID_FILE = "settings.json", "grid.png"
MAX_GRID = 8  # images and results of each in the grid
_PAPER = 52  # brightness of what an image smaller than the results leaves free


class EditJob:
    """The results of one command in a folder, a PNG each, written one by one; the same command continues.

    Args:
      folder: a new or empty one, or one of the same job.
      facts: everything that the results depend on, as JSON; also shown to people.
      names: of the images; see `inputs.Inputs`.
      num_results: of each image.

    Raises:
      UserError: the folder cannot be written, or holds something else.
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
        check_folder("--out", folder)
        if not self.continues:
            with replace_file(self._settings, "w") as file:
                json.dump(facts, file, indent=2)

    def _check_same(self, facts: dict) -> None:
        try:
            found = read_json(self._settings, dict)
        except (OSError, ValueError) as error:
            raise UserError(f"{self._settings} cannot be read ({error}): give another {arg('out')}") from None
        for name in {**found, **facts}:
            if found.get(name) != facts.get(name):
                raise UserError(
                    f"{arg('out')} {self.folder} holds results of another {name}: {_short(found.get(name))}, and now "
                    f"it is {_short(facts.get(name))}; give another folder, or delete this one"
                )

    def path_of(self, number: int) -> Path:
        """The file of a result; several of an image have their numbers in their names."""
        image, k = divmod(number, self._num_results)
        digits = len(str(self._num_results - 1))
        end = f"_{k:0{digits}}" if self._num_results > 1 else ""
        return Path(self.folder, f"{self._names[image]}{end}.png")

    def is_done(self, number: int) -> bool:
        """Whether a result is written, completely."""
        return self.path_of(number).is_file()

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


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
