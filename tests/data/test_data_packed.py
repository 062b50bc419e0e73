"""A packed file gives what its folder gives, bit for bit; it is there whole or not at all."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import BatchLoader, make_source, pack_folder
from ddpm_jax.data import __main__ as command
from ddpm_jax.data.condition import Entry
from ddpm_jax.runtime.errors import UserError

array_record = pytest.importorskip("array_record.python.array_record_module")

SIZE = ["--image_size=12,8"]


def _make(path, split="train", image_size=(12, 8), num_channels=3):
    return make_source(
        name="image_folder", path=str(path), split=split, image_size=image_size, num_channels=num_channels
    )


def _all(images):
    return images.load(np.arange(len(images)))


def _pack(folder, out, *flags):
    return command.main(["pack", str(folder), str(out), *SIZE, *flags])


@pytest.fixture
def pictures(tmp_path, picture):
    """train/ and test/ with two classes each, pictures of three sizes and formats, and five that are broken."""
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for number in range(40):
        place = folder / ["train", "test"][number % 5 == 0] / ["cat", "dog"][number % 3 == 0]
        place.mkdir(parents=True, exist_ok=True)
        image = picture(20 + number % 3, 17)
        image.putpixel((8, 8), tuple(rng.integers(0, 256, 3).tolist()))
        image.rotate(9 * number).save(place / f"{number:02d}.{['png', 'jpg', 'webp'][number % 4 % 3]}")
    for number, cut in [(1, 0), (7, 0), (13, 20), (19, 44), (37, 44)]:  # no header, and no pixels
        file = next(folder.glob(f"train/*/{number:02d}.*"))
        Image.new("RGB", (20, 17)).save(file.with_suffix(".png"))
        if file.suffix != ".png":
            file.unlink()
        file.with_suffix(".png").write_bytes(file.with_suffix(".png").read_bytes()[:cut])
    return folder


SPLITS = ["train", "test", "all", "train[:70%]", "train[70%:]", "train[5:9]", "all[-10:]", "test[:50%]"]


def test_every_split_is_that_of_the_folder(pictures, tmp_path, either_way, monkeypatch):
    monkeypatch.setattr(pack_folder, "_BLOCK_BYTES", 0)  # the smallest blocks, so that there are several
    assert _pack(pictures, tmp_path / "packed") == 0
    packed_path = tmp_path / "packed.array_record"
    for split in SPLITS:
        folder, packed = _make(pictures, split), _make(packed_path, split)
        assert len(packed) == len(folder) and packed.image_shape == (12, 8, 3), split
        np.testing.assert_array_equal(packed.labels, folder.labels)
        assert packed.notes == folder.notes
        np.testing.assert_array_equal(_all(packed), _all(folder))
        assert sorted(packed.notes) == sorted(folder.notes), split  # those found broken on the way too
    assert any("19.png" in note for note in _make(pictures, "all").notes) == (either_way == "in memory")
    for path in (pictures, packed_path):
        with pytest.raises(UserError, match=r"\(test, train\); got 'tests'; did you mean 'test'"):
            _make(path, "tests")


def test_grey(pictures, tmp_path):
    assert _pack(pictures, tmp_path / "packed", "--num_channels=1") == 0
    folder, packed = (_make(path, num_channels=1) for path in (pictures, tmp_path / "packed.array_record"))
    np.testing.assert_array_equal(_all(packed), _all(folder))


@pytest.mark.parametrize("num_cores", [1, 3, 16])
def test_batches_do_not_depend_on_threads_or_processes(pictures, tmp_path, monkeypatch, either_way, num_cores):
    assert _pack(pictures, tmp_path / "packed") == 0
    settings = dict(batch_size=6, seed=3, first_step=11, spec={"label": Entry()})
    with BatchLoader(_make(pictures), **settings) as loader:
        expected = [next(loader) for _ in range(9)]
    monkeypatch.setattr(os, "cpu_count", lambda: num_cores)
    for path in (pictures, tmp_path / "packed.array_record"):
        for process_count in (1, 3):
            loaders = [
                BatchLoader(_make(path), **settings, process_index=p, process_count=process_count)
                for p in range(process_count)
            ]
            for images, condition in expected:
                parts = [next(loader) for loader in loaders]
                np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), images)
                np.testing.assert_array_equal(
                    np.concatenate([part.condition["label"] for part in parts]), condition["label"]
                )
            for loader in loaders:
                loader.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_of_odd_bytes(tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for value, name in enumerate([b"\xff.png", b"a\n.png", "\u00e9.png".encode()]):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            Image.new("RGB", (8, 12), (value,) * 3).save(file, "PNG")
    assert _pack(folder, tmp_path / "packed") == 0
    np.testing.assert_array_equal(_all(_make(tmp_path / "packed.array_record")), _all(_make(folder)))


def test_another_size_is_resized_and_said(pictures, tmp_path):
    assert _pack(pictures, tmp_path / "packed") == 0
    images = _make(tmp_path / "packed.array_record", "test", image_size=(6, 4), num_channels=1)
    assert _all(images).shape == (8, 6, 4, 1)
    assert images.notes[0].startswith("packed at 12x8x3 and resized to 6x4x1: pack at that size")


# What is written


# A pack in a process of its own that ends itself by SIGKILL at the 17th picture.
_KILLED = """
import os, signal, sys
from ddpm_jax.data import pack_folder
from ddpm_jax.data.__main__ import main
pack_folder._BLOCK_BYTES = 0  # the smallest blocks
real, count = pack_folder.decode_image, []
def decode_image(*args, **settings):
    count.append(1)
    if len(count) == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **settings)
