"""TensorFlow's checkpoints: real ones, ones written here byte by byte, and every way in which a file may be damaged.

tests/tensorflow_files/ was written by TensorFlow 2.21 (tf.compat.v1, graph mode): model.ckpt-3 by
`Saver(sharded=True)` from variables on two devices, their averages, Adam and all types; part.ckpt from a partitioned
variable; values.npz holds what the session said.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from ddpm_jax.interchange.crc32c import crc32c, unmasked
from ddpm_jax.interchange.tensorflow_checkpoint import read_tensorflow_checkpoint
from ddpm_jax.runtime.errors import UserError

REAL = Path(__file__).parent / "tensorflow_files"
TYPES = ("float64", "int32", "uint8", "int16", "int8", "int64", "bool", "bfloat16", "float16", "uint16")


def slow_crc32c(data):
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def masked(data):
    checksum = crc32c(data)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")


# A writer of the format, in its plainest form


def varint(value):
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def message(**fields):
    """A protocol buffer: `f3=5` is field 3; numbers, bytes, or a list of either."""
    out = b""
    for key, values in fields.items():
        number = int(key[1:])
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int):
                out += varint(number << 3) + varint(value)
            else:
                out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def block(items, kind=b"\0", edit=bytes):
    """With its trailer; `edit` is applied before the checksum is taken."""
    entries, before = b"", b""
    for key, value in items:
        shared = 0
        while shared < min(len(key), len(before)) and key[shared] == before[shared]:
            shared += 1
        entries += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    entries = edit(entries + bytes(4) + (1).to_bytes(4, "little"))  # one restart, at 0
    return entries + kind + masked(entries + kind)


def table(items, per_block=2, kind=b"\0", edit=bytes):
    out, index = b"", []
    for start in range(0, len(items), per_block):
        part = block(items[start : start + per_block], kind, edit)
        index.append((items[start : start + per_block][-1][0], varint(len(out)) + varint(len(part) - 5)))
        out += part
    empty, top = block([]), block(index)
    footer = varint(len(out)) + varint(len(empty) - 5)
    footer += varint(len(out) + len(empty)) + varint(len(top) - 5)
    return out + empty + top + footer.ljust(40, b"\0") + 0xDB4775248B80FB57.to_bytes(8, "little")


def float_entry(array, offset, shard=0, **others):
    data = array.tobytes()
    shape = message(f2=[message(f1=size) for size in array.shape])
    fields = dict(f1=1, f2=shape, f3=shard, f4=offset, f5=len(data)) | others
    return message(**fields) + varint(6 << 3 | 5) + masked(data)


ARRAYS = {f"model/conv_{i}/W": np.arange(6 * i, dtype=np.float32).reshape(i, 6) for i in range(5)}


def write(folder, arrays=ARRAYS, header=None, kind=b"\0", edit=bytes, **others):
    """Two shards, the tensors to and fro between them."""
    shards, items = [b"", b""], [(b"", header or message(f1=2))]
    for i, (name, array) in enumerate(sorted(arrays.items())):
        items.append((name.encode(), float_entry(array, len(shards[i % 2]), i % 2, **others)))
        shards[i % 2] += array.tobytes()
    (folder / "own.ckpt.index").write_bytes(table(items, kind=kind, edit=edit))
    for i in range(2):
        (folder / f"own.ckpt.data-0000{i}-of-00002").write_bytes(shards[i])
    return folder / "own.ckpt"


# What is read


@pytest.mark.parametrize("size", [0, 1, 3, 4, 255, 256, 257, 513, 5000])
def test_checksum_is_the_loop_over_bits(size):
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    assert crc32c(data) == slow_crc32c(data)
    assert unmasked(int.from_bytes(masked(data), "little")) == crc32c(data)


def test_checksum_is_the_published_one():
    """RFC 3720, B.4."""
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43


def test_checksum_of_several_chunks(monkeypatch):
    data = np.random.default_rng(0).integers(0, 256, 2500, dtype=np.uint8)
    monkeypatch.setattr("ddpm_jax.interchange.crc32c._CHUNK", 1000)
    assert crc32c(data) == slow_crc32c(data.tobytes())


def test_a_real_checkpoint_in_three_shards():
    tensors = read_tensorflow_checkpoint(REAL / "model.ckpt-3")
    with np.load(REAL / "values.npz") as file:
        values = dict(file)
    assert len(values) == 6
    for name in values:
        assert tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensors[name], values[name])
    for kind in TYPES:
        array = tensors[f"kinds/{kind}"]
        start = np.arange(6).reshape(2, 3)
        expected = start % 2 if kind == "bool" else start if kind[0] == "u" else start - 2
        assert array.dtype.name == kind
        np.testing.assert_array_equal(array.astype(np.float64), expected)
    assert tensors["kinds/empty"].shape == (0, 3) and tensors["kinds/scalar"] == 2.5
    assert tensors["global_step"] == 3 and "kinds/text" not in tensors


def test_what_is_wanted_alone_is_read():
    tensors = read_tensorflow_checkpoint(REAL / "model.ckpt-3", lambda name: name.endswith("Average"))
    assert len(tensors) == 3


@pytest.mark.parametrize("name", ["own.ckpt", "own.ckpt.index", "own.ckpt.data-00001-of-00002", "own.ckpt.meta", "."])
def test_however_it_is_named(tmp_path, name):
    write(tmp_path)
    tensors = read_tensorflow_checkpoint(tmp_path / name)
    assert tensors.keys() == ARRAYS.keys()
    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(tensors[key], array)


# What is refused


def refused(path, *parts):
    with pytest.raises(UserError) as error:
        read_tensorflow_checkpoint(path)
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_no_checkpoint(tmp_path):
    refused(tmp_path / "no.ckpt", "no TensorFlow checkpoint", "no.ckpt.index", "give PREFIX")
    refused(tmp_path, "must hold one TensorFlow checkpoint; got no file *.index")
    write(tmp_path)
    shutil.copy(tmp_path / "own.ckpt.index", tmp_path / "older.ckpt.index")
    refused(tmp_path, "got older.ckpt, own.ckpt; give PREFIX")


def test_slices():
    refused(REAL / "part.ckpt", "part is stored in slices")


def test_missing_and_short_shards(tmp_path):
    prefix = write(tmp_path)
    shard = tmp_path / "own.ckpt.data-00001-of-00002"
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(prefix, "own.ckpt.data-00001-of-00002 is truncated: model/conv_3/W is behind its end")
    shard.unlink()
    refused(prefix, "cannot be read: No such file", "all shards must be present")


def test_a_bit_in_a_shard(tmp_path):
    prefix = write(tmp_path)
    shard = tmp_path / "own.ckpt.data-00000-of-00002"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    refused(prefix, "is damaged: the checksum of model/conv_4/W is wrong")


@pytest.mark.parametrize(
    "settings,message_part",
    [
        (dict(kind=b"\1"), "its blocks are compressed (kind 1)"),
        (dict(header=message(f1=2, f2=1)), "its numbers are big-endian"),
        (dict(header=message(f1=0, f3=message(f1=1))), "its number of shards is 0"),
        (dict(f5=7), "the entry of model/conv_0/W contradicts itself"),
        (dict(f1=20), "model/conv_0/W has TensorFlow's type number 20"),
        (dict(f2=message(f2=[message(f1=1)] * 65), f5=4), "the entry of model/conv_0/W contradicts itself"),
        (dict(f3=2), "the entry of model/conv_0/W contradicts itself"),
        (dict(f2=message(f2=message(f1=2**64 - 1))), "a dimension has no valid size"),
        (dict(f2=3), "a field of an entry has the wrong kind"),
        (dict(f4=b"x"), "a field of an entry has the wrong kind"),
    ],
)
def test_what_an_index_may_say(tmp_path, settings, message_part):
    refused(write(tmp_path, **settings), message_part)


def test_every_damage_of_an_index_is_one_line(tmp_path):
    """Cut anywhere, or with any byte changed: refused, and never read as something else."""
    prefix = write(tmp_path)
    index = tmp_path / "own.ckpt.index"
    whole = index.read_bytes()
    for size in range(0, len(whole), 7):
        index.write_bytes(whole[:size])
        refused(prefix, "is not the index of a TensorFlow checkpoint")
    num_read = 0
    for at in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[at] ^= 0x55
        index.write_bytes(changed)
        try:
            tensors = read_tensorflow_checkpoint(prefix)
        except UserError as error:
            assert "\n" not in str(error)
        else:  # padding, or the block with metadata, which is empty and not looked at
            assert tensors.keys() == ARRAYS.keys()
            assert all(np.array_equal(tensors[name], array) for name, array in ARRAYS.items())
            num_read += 1
    assert num_read <= (13 + 40) / 3


@pytest.mark.parametrize("change", [0x01, 0x55, 0x80, 0xFF])
def test_damage_behind_a_right_checksum_is_one_line(tmp_path, change):
    """A byte of each block changed: no entry reaches out of its block, its file or its shard."""
    complaints = set()
    for at in range(120):
        def edit(entries, at=at):
            changed = bytearray(entries)
            changed[at % len(changed)] ^= change
            return bytes(changed)

        try:
            read_tensorflow_checkpoint(write(tmp_path, edit=edit))
        except UserError as error:
            assert "\n" not in str(error)
            complaints.add(str(error).rpartition(": ")[2])
    assert "an entry is outside its block" in complaints


def test_a_key_that_shares_more_than_there_is(tmp_path):
    prefix = write(tmp_path)
    bad = varint(9) + varint(0) + varint(0) + bytes(4) + (1).to_bytes(4, "little")
    (tmp_path / "own.ckpt.index").write_bytes(table([(b"", b"")], edit=lambda entries: bad))
    refused(prefix, "an entry is outside its block")


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "own.ckpt.index").write_bytes(b"PK\3\4" * 40)
    refused(tmp_path / "own.ckpt", "it does not end like a table")
