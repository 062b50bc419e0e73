"""The names of results: those of their images, so that no two results are one file, on any file system."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from ddpm_jax.editing.job import GRID_FILE, SETTINGS_FILE, number_end

_OF_THE_JOB = (GRID_FILE, SETTINGS_FILE)


def result_names(files: Sequence[str], num_results: int) -> tuple[str, ...]:
    """The names of the images without their endings; where results would meet, with them, and then with numbers.

    The file of a result is `NAME.png`, or `NAME_K.png` for several of an image (`job.EditJob`). Those files differ from
    each other, from their folders and from the job's own files also where a file system takes capitals for small
    letters (Windows, macOS).

    Args:
      files: of the images, with folders, separated by "/"; no two are the same.
      num_results: of each image.
    """
    places = [_beside_the_jobs_files(file) for file in files]
    short = _without_endings(places)
    keys = [_key(name) for name in short]
    blocked = {"grid", *_names_of_folders(places, num_results)}
    count = Counter(keys)
    taken = blocked | {key for key in keys if count[key] == 1}
    names = []
    for name, key, place in zip(short, keys, places, strict=True):
        if count[key] > 1 or key in blocked:
            name = next(other for other in _others(name, place) if _key(other) not in taken)
            taken.add(_key(name))
        names.append(name)
    return tuple(names)


def _without_endings(files: list[str]) -> list[str]:
    """The names without their endings, unless two would be the same."""
    stems = [os.path.splitext(file)[0] for file in files]
    count = Counter(stem.lower() for stem in stems)
    count["grid"] += 1
    return [stem if count[stem.lower()] == 1 else file for stem, file in zip(stems, files, strict=True)]


def _others(name: str, file: str) -> Iterator[str]:
    """Names in place of one that is taken."""
    yield name
    yield file
    number = 2
    while True:
        yield f"{file}-{number}"
        number += 1


def _beside_the_jobs_files(file: str) -> str:
    """The file, with another name for a folder that is called like a file of the job."""
    top, slash, rest = file.partition("/")
    return f"{top}_/{rest}" if slash and _key(top) in _OF_THE_JOB else file


def _names_of_folders(files: list[str], num_results: int) -> set[str]:
    """The keys of the names of which a result would be called like a folder with images."""
    names = set()
    for folder in {_key(file[:end]) for file in files for end in range(len(file)) if file[end] == "/"}:
        name, _, number = folder.removesuffix(".png").rpartition("_")
        if not folder.endswith(".png"):
            continue
        if num_results == 1:
            names.add(folder.removesuffix(".png"))
        elif number.isdecimal() and int(number) < num_results and f"_{number}" == number_end(int(number), num_results):
            names.add(name)
    return names


def _key(name: str) -> str:
    """The same for names that some file system takes for the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