pack_folder.decode_image = decode_image
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_pack_leaves_nothing_that_is_read(pictures, tmp_path):
    out = tmp_path / "place" / "packed.array_record"
    line = [sys.executable, "-c", _KILLED, "pack", str(pictures), str(out), *SIZE]
    done = subprocess.run(line, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL and not out.exists()
    (leftover,) = out.parent.iterdir()
    shutil.copy(leftover, tmp_path / "part.array_record")
    with pytest.raises(UserError, match="damaged, truncated"):
        _make(tmp_path / "part.array_record")

    other = out.parent / f".{out.name}.{os.getppid()}.part"  # of a process that runs
    other.touch()
    assert _pack(pictures, out) == 0
    assert sorted(out.parent.iterdir()) == [other, out]  # the leftover is gone
    whole = out.read_bytes()
    done = subprocess.run([*line, "--overwrite"], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL and out.read_bytes() == whole


def test_an_existing_file_is_kept_unless_asked(pictures, tmp_path, capsys):
    out = tmp_path / "packed.array_record"
    out.write_text("mine")
    assert _pack(pictures, out) == 2
    assert "exists; give another name, or --overwrite to replace it" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert _pack(pictures, out, "--overwrite") == 0 and len(_make(out, "test")) == 8
    once = out.read_bytes()
    assert _pack(pictures, out, "--overwrite") == 0 and out.read_bytes() == once


def test_an_interrupted_pack_leaves_nothing(pictures, tmp_path, monkeypatch):
    def write_images(*unused):
        raise KeyboardInterrupt

    monkeypatch.setattr(pack_folder, "_write_images", write_images)
    (tmp_path / "place").mkdir()
    assert _pack(pictures, tmp_path / "place" / "packed") == 130
    assert not list((tmp_path / "place").iterdir())


def test_a_full_disk(pictures, tmp_path, capsys):
    """A limit on the size of a file stands in for it: writes fail in the same place."""
    (tmp_path / "place").mkdir()
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from ddpm_jax.data.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    line = [sys.executable, "-c", code, "pack", str(pictures), str(tmp_path / "place" / "packed"), *SIZE]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "could not be written" in done.stderr and "Traceback" not in done.stderr
    assert "File too large" in done.stderr and not list((tmp_path / "place").iterdir())


def test_what_was_written_is_read_before_it_counts(pictures, tmp_path, monkeypatch, capsys):
    class Forgetful(array_record.ArrayRecordWriter):
        def write(self, record):
            if not record.startswith(b"{"):
                super().write(record)

    class Module:
        ArrayRecordWriter = Forgetful

    monkeypatch.setattr(pack_folder, "array_record_module", lambda: Module)
    (tmp_path / "place").mkdir()
    assert _pack(pictures, tmp_path / "place" / "packed") == 2
    assert "with other contents, or damaged" in capsys.readouterr().err and not list((tmp_path / "place").iterdir())


def test_too_little_room_is_told_before_the_work(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    assert _pack(pictures, tmp_path / "packed") == 2
    assert "40 images of 12x8x3 take 0.0 GB" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line, match",
    [
        (["pack", "{pictures}", "{out}"], "required: --image_size"),
        (["pack", "{pictures}", "{out}", "--image_size=6x4"], r"--image_size must be H,W in pixels, .*; got '6x4'"),
        (["pack", "{pictures}", "{out}", "--image_size=0,4"], "got '0,4'"),
        (["pack", "{pictures}", "{out}", *SIZE, "--num_channels=4"], "--num_channels must be 1 .* got '4'"),
        (["pack", "{pictures}/nowhere", "{out}", *SIZE], "no such folder"),
        (["pack", "{empty}", "{out}", *SIZE], "holds no image file"),
        (["pack", "{broken}", "{out}", *SIZE], r"no image could be read: skipped 1 of 1 .* x.png \(not an image\)"),
        (["pack", "{pictures}", "{pictures}/a.png/x", *SIZE], "cannot be written"),
        (["pack", "{pictures}", "{out}", *SIZE, "--overwite"], "did you mean '--overwrite'"),
        (["pakc"], r"one of \['pack'\]; got 'pakc'; did you mean 'pack'"),
        ([], "got none; see python -m ddpm_jax.data --help"),
    ],
)
def test_mistakes_are_one_line(pictures, tmp_path, line, match, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.png").touch()
    (pictures / "a.png").touch()
    names = {"pictures": pictures, "out": tmp_path / "out", "empty": tmp_path / "empty", "broken": tmp_path / "broken"}
    assert command.main([part.format(**names) for part in line]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(match, error)
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob(".out*"))


def test_the_package_is_named_where_it_is_missing(pictures, tmp_path, monkeypatch, capsys):
    assert _pack(pictures, tmp_path / "packed") == 0
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    monkeypatch.setattr(sys, "platform", "linux")
    assert _pack(pictures, tmp_path / "other") == 2
    error = capsys.readouterr().err
    assert "packed images need the package array_record (" in error and "pip install -U array_record" in error
    with pytest.raises(UserError, match="pip install -U array_record; or read the folder itself"):
        _make(tmp_path / "packed.array_record")
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="there is none for Windows; or read the folder itself"):
        _make(tmp_path / "packed.array_record")


def test_help_lists_the_commands(capsys):
    assert command.main(["--help"]) == 0 and "  pack    packs a folder" in capsys.readouterr().out
    assert command.main(["pack", "--help"]) == 0
    out = capsys.readouterr().out
    assert "pack DIR OUT --image_size=H,W" in out and "--config" not in out.split("options:")[1]


# What is damaged later


@pytest.fixture
def packed(pictures, tmp_path):
    assert _pack(pictures, tmp_path / "packed") == 0
    return tmp_path / "packed.array_record"


def test_a_truncated_file_is_refused(packed):
    whole = packed.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        packed.write_bytes(whole[:size])
        with pytest.raises(UserError, match="is damaged, truncated or not an array_record; pack the folder again"):
            _make(packed)
    packed.unlink()
    with pytest.raises(UserError, match="a packed file; got .* \\(no such file\\)"):
        _make(packed)


def test_a_changed_byte_is_found_and_its_picture_replaced(packed, either_way, caplog):
    clean = _all(_make(packed))
    whole = bytearray(packed.read_bytes())
    place = whole.find(clean[4].tobytes())
    assert place > 0
    whole[place + 50] ^= 1
    packed.write_bytes(whole)
    images = _make(packed)
    pixels = _all(images)
    same_label = next(i for i in range(5, len(clean)) if images.labels[i] == images.labels[4])
    np.testing.assert_array_equal(pixels[4], clean[same_label])
    np.testing.assert_array_equal(np.delete(pixels, 4, 0), np.delete(clean, 4, 0))
    assert caplog.text.count("hash mismatch") == 1 and sum("hash mismatch" in note for note in images.notes) == 1


def test_other_array_records_are_refused(tmp_path):
    header = {"format": "pictures packed by ddpm_jax", "version": 3}
    for name, records, match in [
        ("one", [b"x"], "with other contents"),
        ("other", [b"x", b"y", b"z"], "with other contents"),
        ("json", [b"x", b"{}"], "with other contents"),
        ("number", [b"x", b"7"], "with other contents"),
        ("names", [b"x", json.dumps(header).encode()], "with other contents, or damaged"),
        ("newer", [zlib.compress(b"a"), json.dumps(header).encode()], "has version 3, and this ddpm_jax reads version"),
    ]:
        file = str(tmp_path / f"{name}.array_record")
        writer = array_record.ArrayRecordWriter(file, "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        with pytest.raises(UserError, match=match):
            _make(file)
