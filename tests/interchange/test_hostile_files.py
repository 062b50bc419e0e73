"""Small files that would take hours or all memory: refused in one line, at once, with little memory."""

import io
import json
import pickle
import resource
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save
from test_torch_files import Stored, pickled, tensor, zip_file

from ddpm_jax.interchange.crc32c import crc32c
from ddpm_jax.interchange.diffusers_scheduler import fields_of_scheduler
from ddpm_jax.interchange.ho_et_al import read_original_as
from ddpm_jax.interchange.leveldb_table import DamagedFile, table_items
from ddpm_jax.interchange.native_files import read_npz
from ddpm_jax.interchange.pickle_limits import MAX_DEPTH, check_pickle
from ddpm_jax.interchange.tensor_files import read_safetensors
from ddpm_jax.interchange.torch_files import read_torch_file
from ddpm_jax.runtime.errors import UserError

END = pickle.STOP


def raw_zip(path, text, storages=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", text)
        for key, data in dict(storages).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def error_of(read, *args, **kwargs):
    with pytest.raises(UserError) as error:
        read(*args, **kwargs)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    return str(error.value)


# Pickles

DEEP_KEY = b"\x80\x02}" + pickle.EMPTY_TUPLE + 10**6 * pickle.TUPLE1 + b"K\x01s" + END
WIDE_KEY = b"\x80\x02}" + pickle.EMPTY_TUPLE + 60 * (pickle.DUP + pickle.TUPLE2) + b"K\x01s" + END
BY_MEMO = (
    b"\x80\x02}" + pickle.EMPTY_TUPLE + b"q\x00"
    + b"".join(b"0h" + bytes([i]) + b"h" + bytes([i]) + pickle.TUPLE2 + b"q" + bytes([i + 1]) for i in range(60))
    + b"K\x01s" + END
)  # fmt: skip
TWICE = pickle.DUP + b"q\x000(h\x00h\x00" + pickle.TUPLE
WITH_MARKS = b"\x80\x02}" + pickle.EMPTY_TUPLE + 60 * TWICE + b"K\x01s" + END


@pytest.mark.parametrize("text", [DEEP_KEY, WIDE_KEY, BY_MEMO, WITH_MARKS], ids=["deep", "wide", "memo", "marks"])
def test_a_key_that_takes_for_ever_to_hash(text, tmp_path):
    message = error_of(read_torch_file, raw_zip(tmp_path / "x.pt", text))
    assert "nested too deeply, or refer to each other too often" in message


def test_dicts_that_share_each_other_are_not_unfolded(tmp_path):
    value = {}
    for _ in range(40):
        value = {"a": value, "b": value}
    assert "refer to each other too often" in error_of(read_torch_file, raw_zip(tmp_path / "x.pt", pickled(value)))


def test_many_expanded_tensors_of_one_number(tmp_path):
    """2^20 tensors of 4 MB each from one number."""
    path = zip_file(tmp_path / "x.pt", [tensor(Stored("FloatStorage", "0", 1), (2**20,), (0,)) for _ in range(40)],
                    {"0": b"\0\0\0\0"})  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "take far more memory than the file has bytes" in error_of(read_torch_file, path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_pickle_of_40_mb(tmp_path):
    path = raw_zip(tmp_path / "x.pt", b"\x80\x02]" + 10 * 2**20 * b"N0" + END)
    assert "has more than" in error_of(read_torch_file, path)


@pytest.mark.parametrize(
    "value",
    [
        {"w": [1, 2.5, "x", None, (1, (2, 3))], "n": {"deep": {"er": {}}}},
        {(1, 2): "tuple", 3: [], "a": ({}, ())},
        [[[]] * 10] * 10,
        {str(i): list(range(5)) for i in range(3000)},
    ],
)
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_ordinary_pickles_are_within_the_bounds(value, protocol):
    text = pickle.dumps(value, protocol)
    file = io.BytesIO(text + b"more")
    check_pickle(file, len(text))
    assert file.tell() == len(text)


def test_the_bound_of_the_depth():
    for depth, fits in ((MAX_DEPTH - 1, True), (MAX_DEPTH + 1, False)):
        text = b"\x80\x02" + pickle.EMPTY_TUPLE + depth * pickle.TUPLE1 + END
        if fits:
            check_pickle(io.BytesIO(text), len(text))
        else:
            with pytest.raises(pickle.UnpicklingError):
                check_pickle(io.BytesIO(text), len(text))


def test_an_encrypted_entry(tmp_path):
    path = raw_zip(tmp_path / "x.pt", pickled({}))
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag of a password, in both headers
        data[data.index(mark) + at] |= 1
    path.write_bytes(data)
    assert "encrypted" in error_of(read_torch_file, path)


# .npz and .safetensors


def npz_of(path, headers):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, header, data in headers:
            text = header.encode() + b"\n"
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data)
    return path


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (HEADER % "(10000000000000,)", b""), (HEADER % "(True,)", b"\0\0\0\0"), (HEADER % "(-1,)", b""),
        ("{'descr': '<U3', 'fortran_order': False, 'shape': (1,), }", b"a\0\0\0" * 3), ("{'descr': 3}", b""),
        (HEADER % "(" + "(" * 500, b""),
    ],
    ids=["huge", "boolean shape", "negative", "text", "header", "brackets"],
)  # fmt: skip
def test_an_npz_of_another_kind(header, data, tmp_path):
    message = error_of(read_npz, npz_of(tmp_path / "x.npz", [("w", header, data)]))
    assert "is truncated, damaged or not a numeric .npz file" in message or "contains no config" in message


