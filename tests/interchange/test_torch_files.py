"""Files in PyTorch's formats, written here byte by byte: what is read, and what is refused unexecuted."""

import collections
import io
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from ddpm_jax.interchange.torch_files import read_torch_file
from ddpm_jax.runtime.errors import UserError


class Global:
    """A name in a pickle, as `GLOBAL module name`; `call` calls it when a victim unpickles it."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    def __init__(self, function, *args):
        self.function, self.args = function, args


class Stored:
    def __init__(self, kind, key, numel, *more):
        self.pid = ("storage", Global("torch", kind), key, "cpu", numel, *more)


class Module:
    """Pickles as an object of a TorchScript class with attributes."""

    def __init__(self, name, **attributes):
        self.name, self.attributes = name, attributes


class Pickler(pickle._Pickler):
    """Pickles names that need not exist here."""

    def persistent_id(self, item):
        return item.pid if isinstance(item, Stored) else None

    def save(self, item, *args, **kwargs):
        if isinstance(item, Global):
            self.write(f"c{item.module}\n{item.name}\n".encode())
        elif isinstance(item, Call):
            self.save(item.function)
            self.save(item.args)
            self.write(pickle.REDUCE)
        elif isinstance(item, Module):
            self.write(f"c__torch__.net\n{item.name}\n".encode() + pickle.EMPTY_TUPLE + pickle.NEWOBJ)
            self.save(item.attributes)
            self.write(pickle.BUILD)
        else:
            super().save(item, *args, **kwargs)


def pickled(value):
    out = io.BytesIO()
    Pickler(out, 2).dump(value)
    return out.getvalue()


def tensor(stored, shape, strides, offset=0):
    hooks = collections.OrderedDict()
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), stored, offset, shape, strides, False, hooks)


def zip_file(path, value, storages, byteorder="little", **more):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(value))
        archive.writestr("archive/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in more.items():
            archive.writestr(f"archive/{name}", data)
    return path


def legacy_file(path, value, storages):
    with open(path, "wb") as file:
        for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, value, list(storages)):
            file.write(pickled(header))
        for numel, data in storages.values():
            file.write(struct.pack("<q", numel) + data)
    return path


FLOATS = np.arange(12, dtype=np.float32)


@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize(
    "kind,dtype",
    [
        ("FloatStorage", np.float32), ("DoubleStorage", np.float64), ("HalfStorage", np.float16),
        ("BFloat16Storage", ml_dtypes.bfloat16), ("LongStorage", np.int64), ("ByteStorage", np.uint8),
    ],
)  # fmt: skip
def test_types_and_byte_orders(tmp_path, kind, dtype, byteorder):
    values = np.arange(6).astype(dtype)
    data = values.byteswap() if byteorder == "big" else values
    value = {"a": tensor(Stored(kind, "0", 6), (2, 3), (3, 1))}
    read = read_torch_file(zip_file(tmp_path / "x.pt", value, {"0": data.tobytes()}, byteorder))
    assert read["a"].dtype == dtype
    np.testing.assert_array_equal(read["a"], values.reshape(2, 3))


def views():
    """Four tensors of one storage, and the arrays that they are."""
    stored = Stored("FloatStorage", "0", 12)
    value = {
        "whole": tensor(stored, (3, 4), (4, 1)),
        "nested": {"transposed": tensor(stored, (4, 3), (1, 4)), "epoch": 3, "name": "x", "none": None},
        "tail": tensor(stored, (2,), (3,), offset=8),
        "list": [tensor(stored, (), (), offset=5), 0.5, True],
        "expanded": tensor(stored, (2, 3), (0, 1)),
        "empty": tensor(stored, (0, 3), (3, 1)),
    }
    return value


def check_views(read):
    whole = FLOATS.reshape(3, 4)
    np.testing.assert_array_equal(read["whole"], whole)
    np.testing.assert_array_equal(read["nested"]["transposed"], whole.T)
    assert {name: read["nested"][name] for name in ("epoch", "name", "none")} == {"epoch": 3, "name": "x", "none": None}
    np.testing.assert_array_equal(read["tail"], [8, 11])
    assert read["list"] == [5.0, 0.5, True] and read["list"][0].shape == ()
    np.testing.assert_array_equal(read["expanded"], [FLOATS[:3], FLOATS[:3]])
    assert read["empty"].shape == (0, 3)
    assert all(read[name].flags.c_contiguous and read[name].flags.writeable for name in ("whole", "tail", "expanded"))


def test_strides_offsets_and_shared_storages(tmp_path):
    check_views(read_torch_file(zip_file(tmp_path / "x.pt", views(), {"0": FLOATS.tobytes()})))


def test_the_format_before_1_6(tmp_path):
    check_views(read_torch_file(legacy_file(tmp_path / "x.pth", views(), {"0": (12, FLOATS.tobytes())})))


def test_a_storage_of_another_size_than_its_pickle_says(tmp_path):
    path = legacy_file(tmp_path / "x.pth", views(), {"0": (11, FLOATS.tobytes())})
    with pytest.raises(UserError, match="storage '0' has 11 elements, not 12"):
        read_torch_file(path)


def test_parameters_and_older_tensors(tmp_path):
    plain = Call(Global("torch._utils", "_rebuild_tensor"), Stored("FloatStorage", "0", 12), 2, (3,), (1,))
    value = {"p": Call(Global("torch._utils", "_rebuild_parameter"), plain, True, collections.OrderedDict())}
    read = read_torch_file(zip_file(tmp_path / "x.pt", value, {"0": FLOATS.tobytes()}))
    np.testing.assert_array_equal(read["p"], [2, 3, 4])


def test_a_torch_script_module_gives_its_weights(tmp_path):
    weight = tensor(Stored("FloatStorage", "0", 12), (3, 4), (4, 1))
    sizes = Call(Global("torch.jit._pickle", "build_intlist"), [1, 2])
    net = Module("Net", training=False, conv=Module("Conv", weight=weight, bias=None, padding=sizes))
    path = zip_file(tmp_path / "x.pt", net, {"0": FLOATS.tobytes()}, **{"code/__torch__/net.py": "def forward(): ..."})
    read = read_torch_file(path)
    assert read["training"] is False and read["conv"]["bias"] is None and read["conv"]["padding"] == [1, 2]
    np.testing.assert_array_equal(read["conv"]["weight"], FLOATS.reshape(3, 4))
    # The same names in a file without code are no TorchScript.
    with pytest.raises(UserError, match="__torch__.net.Net"):
        read_torch_file(zip_file(tmp_path / "y.pt", net, {"0": FLOATS.tobytes()}))


@pytest.mark.parametrize("write", [zip_file, legacy_file])
@pytest.mark.parametrize(
    "module,name",
    [("os", "system"), ("builtins", "eval"), ("subprocess", "Popen"), ("torch.storage", "_load_from_bytes")],
)
def test_a_hostile_pickle_is_named_and_not_executed(tmp_path, write, module, name):
    mark = tmp_path / "executed"
    command = f"open({str(mark)!r}, 'w')" if name == "eval" else f"touch {mark}"
    path = write(tmp_path / "x.pt", {"a": Call(Global(module, name), command)}, {})
    with pytest.raises(UserError, match=rf"asks for {module}\.{name}.*nothing of it was executed"):
        read_torch_file(path)
    assert not mark.exists()


def test_the_same_pickle_would_have_been_executed_by_pickle(tmp_path):
    mark = tmp_path / "executed"
    pickle.loads(pickled(Call(Global("os", "system"), f"touch {mark}")))
    assert mark.exists()


@pytest.mark.parametrize(
    "victim,match",
    [
        ("ctorch._utils\n_rebuild_tensor_v2\n", "a function has no state"),
        ("ctorch\nFloatStorage\n", "the type of a storage has no state"),
        ("ccollections\nOrderedDict\n", "missing (1|a) required.*argument"),
    ],
)
def test_a_pickle_cannot_change_what_it_is_read_with(tmp_path, victim, match):
    """BUILD sets attributes of what is on the stack: here of the function that rebuilds tensors."""
    hostile = b"\x80\x02" + victim.encode() + pickled({"__defaults__": (1,)})[2:-1] + pickle.BUILD + b"."
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("archive/data.pkl", hostile)
    with pytest.raises(UserError, match=match):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize("write", [zip_file, legacy_file])
def test_every_truncation_is_one_clear_error(tmp_path, write):
    storages = {"0": FLOATS.tobytes() if write is zip_file else (12, FLOATS.tobytes())}
    whole = write(tmp_path / "x.pt", views(), storages).read_bytes()
    part = tmp_path / "part.pt"
    for size in range(0, len(whole), 7):
        part.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"part\.pt (is truncated or damaged|was not written by torch\.save)"):
            read_torch_file(part)


def test_a_flipped_bit_is_found(tmp_path):
    data = bytearray(zip_file(tmp_path / "x.pt", views(), {"0": FLOATS.tobytes()}).read_bytes())
    data[data.index(FLOATS.tobytes()) + 5] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(UserError, match="CRC"):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "shape,strides,offset",
    [((13,), (1,), 0), ((2,), (1,), 11), ((2, 2), (11, 1), 0), ((2,), (-1,), 0), ((1,), (1,), -1),
     ((2, 2), (1,), 0), ((2**40,), (0,), 0), ((1,) * 33, (1,) * 33, 0), ((0.5,), (1,), 0)],
)  # fmt: skip
def test_a_tensor_outside_of_its_storage_is_refused(tmp_path, shape, strides, offset):
    value = {"a": tensor(Stored("FloatStorage", "0", 12), shape, strides, offset)}
    with pytest.raises(UserError, match="damaged"):
        read_torch_file(zip_file(tmp_path / "x.pt", value, {"0": FLOATS.tobytes()}))


@pytest.mark.parametrize(
    "stored",
    [Stored("FloatStorage", "0", 13), Stored("FloatStorage", "0", -1), Stored("FloatStorage", "1", 12),
     Stored("FloatStorage", ("0",), 12), Stored("FloatStorage", "../../0", 12)],
)  # fmt: skip
def test_a_storage_that_is_not_there_is_refused(tmp_path, stored):
    with pytest.raises(UserError, match="damaged"):
        read_torch_file(zip_file(tmp_path / "x.pt", {"a": tensor(stored, (1,), (1,))}, {"0": FLOATS.tobytes()}))


def test_numbers_in_a_file_do_not_decide_about_the_memory(tmp_path):
    huge_memo = b"\x80\x02}" + b"r\xff\xff\xff\xff" + b"."
    huge_bytes = b"\x80\x05\x96" + struct.pack("<Q", 2**50) + b"."
    for hostile in (huge_memo, huge_bytes):
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
            archive.writestr("archive/data.pkl", hostile)
        with pytest.raises(UserError, match="the opcode LONG_BINPUT, which|in a bytearray8, but only"):
            read_torch_file(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled({}))
    with pytest.raises(UserError, match="compressed"):
        read_torch_file(tmp_path / "x.pt")


def test_containers_that_contain_themselves_or_share(tmp_path):
    inside = {}
    inside["a"] = [inside]
    with pytest.raises(UserError, match="contains itself"):
        read_torch_file(zip_file(tmp_path / "x.pt", inside, {}))
    shared = []
    for _ in range(15):
        shared = [shared, shared]
    read = read_torch_file(zip_file(tmp_path / "x.pt", {"a": shared}, {}))
    assert read["a"][0] is read["a"][1]


def test_other_files_are_named(tmp_path):
    for content in (b"", b"hello", pickle.dumps(3), pickle.dumps({"a": 1}, protocol=4)):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(UserError, match=r"x\.pt (was not written by torch.save|is a pickle, but not)"):
            read_torch_file(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match="not by torch.save: it contains"):
        read_torch_file(tmp_path / "x.pt")
    with pytest.raises(UserError, match="must contain a dict of tensors; it contains a list"):
        read_torch_file(zip_file(tmp_path / "y.pt", [1], {}))
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_torch_file(path)
    assert os.listdir(tmp_path)
