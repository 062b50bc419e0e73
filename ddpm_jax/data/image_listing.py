"""What lies in a folder: the names of its image files, found once for all splits of one process."""

import os
import stat
import time
import weakref
from collections import Counter
from pathlib import Path

import numpy as np

from ddpm_jax.runtime.errors import UserError, arg

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif")
# Images that people have and this reader does not open: said, not silently passed over.
_FOREIGN_ENDINGS = (".heic", ".heif", ".avif", ".tif", ".tiff", ".jp2", ".jxl", ".dng", ".svg", ".psd")
# The coarsest time stamp of a file system (FAT): a folder changed less than this ago may change again unseen.
_STAMP_SECONDS = 2.0

_in_use: "weakref.WeakValueDictionary[str, Listing]" = weakref.WeakValueDictionary()


def list_images(path: str) -> "Listing":
    """The listing of the folder `path`; UserError where it is none, or holds no image file."""
    listing = list_folder(str(checked_folder(path)))
    if not listing.files:
        raise UserError(
            f"{arg('path')} {listing.root!r} holds no image file ({listing.summary()}); "
            f"name a folder with files ending in {', '.join(ENDINGS)}"
        )
    return listing


def list_folder(root: str) -> "Listing":
    """The listing of `root`: one that is in use already where no folder in it has changed since, else a new one.

    Raises:
        UserError: where the folder itself cannot be read.
    """
    place = os.path.realpath(root)
    known = _in_use.get(place)
    if known is not None and known.root == root and known.is_current():
        return known
    listing = Listing(root)
    _in_use[place] = listing
    return listing


class Listing:
    """The image files below a folder, links to folders followed once, hidden names and `__MACOSX` left out.

    A name counts by its ending. What bears one and is no regular file (a pipe, a broken link) is listed too, so that
    the slices of a split stay what they are when a link is mended, and stands in `irregular`: nothing opens it.
    """

    def __init__(self, root: str):
        self.root = root
        self.files: list[str] = []  # relative to root, with "/", sorted
        self.irregular: dict[str, str] = {}  # name -> what it is
        self.is_good: np.ndarray  # bool [N]: files whose header was read and found good
        self.stores: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # see folder.py
        self._unread: list[str] = []  # folders, with the reason
        self._other_endings: Counter[str] = Counter()
        self._stamps: dict[str, int] = {}  # folder -> time of its last change, ns
        self._began = time.time()
        self._walk()
        self.files.sort()
        self.is_good = np.zeros(len(self.files), bool)

    def _walk(self) -> None:
        """Depth first and without recursion: nested folders may be deeper than Python's stack."""
        pending, seen = [""], set()
        while pending:
            place = pending.pop()
            folder = os.path.join(self.root, place)
            try:
                about = os.stat(folder)
                identity = (about.st_dev, about.st_ino) if about.st_ino else os.path.realpath(folder)
                if identity in seen:  # a link back to a folder above, or to one that was listed
                    continue
                seen.add(identity)
                self._stamps[folder] = about.st_mtime_ns
                with os.scandir(folder) as entries:
                    folders = self._sort_out(place, entries)
            except OSError as error:
                if not place:
                    reason = error.strerror or error
                    raise UserError(
                        f"{arg('path')} {self.root!r} cannot be read ({reason}); name another folder"
                    ) from None
                self._unread.append(f"{printable(place)} ({error.strerror or error})")
                continue
            pending.extend(f"{name}/" for name in sorted(folders, reverse=True))

    def _sort_out(self, place: str, entries) -> list[str]:
        """Notes the files of one folder; returns the names of the folders in it."""
        folders = []
        for entry in entries:
            if is_hidden(entry.name):
                continue
            name = place + entry.name
            if _is(entry.is_dir):
                folders.append(name)
            elif entry.name.lower().endswith(ENDINGS):
                self.files.append(name)
                if not _is(entry.is_file):
                    self.irregular[name] = _what_it_is(entry.path)
            else:
                self._other_endings[os.path.splitext(entry.name)[1].lower() or "no ending"] += 1
        return folders

    def openable(self, row: int) -> str:
        """The path of a file; OSError where opening it would wait for ever, or never end."""
        name = self.files[row]
        if name in self.irregular:
            raise OSError(self.irregular[name])
        return os.path.join(self.root, name)

    def is_current(self) -> bool:
        """Whether every folder is as it was, and had been so long enough before for a change to show."""
        latest = int((self._began - _STAMP_SECONDS) * 1e9)
        try:
            return all(stamp < latest and os.stat(path).st_mtime_ns == stamp for path, stamp in self._stamps.items())
        except OSError:
            return False

    def notes(self) -> tuple[str, ...]:
        """Lines about images of other formats, and folders that cannot be read."""
        foreign = {ending: n for ending, n in sorted(self._other_endings.items()) if ending in _FOREIGN_ENDINGS}
        notes = []
        if foreign:
            counts = ", ".join(f"{count} {ending}" for ending, count in foreign.items())
            notes.append(f"not read, as of another format: {counts}; convert them to PNG or JPEG to use them")
        if self._unread:
            notes.append(f"not read, {len(self._unread)} of the folders: {first_of(self._unread)}")
        return tuple(notes)

    def summary(self) -> str:
        """What else is there: `it holds 3 .txt`."""
        if not self._other_endings:
            return self.notes()[0] if self._unread else "it is empty"
        common = self._other_endings.most_common(3)
        return "it holds " + ", ".join(f"{count} {ending}" for ending, count in common)


