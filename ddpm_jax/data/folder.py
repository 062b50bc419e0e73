"""A folder of pictures: any sizes, any of the common formats, some of them broken."""

import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ddpm_jax.data import source as source_lib
from ddpm_jax.data.pixels import decode_image, read_header, stored_shape
from ddpm_jax.data.source import ArraySource, DecodedSource, ImageSource, ThreadMap
from ddpm_jax.data.split import split_name, split_rows
from ddpm_jax.errors import UserError, did_you_mean

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif")
# Pictures that people have and this reader does not open: said, not silently passed over.
_FOREIGN_ENDINGS = (".heic", ".heif", ".avif", ".tif", ".tiff", ".jp2", ".jxl", ".dng", ".svg", ".psd")
_BLOCK = 512  # files decoded between two looks at the progress bar and at Ctrl-C


def make_folder(*, split: str, image_size: tuple[int, int], num_channels: int, path: str) -> ImageSource:
    """The images under `path`, at any depth, in the order of their relative names.

    Hidden files and folders, `__MACOSX` and files without an image's ending are ignored. A file that cannot
    be read is skipped, and listed in `notes`. Where every image lies in one of at least two sub-folders, the
    (first-level) sub-folder's rank in the alphabet is the label. See `pixels.decode_image` for what becomes
    of modes, transparency and sizes.

    A set that fits `source.MEMORY_BUDGET_BYTES` is decoded here, once. Of a larger one only the headers are
    read here; a file whose rest proves broken later is replaced by the next good one (of its class).

    Args:
        split: the name of a sub-folder of `path`; otherwise `train` or `all` for everything; slices of them.
        image_size: (H, W) in pixels.
        num_channels: 1 or 3.
        path: the folder.

    Raises:
        UserError: where there is no such folder or split, or no image in it that can be read.
    """
    root = _split_folder(_checked_folder(path), split)
    files, foreign = _find(root)
    if not files:
        raise UserError(
            f"data.path {str(root)!r} holds no image file ({_summary(root)}); "
            f"name a folder with files ending in {', '.join(ENDINGS)}"
        )
    labels = _labels(files)
    rows = split_rows(split, num_examples=len(files))
    files = [files[row] for row in rows]
    labels = None if labels is None else labels[rows]

    shape = (*image_size, num_channels)
    if source_lib.fits_in_memory(len(files), shape):
        images, good, reasons = _decode_all(root, files, shape)
    else:
        good, reasons = _check_headers(root, files)
        images = None
    notes = [foreign] if foreign else []
    if reasons:
        notes.append(_skipped(reasons, len(files)))
    if not len(good):
        raise UserError(f"data.path {str(root)!r}: no image could be read; {notes[-1]}")
    labels = None if labels is None else labels[good]
    if images is not None:
        return ArraySource(images, labels, tuple(notes))
    return _OnDemand(root, [files[i] for i in good], shape, labels, tuple(notes))


def first_image_shape(path: str) -> tuple[int, int, int]:
    """(H, W, C) of the first image under `path` that can be read, C = 1 for grey, else 3; UserError where none can."""
    root = _checked_folder(path)
    for name in _find(root)[0]:
        try:
            return stored_shape(root / name)
        except Exception:  # Pillow's decoders raise nearly anything on a damaged file
            continue
    raise UserError(f"data.path {str(root)!r} holds no image file that can be read ({_summary(root)})")


class _OnDemand(DecodedSource):
    """A folder too large for memory."""

    def __init__(self, root: Path, files: list[str], shape: tuple[int, int, int], labels, notes):
        super().__init__(ThreadMap(self._decode), num_examples=len(files), image_shape=shape, labels=labels)
        self._root, self._files = root, files
        self.notes = notes
        self._broken: set[int] = set()

    def _decode(self, index: int) -> np.ndarray:
        """Image `index`, or where it is broken the next good one of the same label: the same in every run."""
        for candidate in self._candidates(index):
            if candidate in self._broken:
                continue
            try:
                height, width, channels = self.image_shape
                return decode_image(
                    self._root / self._files[candidate], image_size=(height, width), num_channels=channels
                )
            except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
                if candidate not in self._broken:
                    self._broken.add(candidate)
                    name = self._files[candidate]
                    note = f"{name!r} is damaged ({_reason(error)}); the next image takes its place"
                    self.notes += (note,)
                    logging.getLogger(__name__).warning(note)
        raise UserError(f"data.path {str(self._root)!r}: no image could be read in full")

    def _candidates(self, index: int):
        yield index
        for candidate in (*range(index + 1, len(self)), *range(index)):
            if self.labels is None or self.labels[candidate] == self.labels[index]:
                yield candidate


