"""LevelDB's table format, used by TensorFlow for the index of a checkpoint: sorted keys and values in blocks."""

from collections.abc import Iterator

from ddpm_jax.interchange.crc32c import crc32c, unmasked

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_MOST_KEY_BYTES = 4096  # of the name of a tensor; names share prefixes, and could unfold to any size
_TRAILER_BYTES = 5  # of a block: the kind of compression, and a checksum of the block and that kind


class DamagedFile(Exception):
    """Says what is wrong with the bytes of a file; the caller, which knows the name, turns it into a UserError."""


def table_items(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of every entry, in order.

    Raises:
      DamagedFile: not a table, truncated, a wrong checksum, or compressed blocks, which TensorFlow does not write.
    """
    if len(data) < _FOOTER_BYTES or int.from_bytes(data[-8:], "little") != _MAGIC:
        raise DamagedFile("it does not end like a table; it is truncated or of another kind")
    footer = data[-_FOOTER_BYTES:]
    _, at = _handle(footer, 0)  # the block with metadata
    index, _ = _handle(footer, at)
    left = len(data)  # each block is listed once, so that all of them together are smaller than the file
    for _, value in _entries(_block(data, *index)):
        handle, _ = _handle(value, 0)
        left -= handle[1]
        if left < 0:
            raise DamagedFile("its blocks are larger than the whole")
        yield from _entries(_block(data, *handle))


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned number in groups of 7 bits, lowest first, and its end position."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise DamagedFile("a number is truncated")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise DamagedFile("a number has more than 64 bits")


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """(offset, size) of a block, and the end position of these numbers."""
    offset, at = read_varint(data, at)
    size, at = read_varint(data, at)
    return (offset, size), at


def _block(data: bytes, offset: int, size: int) -> bytes:
    end = offset + size
    if end + _TRAILER_BYTES > len(data) - _FOOTER_BYTES:
        raise DamagedFile("a block is outside the file")
    kind = data[end]
    if kind != 0:
        raise DamagedFile(f"its blocks are compressed (kind {kind}), which TensorFlow does not write; save it again")
    if crc32c(data[offset : end + 1]) != unmasked(int.from_bytes(data[end + 1 : end + _TRAILER_BYTES], "little")):
        raise DamagedFile("the checksum of a block is wrong")
    return data[offset:end]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value): each key consists of a prefix of the previous key and new bytes."""
    if len(block) < 4:
        raise DamagedFile("a block is truncated")
    num_restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (num_restarts + 1)
    if end < 0:
        raise DamagedFile("a block is truncated")
    key, at = b"", 0
    while at < end:
        shared, at = read_varint(block, at)
        unshared, at = read_varint(block, at)
        size, at = read_varint(block, at)
        if shared > len(key) or at + unshared + size > end:
            raise DamagedFile("an entry is outside its block")
        key = key[:shared] + block[at : at + unshared]
        if len(key) > _MOST_KEY_BYTES:
            raise DamagedFile(f"a name has {len(key)} bytes")
        at += unshared
        yield key, block[at : at + size]
        at += size
