"""The sizes and digests of a checkpoint's files, because Orbax itself does not notice a flipped bit.

A manifest is <workdir>/checkpoints/<step>/manifest.json. It is in the folder of its step, so that it is deleted, moved
or copied together with the step; Orbax ignores it, because only folders are items.
It is written after the step is committed: a process that ends in between leaves a step without a manifest.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ddpm_jax.runtime.atomic_files import replace_file
from ddpm_jax.runtime.json_files import is_count, read_json

MANIFEST = "manifest.json"
ALGORITHM = "blake2b-128"  # similar speed on all processors; SHA-256 needs instructions that some lack
_CHUNK_BYTES = 1 << 20


class DamagedError(ValueError):
    """Names the file of a checkpoint that differs from what was written, and the difference."""


def write_manifest(step_folder: str | os.PathLike) -> None:
    """Writes the manifest of a committed step, complete or not at all."""
    root = Path(step_folder)
    # At the top level, hidden names belong to files that are being written.
    paths = sorted(path for path in root.glob("[!.]*/**/*") if path.is_file())
    paths += sorted(path for path in root.glob("[!.]*") if path.is_file() and path.name != MANIFEST)
    files = {path.relative_to(root).as_posix(): [path.stat().st_size, file_digest(path)] for path in paths}
    with replace_file(root / MANIFEST, "w") as file:
        json.dump({"algorithm": ALGORITHM, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())  # an empty manifest after a power cut would make a good checkpoint look damaged


def verify(step_folder: str | os.PathLike, items: Sequence[str]) -> bool:
    """Checks the files of the given items, and those that belong to no item, against the manifest.

    An item of which the manifest lists no file is a difference, too.

    Returns:
      False if the step has no manifest, so that nothing was checked.

    Raises:
      DamagedError: the first difference, or a manifest that cannot be read.
      OSError: a file that cannot be read.
    """
    root = Path(step_folder)
    if not os.path.lexists(root / MANIFEST):
        return False
    listed = _read(root / MANIFEST)
    for item in items:
        # Other files may be those of a file manager; but a manifest with other names would compare nothing.
        if (root / item).is_dir() and not any(name.startswith(f"{item}/") for name in listed):
            raise DamagedError(f"{MANIFEST} lists no file of {item}")
    for name in listed:
        folder, _, rest = name.partition("/")
        if not rest or folder in items:
            _compare(root, name, listed)
    return True


def verify_item(step_folder: str | os.PathLike, item: str) -> None:
    """Checks the files of one item alone; does nothing if the step has no manifest that can be read.

    Raises:
      DamagedError: the first difference.
      OSError: a file that cannot be read.
    """
    root = Path(step_folder)
    try:
        listed = _read(root / MANIFEST)
    except (OSError, DamagedError):
        return
    names = [name for name in listed if name.startswith(f"{item}/")]
    if not names:
        raise DamagedError(f"{MANIFEST} lists no file of {item}")
    for name in names:
        _compare(root, name, listed)


def _compare(root: Path, name: str, listed: dict[str, tuple[int, str]]) -> None:
    """Raises DamagedError unless the file is the one that the manifest lists."""
    (size, digest), path = listed[name], root / name
    if not path.is_file():
        raise DamagedError(f"{name} is missing")
    if path.stat().st_size != size:
        raise DamagedError(f"{name} has {path.stat().st_size} bytes instead of {size}")
    if file_digest(path) != digest:
        raise DamagedError(f"{name} has a different {ALGORITHM} digest than when it was saved")


def file_digest(path: str | os.PathLike) -> str:
    """The 128-bit blake2b digest of a file, in hexadecimal; needs little memory for files of any size."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, tuple[int, str]]:
    """name -> (bytes, digest)."""
    try:
        manifest = read_json(path, dict)
        if manifest.get("algorithm") != ALGORITHM:
            raise ValueError(f"its algorithm is {manifest.get('algorithm')!r:.100}, not {ALGORITHM!r}")
        files = manifest.get("files")
        if not isinstance(files, dict) or not files:
            raise ValueError("it lists no file")
        for name, entry in files.items():
            if not isinstance(entry, list) or len(entry) != 2 or not is_count(entry[0]) or type(entry[1]) is not str:
                raise ValueError(f"it must list the size and the digest of {name!r:.100}; got {entry!r:.100}")
    except ValueError as error:
        raise DamagedError(f"{path.name} is damaged: {error}") from error
    return {name: (size, digest) for name, (size, digest) in files.items()}
