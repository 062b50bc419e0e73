"""Lists the image files in a folder, once for all splits of a process."""

import os
import stat
import time
import weakref
from collections import Counter
from pathlib import Path

import numpy as np

from ddpm_jax.runtime.errors import UserError, arg

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif")
# Common image formats that this reader does not support: they are reported, not silently ignored.
_FOREIGN_ENDINGS = (".heic", ".heif", ".avif", ".tif", ".tiff", ".jp2", ".jxl", ".dng", ".svg", ".psd")
# The coarsest time stamp of a file system (FAT): a folder changed more recently may change again unnoticed.
_STAMP_SECONDS = 2.0

_in_use: "weakref.WeakValueDictionary[str, Listing]" = weakref.WeakValueDictionary()


def list_images(path: str) -> "Listing":
    """The listing of the folder `path`; UserError if it is not a folder, or contains no image file."""
    listing = list_folder(str(checked_folder(path)))
    if not listing.files:
        raise UserError(
            f"{arg('path')} {listing.root!r} holds no image file ({listing.summary()}); "
            f"name a folder with files ending in {', '.join(ENDINGS)}"
        )
    return listing


def list_folder(root: str) -> "Listing":
    """The listing of `root`: an existing one if no folder in it has changed since, else a new one.

    Raises:
        UserError: the folder itself cannot be read.
    """
    place = os.path.realpath(root)
    known = _in_use.get(place)
    if known is not None and known.root == root and known.is_current():
        return known
    listing = Listing(root)
    _in_use[place] = listing
    return listing


class Listing:
    """The image files below a folder; links to folders are followed once, hidden names and `__MACOSX` are left out.

    Files are recognised by their extension. An entry with such an extension that is not a regular file (a pipe, a
    broken link) is listed too, so that slices of a split do not change when a link is repaired; it is also in
    `irregular`, and is never opened.
    """

    def __init__(self, root: str):
        self.root = root
        self.files: list[str] = []  # relative to root, separated by "/", sorted
        self.irregular: dict[str, str] = {}  # name -> its kind
        self.is_good: np.ndarray  # bool [N]: files whose header was read and is valid
        self.stores: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # see image_folder.py
        self._unread: list[str] = []  # folders that cannot be read, with the reason
        self._other_endings: Counter[str] = Counter()
        self._stamps: dict[str, int] = {}  # folder -> time of its last change in ns
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
                if identity in seen:  # a link to a parent folder, or to one that was already listed
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
        """Records the files of one folder; returns the names of the folders in it."""
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
        """The path of a file; raises OSError if opening or reading it could block for ever."""
        name = self.files[row]
        if name in self.irregular:
            raise OSError(self.irregular[name])
        return os.path.join(self.root, name)

    def is_current(self) -> bool:
        """Whether no folder has changed since, and time stamps are old enough to be sure."""
        latest = int((self._began - _STAMP_SECONDS) * 1e9)
        try:
            return all(stamp < latest and os.stat(path).st_mtime_ns == stamp for path, stamp in self._stamps.items())
        except OSError:
            return False

    def notes(self) -> tuple[str, ...]:
        """Lines about images in other formats, and about folders that cannot be read."""
        foreign = {ending: n for ending, n in sorted(self._other_endings.items()) if ending in _FOREIGN_ENDINGS}
        notes = []
        if foreign:
            counts = ", ".join(f"{count} {ending}" for ending, count in foreign.items())
            notes.append(f"not read, because of their format: {counts}; convert them to PNG or JPEG to use them")
        if self._unread:
            notes.append(f"{len(self._unread)} folder(s) could not be read: {first_of(self._unread)}")
        return tuple(notes)

    def summary(self) -> str:
        """The other contents: `it holds 3 .txt`."""
        if not self._other_endings:
            return self.notes()[0] if self._unread else "it is empty"
        common = self._other_endings.most_common(3)
        return "it holds " + ", ".join(f"{count} {ending}" for ending, count in common)


def checked_folder(path: str) -> Path:
    """The folder that the user named; UserError if it is not a folder."""
    folder = Path(os.path.expanduser(path))
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
    """Whether a file manager would hide the name, or macOS put it into an archive."""
    return name.startswith(".") or name == "__MACOSX"


def class_labels(files: list[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The rank of each file's first folder, int64 [N], and the names of these folders.

    None and () if a file is in no sub-folder, or all are in the same one.
    """
    folders = [name.split("/", 1)[0] if "/" in name else None for name in files]
    classes = sorted({folder for folder in folders if folder is not None})
    if None in folders or len(classes) < 2:
        return None, ()
    rank = {folder: i for i, folder in enumerate(classes)}
    return np.array([rank[folder] for folder in folders], np.int64), tuple(map(printable, classes))


def skipped_note(reasons: list[tuple[str, str]], num_files: int, split: str = "") -> str:
    """One line about the (name, reason) of unreadable files, of all files or of those of a split."""
    part = f" of the split {split}" if split else ""
    shown = first_of([f"{printable(name)} ({reason})" for name, reason in reasons])
    return f"skipped {len(reasons)} of {num_files} image files{part} that could not be read: {shown}"


def printable(name: str) -> str:
    """A file name as one line of plain text, whatever bytes it contains."""
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")


def first_of(lines: list[str], num_shown: int = 5) -> str:
    """`a, b, c, d, e, and 15 more`."""
    more = f", and {len(lines) - num_shown} more" if len(lines) > num_shown else ""
    return ", ".join(lines[:num_shown]) + more


def _is(question) -> bool:
    """The answer of a directory entry; False if a link leads in circles."""
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