def _checked_folder(path: str) -> Path:
    folder = Path(path).expanduser()
    if path and folder.is_dir():
        return folder
    if not path:
        raise UserError("data.path must name a folder of images; got ''; add --config.data.path=DIR")
    if not folder.exists():
        raise UserError(f"data.path must name a folder of images; got {path!r} (no such folder)")
    remedy = {".npz": "use data.name=array", ".npy": "use data.name=array"}.get(
        folder.suffix.lower(), "name the folder; unpack an archive first"
    )
    raise UserError(f"data.path must name a folder of images; got {path!r} (a file); {remedy}")


def _split_folder(folder: Path, split: str) -> Path:
    """The sub-folder with the split's name, else the folder itself for `train` and `all`."""
    name = split_name(split)
    if (folder / name).is_dir() and not name.startswith("."):
        return folder / name
    if name in ("train", "all"):
        return folder
    allowed = sorted(p.name for p in folder.iterdir() if p.is_dir() and not _is_hidden(p.name))
    shown = ", ".join(allowed[:8]) + (", ..." if len(allowed) > 8 else "")
    raise UserError(
        "data.split must be 'train' (all images), a slice such as 'train[:95%]', or a sub-folder of "
        f"{str(folder)!r} ({shown or 'it has none'}); got {split!r}{did_you_mean(name, allowed)}"
    )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _walk(root: Path):
    """Relative names of the files below, links to folders followed once."""
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:  # a link back to a folder above
            subfolders.clear()
            continue
        seen.add(place)
        subfolders[:] = sorted(name for name in subfolders if not _is_hidden(name))
        for name in names:
            if not _is_hidden(name):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _find(root: Path) -> tuple[list[str], str]:
    """Image files, sorted, and a line about pictures of formats that are not read, or ''."""
    names = list(_walk(root))
    files = sorted(name for name in names if name.lower().endswith(ENDINGS))
    foreign = Counter(Path(name).suffix.lower() for name in names if name.lower().endswith(_FOREIGN_ENDINGS))
    if not foreign:
        return files, ""
    counts = ", ".join(f"{count} {ending}" for ending, count in sorted(foreign.items()))
    return files, f"not read, as of another format: {counts}; convert them to PNG or JPEG to use them"


def _summary(root: Path) -> str:
    endings = Counter(Path(name).suffix.lower() or "no ending" for name in _walk(root))
    if not endings:
        return "it is empty"
    return "it holds " + ", ".join(f"{count} {ending}" for ending, count in endings.most_common(3))


def _labels(files: list[str]) -> np.ndarray | None:
    """Rank of each file's first folder; None where a file lies in no sub-folder, or all lie in one."""
    folders = [name.split("/", 1)[0] if "/" in name else None for name in files]
    classes = sorted({folder for folder in folders if folder is not None})
    if None in folders or len(classes) < 2:
        return None
    rank = {folder: i for i, folder in enumerate(classes)}
    return np.array([rank[folder] for folder in folders], np.int64)


def _decode_all(root: Path, files: list[str], shape: tuple[int, int, int]):
    """uint8 [n, H, W, C] of the readable files, their numbers, and (name, reason) of the others."""
    height, width, channels = shape
    images = np.empty((len(files), *shape), np.uint8)

    def decode(name: str) -> np.ndarray:
        return decode_image(root / name, image_size=(height, width), num_channels=channels)

    good, reasons = [], []
    for index, result in _attempts(decode, files):
        if isinstance(result, Exception):
            reasons.append((files[index], _reason(result)))
        else:
            images[len(good)] = result
            good.append(index)
    return images[: len(good)], np.array(good, np.int64), reasons


def _check_headers(root: Path, files: list[str]):
    good, reasons = [], []
    for index, result in _attempts(lambda name: read_header(root / name), files):
        if isinstance(result, Exception):
            reasons.append((files[index], _reason(result)))
        else:
            good.append(index)
    return np.array(good, np.int64), reasons


def _attempts(function, files: list[str]):
    """(i, function(files[i]) or the Exception it raised), in order, from threads, with a progress bar."""

    def attempt(name: str):
        try:
            return function(name)
        except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
            return error

    attempt_many = ThreadMap(attempt)
    # Shown on a terminal only, and only where it takes more than two seconds.
    with tqdm(total=len(files), desc="reading images", unit=" images", delay=2, disable=None) as bar:
        for start in range(0, len(files), _BLOCK):
            block = files[start : start + _BLOCK]
            yield from enumerate(attempt_many(block), start)
            bar.update(len(block))


def _reason(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image"
    return " ".join(str(error).split())[:80] or type(error).__name__


def _skipped(reasons: list[tuple[str, str]], num_files: int) -> str:
    shown = ", ".join(f"{name} ({reason})" for name, reason in reasons[:5])
    more = f", and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return f"skipped {len(reasons)} of {num_files} image files that could not be read: {shown}{more}"