def checked_folder(path: str) -> Path:
    """The folder that a person named; UserError where it is none."""
    folder = Path(path).expanduser()
    if path and folder.is_dir():
        return folder
    wanted = f"{arg('path')} must name a folder of images or a packed file; got {path!r}"
    if not path:
        raise UserError(f"{wanted}; add {arg('path=DIR')}")
    if not folder.exists():
        raise UserError(f"{wanted} (no such folder)")
    is_array = folder.suffix.lower() in (".npz", ".npy")
    remedy = f"use {arg('name')}=array" if is_array else "name the folder; unpack an archive first"
    raise UserError(f"{wanted} (a file); {remedy}")


def is_hidden(name: str) -> bool:
    """Names that a person does not see in a file manager, and what macOS puts into archives."""
    return name.startswith(".") or name == "__MACOSX"


def class_labels(files: list[str]) -> np.ndarray | None:
    """Rank of each file's first folder, int64 [N]; None where a file lies in no sub-folder, or all lie in one."""
    folders = [name.split("/", 1)[0] if "/" in name else None for name in files]
    classes = sorted({folder for folder in folders if folder is not None})
    if None in folders or len(classes) < 2:
        return None
    rank = {folder: i for i, folder in enumerate(classes)}
    return np.array([rank[folder] for folder in folders], np.int64)


def skipped_note(reasons: list[tuple[str, str]], num_files: int, split: str = "") -> str:
    """One line about the (name, reason) of files that could not be read, of all or of those of a split."""
    part = f" of the split {split}" if split else ""
    shown = first_of([f"{printable(name)} ({reason})" for name, reason in reasons])
    return f"skipped {len(reasons)} of {num_files} image files{part} that could not be read: {shown}"


def printable(name: str) -> str:
    """A file name in one line of plain text, whatever bytes are in it."""
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")


def first_of(lines: list[str], num_shown: int = 5) -> str:
    """`a, b, c, d, e, and 15 more`."""
    more = f", and {len(lines) - num_shown} more" if len(lines) > num_shown else ""
    return ", ".join(lines[:num_shown]) + more


def _is(question) -> bool:
    """The answer of a directory entry; no where a link leads in circles."""
    try:
        return question()
    except OSError:
        return False


def _what_it_is(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return "a broken link" if os.path.islink(path) else error.strerror or str(error)
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device") + ", not a file"
