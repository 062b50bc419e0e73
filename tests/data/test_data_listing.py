"""A folder is listed, checked and decoded once for all splits that are in use, and anew once it changed."""

import gc
import os

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import image_folder as folder_lib
from ddpm_jax.data import image_listing as listing_lib
from ddpm_jax.data import make_source
from ddpm_jax.data.image_listing import Listing, list_folder
from ddpm_jax.data.image_source import ThreadMap


def _make(path, split="train", size=8):
    return make_source(name="image_folder", path=str(path), split=split, image_size=(size, size), num_channels=3)


def _values(images):
    return images.load(np.arange(len(images)))[:, 0, 0, 0].tolist()


@pytest.fixture
def settled(tmp_path):
    """Twenty pictures in two folders; `settle()` makes every folder look unchanged for an hour."""
    for value in range(20):
        folder = tmp_path / "ab"[value % 2]
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (9, 11), (value,) * 3).save(folder / f"{value:03d}.png")
    (tmp_path / "a" / "bad.png").write_bytes(b"")

    def settle():
        for place in (tmp_path, tmp_path / "a", tmp_path / "b"):
            hour_ago = os.stat(place).st_mtime_ns - 3600 * 10**9
            os.utime(place, ns=(hour_ago, hour_ago))

    settle()
    return tmp_path, settle


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that were opened, in any way."""
    names = []
    for function in ("decode_image", "read_header"):
        real = getattr(folder_lib, function)

        def spy(file, real=real, **settings):
            names.append(os.path.basename(file))
            return real(file, **settings)

        monkeypatch.setattr(folder_lib, function, spy)
    return names


def test_two_splits_list_once_and_open_each_file_once(settled, opened, either_way, monkeypatch):
    path, _ = settled
    walks = []
    real = Listing._walk
    monkeypatch.setattr(Listing, "_walk", lambda self: (walks.append(1), real(self)))
    train, held_out = _make(path, "train[:80%]"), _make(path, "train[80%:]")
    everything = _make(path)
    assert len(walks) == 1 and sorted(_values(train) + _values(held_out)) == sorted(_values(everything))
    if either_way == "in memory":
        good = [name for name in opened if name != "bad.png"]
        assert len(good) == 20 == len(set(good))
        assert np.shares_memory(train._images, everything._images)  # no picture is there twice


def test_the_splits_are_what_they_are_alone(settled, either_way):
    path, _ = settled
    together = [_make(path, s) for s in ("train[:80%]", "train[80%:]")]
    shared = [(_values(s), s.labels.tolist(), s.notes) for s in together]
    del together
    gc.collect()
    for split, expected in zip(("train[:80%]", "train[80%:]"), shared, strict=True):
        alone = _make(path, split)
        assert (_values(alone), alone.labels.tolist(), alone.notes) == expected
        del alone
        gc.collect()


def test_other_sizes_are_decoded_apart(settled):
    path, _ = settled
    small, large = _make(path), _make(path, size=16)
    assert small.image_shape == (8, 8, 3) and large.image_shape == (16, 16, 3)
    assert _values(small) == _values(large)


def test_a_changed_folder_is_listed_anew(settled, either_way):
    path, settle = settled
    before = _make(path)
    Image.new("RGB", (9, 11), (99,) * 3).save(path / "b" / "099.png")
    after = _make(path)
    assert len(before) == 20 and 99 in _values(after) and 99 not in _values(before)
    (path / "b" / "099.png").unlink()
    settle()
    assert len(_make(path)) == 20
    Image.new("RGB", (9, 11), (98,) * 3).save(path / "a" / "098.png")
    assert 98 in _values(_make(path))


def test_a_file_that_was_mended_is_seen(settled, either_way):
    path, _ = settled
    before = _make(path)
    mended = (path / "a" / "004.png").read_bytes()
    with open(path / "a" / "bad.png", "r+b") as file:  # in place: the folder does not change
        file.write(mended)
    again = _make(path)
    assert len(before) == 20 and len(again) == 21 and again.notes == () and _values(again).count(4) == 2


def test_a_folder_changed_a_moment_ago_is_not_trusted(settled):
    """Two changes within one tick of the file system's clock leave the same time stamp."""
    path, _ = settled
    (path / "b" / "new.txt").touch()
    listing = list_folder(str(path))
    assert not listing.is_current() and list_folder(str(path)) is not listing


def test_nothing_is_kept_for_longer_than_its_sources(settled):
    path, _ = settled
    images = _make(path)
    place = os.path.realpath(path)
    store = images._store
    assert place in listing_lib._in_use and len(images._store._listing.stores) == 1
    del images, store
    gc.collect()
    assert place not in listing_lib._in_use


@pytest.mark.parametrize("num_threads", [1, 2, 3, 16])
@pytest.mark.parametrize("num_items", [0, 1, 5, 64, 1000])
def test_a_thread_map_is_a_map(num_threads, num_items):
    assert ThreadMap(lambda i: i * i, num_threads)(range(num_items)) == [i * i for i in range(num_items)]