def test_an_npz_that_unpacks_to_6_gb(tmp_path):
    """Its directory says so; here a file that claims it, without the 6 MB of zeros."""
    path = npz_of(tmp_path / "x.npz", [("w", HEADER % "(1,)", b"\0\0\0\0")])
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(data)
    assert "it unpacks to 4.29 GB" in error_of(read_npz, path)


@pytest.mark.parametrize("shape", [[0, 2**62, 2**10], [1] * 100])
def test_safetensors_of_impossible_shapes(shape, tmp_path):
    good = save({"w": np.zeros(0 if 0 in shape else 1, np.float32)})
    size = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + size])
    header["w"]["shape"] = shape
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + good[8 + size :])
    message = error_of(read_safetensors, tmp_path / "x.safetensors")
    assert "shape that cannot be read" in message or "damaged" in message


# TensorFlow's index


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def block_of(entries):
    """(shared, new bytes, value) of each entry."""
    body = b"".join(varint(s) + varint(len(k)) + varint(len(v)) + k + v for s, k, v in entries)
    body += struct.pack("<II", 0, 1)
    checksum = crc32c(body + b"\0")
    masked = ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return body + b"\0" + struct.pack("<I", masked), len(body)


def table_of(block, size, times):
    handle = varint(0) + varint(size)
    index, index_size = block_of([(0, b"%06d" % i, handle) for i in range(times)])
    footer = (varint(0) * 2 + varint(len(block)) + varint(index_size)).ljust(40, b"\0")
    return block + index + footer + struct.pack("<Q", 0xDB4775248B80FB57)


def test_a_table_that_lists_one_block_many_times():
    block, size = block_of([(0, b"name", b"x" * 1000)])
    assert list(table_items(table_of(block, size, 1))) == [(b"name", b"x" * 1000)]
    with pytest.raises(DamagedFile, match="larger than the whole"):
        list(table_items(table_of(block, size, 1000)))


def test_names_that_unfold():
    block, size = block_of([(0, b"a" * 100, b"")] + [(100 + 100 * i, b"a" * 100, b"") for i in range(100)])
    with pytest.raises(DamagedFile, match="a name has 4100 bytes"):
        list(table_items(table_of(block, size, 1)))


@pytest.mark.parametrize("step", [np.float32(np.nan), np.arange(2), np.array(["x"])])
def test_a_number_of_updates_that_is_none(step, tiny_config):
    message = error_of(read_original_as, {"global_step": np.asarray(step)}, tiny_config(), what="the file")
    assert "has no number of updates in global_step" in message


# Settings of diffusers


@pytest.mark.parametrize(
    "settings",
    [{"beta_start": 1e-320}, {"beta_start": 10**400}, {"steps_offset": 10**30}, {"num_train_timesteps": 10**30},
     {"beta_end": float("nan")}, {"clip_sample_range": 1e300}, {"_class_name": ["x"]}],
)  # fmt: skip
def test_settings_beyond_all_bounds(settings):
    given = {"_class_name": "DDPMScheduler", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
    error_of(fields_of_scheduler, given | settings, "scheduler_config.json", None)
