"""The idx files of MNIST and Fashion-MNIST: a big-endian header and raw bytes (yann.lecun.com/exdb/mnist)."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from ddpm_jax.runtime.errors import UserError, arg

_IMAGES_MAGIC, _LABELS_MAGIC = 0x00000803, 0x00000801  # unsigned bytes, of rank 3 and 1


def read_idx_pair(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W, 1] and labels int64 [N] of `train` or `test` (whose files are called t10k).

    Raises:
        UserError: a file is missing, truncated or of another kind.
    """
    prefix = "train" if split == "train" else "t10k"
    images = _read(folder, f"{prefix}-images", rank=3, magic=_IMAGES_MAGIC)
    labels = _read(folder, f"{prefix}-labels", rank=1, magic=_LABELS_MAGIC)
    if len(images) != len(labels):
        raise UserError(
            f"{arg('path')} {str(folder)!r}: {len(images)} images but {len(labels)} labels for {split!r}; "
            "the two files must belong together, download both again"
        )
    return images[..., None], labels.astype(np.int64)


def _read(folder: Path, stem: str, *, rank: int, magic: int) -> np.ndarray:
    # Some mirrors have a dot in place of the authors' hyphen.
    names = [f"{stem}{mark}idx{rank}-ubyte{end}" for mark in "-." for end in (".gz", "")]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise UserError(
            f"{arg('path')} {str(folder)!r} holds no {names[0]} (nor {names[1]}); put the original file there"
        )
    data = file.read_bytes()
    # By content: some browsers decompress a download and keep its name.
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise UserError(f"{str(file)!r} is damaged or truncated ({error}); download it again") from None
    header = 4 * (1 + rank)
    found = int.from_bytes(data[:4], "big")
    if len(data) < header or found != magic:
        raise UserError(
            f"{str(file)!r} must begin with the idx magic number 0x{magic:08x}; "
            f"got 0x{data[:4].hex()} in {len(data)} bytes; download the original file again"
        )
    shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, header, 4))
    count = math.prod(shape)
    if len(data) != header + count or count == 0:
        raise UserError(
            f"{str(file)!r} must hold {header + count} bytes for its {' x '.join(map(str, shape))} values; "
            f"got {len(data)}; download it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
