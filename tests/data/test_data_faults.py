"""Folders as they go wrong: each fault is made for real, and must be said by the file's name and the reason."""

import os
import resource
import shutil
import socket
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import BatchLoader, batch_indices, image_source, make_source, unreadable_images
from ddpm_jax.data import image_decoding as pixels
from ddpm_jax.runtime.errors import UserError


def _make(path, split="train", image_size=(8, 8)):
    return make_source(name="image_folder", path=str(path), split=split, image_size=image_size, num_channels=3)


def _flat(folder, values):
    folder.mkdir(parents=True, exist_ok=True)
    for value in values:
        Image.new("RGB", (9, 11), (value,) * 3).save(folder / f"{value:03d}.png")


def _values(images):
    return images[:, 0, 0, 0].tolist()


def _all(images):
    return images.load(np.arange(len(images)))


def _declared_png(width, height, data=b""):
    """A PNG that says it is so large, with `data` as its compressed pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture(params=["in memory", "on demand"])
def either_way(request, monkeypatch):
    if request.param == "on demand":
        monkeypatch.setattr(image_source, "MEMORY_BUDGET_BYTES", 0)
    return request.param


def _truncated(folder, whole):
    (folder / "bad.png").write_bytes(whole[: len(whole) // 2])


def _bomb(width, height):
    def fault(folder, whole):
        (folder / "bad.png").write_bytes(_declared_png(width, height, zlib.compress(bytes(4 * width))))

    return fault


def _socket(folder, whole):
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket may have 108 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("bad.png")
    finally:
        os.chdir(here)


FAULTS = {
    "zero bytes": (lambda p, whole: (p / "bad.png").write_bytes(b""), "bad.png (not an image)"),
    "text named jpg": (lambda p, whole: (p / "bad.jpg").write_text("<html>"), "bad.jpg (not an image)"),
    "header cut": (lambda p, whole: (p / "bad.png").write_bytes(whole[:20]), "bad.png ("),
    "bomb of Pillow's": (_bomb(50_000, 50_000), "bad.png (Image size (2500000000 pixels) exceeds limit"),
    "bomb below that": (_bomb(13_000, 13_000), "bad.png (13000 x 13000 pixels; the most is 89,478,485"),
    "named pipe": (lambda p, whole: os.mkfifo(p / "bad.png"), "bad.png (a named pipe, not a file)"),
    "socket": (_socket, "bad.png (a socket, not a file)"),
    "device": (lambda p, whole: os.symlink("/dev/zero", p / "bad.png"), "bad.png (a device, not a file)"),
    "broken link": (lambda p, whole: os.symlink("nowhere", p / "bad.png"), "bad.png (a broken link)"),
    "link to itself": (lambda p, whole: os.symlink("bad.png", p / "bad.png"), "bad.png (a broken link)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_skipped_and_named(tmp_path, either_way, fault):
    _flat(tmp_path, [1, 2])
    make, told = FAULTS[fault]
    make(tmp_path, (tmp_path / "001.png").read_bytes())
    images = _make(tmp_path)
    assert _values(_all(images)) == [1, 2]
    (note,) = images.notes
    assert note.startswith("skipped 1 of 3 image files") and told in note and "\n" not in note


def test_a_truncated_file_is_skipped_or_replaced(tmp_path, either_way, picture):
    for name, ending in [("a", "png"), ("b", "jpg"), ("c", "webp"), ("d", "gif"), ("e", "bmp")]:
        picture(64, 64).save(tmp_path / f"{name}.{ending}")
        whole = (tmp_path / f"{name}.{ending}").read_bytes()
        (tmp_path / f"{name}{name}.{ending}").write_bytes(whole[: int(0.7 * len(whole))])
    images = _make(tmp_path, image_size=(64, 64))
    pixels = _all(images)
    told = " ".join(images.notes)
    for name in ("aa.png", "bb.jpg", "cc.webp", "dd.gif", "ee.bmp"):
        assert name in told, name
    if either_way == "in memory":
        assert len(images) == 5
    else:  # b stands for aa, c for bb, ...; a WebP shows it in the header already
        by_name = dict(zip("a aa b bb c d dd e ee".split(), pixels, strict=True))
        for damaged, next_one in [("aa", "b"), ("bb", "c"), ("dd", "e"), ("ee", "a")]:
            np.testing.assert_array_equal(by_name[damaged], by_name[next_one])


def test_the_content_decides_and_not_the_name(tmp_path, either_way):
    picture = Image.new("RGB", (9, 11), (7, 7, 7))
    picture.save(tmp_path / "a.png", format="JPEG", quality=100)
    picture.save(tmp_path / "b.jpg", format="PNG")
    images = _make(tmp_path)
    assert _values(_all(images)) == [7, 7] and images.notes == ()


def test_duplicates_are_allowed(tmp_path, either_way):
    _flat(tmp_path, [1])
    shutil.copy(tmp_path / "001.png", tmp_path / "copy.png")
    os.link(tmp_path / "001.png", tmp_path / "link.png")
    assert _values(_all(_make(tmp_path))) == [1, 1, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_a_bomb_takes_no_memory(tmp_path):
    """In a process that may not have more than 3 GB: 50,000 x 50,000 pixels would be 10."""
    _flat(tmp_path, [1])
    FAULTS["bomb of Pillow's"][0](tmp_path, b"")
    code = (
        "from ddpm_jax.data import make_source\n"
        f"images = make_source(name='image_folder', path={str(tmp_path)!r}, image_size=(8, 8), num_channels=3)\n"
        "print(len(images), images.notes)"
    )
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30,) * 2)  # noqa: E731
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, preexec_fn=limit)
    assert done.returncode == 0 and done.stdout.startswith("1 ('skipped 1 of 2"), done.stderr


def test_large_pictures_are_decoded_one_at_a_time(tmp_path, either_way, monkeypatch):
    _flat(tmp_path, range(12))
    expected = _all(_make(tmp_path))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    names, real = set(), pixels._load

    def load(*args):
        names.add(threading.current_thread().name)
        return real(*args)

    monkeypatch.setattr(pixels, "_load", load)
    for most, in_one in ((9 * 11, False), (9 * 11 - 1, True)):
        names.clear()
        monkeypatch.setattr(pixels, "_LARGE_PIXELS", most)
        np.testing.assert_array_equal(_all(_make(tmp_path)), expected)
        assert (names == {"ddpm_jax-large_0"}) == in_one


def test_a_folder_named_like_a_picture_is_a_folder(tmp_path, either_way):
    _flat(tmp_path / "a.png", [3])
    assert _values(_all(_make(tmp_path))) == [3]


def test_links_of_folders_in_circles(tmp_path, either_way):
    _flat(tmp_path / "a" / "b", [3])
    os.symlink(tmp_path, tmp_path / "a" / "b" / "top")
    os.symlink("..", tmp_path / "a" / "up")
    os.symlink("self", tmp_path / "self")
    assert _values(_all(_make(tmp_path))) == [3]


def test_folders_nested_beyond_the_stack(tmp_path, either_way):
    top = os.open(tmp_path, os.O_RDONLY)
    place = os.dup(top)
    try:
        for _ in range(1500):  # 3,000 characters: below the 4,096 that a path may have
            os.mkdir("d", dir_fd=place)
            below = os.open("d", os.O_RDONLY, dir_fd=place)
            os.close(place)
            place = below
        _flat(tmp_path, [4])
        os.link(tmp_path / "004.png", "deep.png", dst_dir_fd=place)
        assert _values(_all(_make(tmp_path))) == [4, 4]
        for _ in range(700):
            os.mkdir("d", dir_fd=place)
            below = os.open("d", os.O_RDONLY, dir_fd=place)
            os.close(place)
            place = below
        images = _make(tmp_path)
        assert len(images) == 2 and "1 folder(s) could not be read: d/d/d" in images.notes[0]
        assert "File name too long" in images.notes[0]
    finally:
        os.close(place)
        os.close(top)
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # Python's own runs out of stack


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_of_odd_bytes(tmp_path, either_way, capsys):
    _flat(tmp_path, [1, 2])
    folder = os.fsencode(tmp_path)
    os.rename(folder + b"/001.png", folder + b"/\xff\xfe\n.png")
    with open(folder + b"/bad\xe9\n.png", "wb"):
        pass
    images = _make(tmp_path)
    assert sorted(_values(_all(images))) == [1, 2]
    (note,) = images.notes
    assert "bad\\udce9\\n.png (not an image)" in note
    note.encode("ascii")  # any terminal and any log file takes it


def test_an_unreadable_file_and_folder(tmp_path, either_way):
    _flat(tmp_path, [1, 2])
    _flat(tmp_path / "closed", [3])
    (tmp_path / "002.png").chmod(0)
    (tmp_path / "closed").chmod(0)
    try:
        if os.access(tmp_path / "002.png", os.R_OK):
            pytest.skip("root reads everything; run as another user")
        images = _make(tmp_path)
        assert _values(_all(images)) == [1]
        assert images.notes[0] == "1 folder(s) could not be read: closed/ (Permission denied)"
        assert "002.png (Permission denied)" in images.notes[1]
    finally:
        (tmp_path / "closed").chmod(0o755)


# While it trains: sets too large for memory.


@pytest.fixture
def on_demand(monkeypatch):
    monkeypatch.setattr(image_source, "MEMORY_BUDGET_BYTES", 0)


def test_a_file_that_disappears_or_shrinks_while_it_trains(tmp_path, on_demand, caplog):
    _flat(tmp_path, range(10))
    images = _make(tmp_path)
    seen = []
    with BatchLoader(images, batch_size=5, seed=0, first_step=0, num_prefetch=1) as loader:
        seen += [next(loader).image]
    (tmp_path / "003.png").unlink()
    (tmp_path / "007.png").write_bytes((tmp_path / "007.png").read_bytes()[:44])
    order = batch_indices(seed=0, step=1, batch_size=10, num_examples=10).tolist()
    expected = [{3: 4, 7: 8}.get(index, index) for index in order]
    with BatchLoader(images, batch_size=10, seed=0, first_step=1) as loader:
        assert _values(next(loader).image) == expected
    assert "'003.png' is damaged (No such file or directory); the next image takes its place" in caplog.text
    assert "'007.png' is damaged" in caplog.text
    assert _values(_make(tmp_path).load(np.array([6]))) == [8]  # a fresh start: 003.png is none of the set any more


def test_in_memory_nothing_happens(tmp_path):
    _flat(tmp_path, range(10))
    images = _make(tmp_path)
    before = _all(images)
    shutil.rmtree(tmp_path)
    np.testing.assert_array_equal(_all(images), before)


def test_the_folder_disappears(tmp_path, on_demand):
    _flat(tmp_path / "set", range(10))
    images = _make(tmp_path / "set")
    shutil.rmtree(tmp_path / "set")
    with pytest.raises(UserError, match="^path '.*set' is missing; put it back"):
        images.load(np.arange(10))


def test_all_files_disappear(tmp_path, on_demand, caplog):
    _flat(tmp_path, range(10))
    images = _make(tmp_path)
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"no image could be read in full; .*.png \(No such file or directory\)"):
        images.load(np.arange(10))
    assert not caplog.text  # one error says it


def test_very_many_missing_in_a_row_are_an_error(tmp_path, on_demand, monkeypatch):
    monkeypatch.setattr(unreadable_images, "MAX_IN_A_ROW", 4)
    _flat(tmp_path, range(10))
    images = _make(tmp_path)
    for value in (2, 3, 4):
        (tmp_path / f"{value:03d}.png").unlink()
    assert _values(images.load(np.arange(10))) == [0, 1, 5, 5, 5, 5, 6, 7, 8, 9]
    other = _make(tmp_path)
    for value in (5, 6, 7, 8):
        (tmp_path / f"{value:03d}.png").unlink()
    with pytest.raises(UserError, match=r"4 images in a row could not be read, the last of them 008.png \(No such"):
        other.load(np.array([2]))


def test_many_damaged_pictures_are_counted_and_not_listed_for_ever(tmp_path, on_demand, caplog):
    _flat(tmp_path, range(250))
    images = _make(tmp_path)
    for value in range(0, 250, 2):
        (tmp_path / f"{value:03d}.png").unlink()
    expected = [min(i + 1 - i % 2, 249) for i in range(250)]
    assert _values(images.load(np.arange(250))) == expected
    assert len(images.notes) == 20 and caplog.text.count("takes its place") == 22  # 1..20, 32, 64
    assert "(64 so far)" in caplog.text
