"""Array files as they go wrong: nothing in them is executed, and what is not meant as pixels or classes is said."""

import pickle
import re
import zipfile

import numpy as np
import pytest

from ddpm_jax.data import array_file as array_lib
from ddpm_jax.data import make_source
from ddpm_jax.experiment import data_factory
from ddpm_jax.runtime.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1), dtype=np.uint8)


def _make(path, split="train", image_size=(8, 8)):
    return make_source(name="array", path=str(path), split=split, image_size=image_size, num_channels=1)


class Touch:
    """Whoever unpickles one makes the file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def payloads(tmp_path):
    """name -> a file with a pickle in it that would make `executed`; and that it would, were it loaded."""
    bad = np.array([Touch(tmp_path / "executed")], object)
    np.save(tmp_path / "object.npy", bad)
    np.savez(tmp_path / "object.npz", images=bad)
    np.savez(tmp_path / "labels.npz", images=IMAGES, labels=bad)
    for ending in ("npy", "npz"):
        (tmp_path / f"plain.{ending}").write_bytes(pickle.dumps(Touch(tmp_path / "executed")))
    np.savez(tmp_path / "elsewhere.npz", images=IMAGES, unused=bad)
    np.load(tmp_path / "object.npy", allow_pickle=True)
    assert (tmp_path / "executed").exists()
    (tmp_path / "executed").unlink()
    return tmp_path


@pytest.mark.parametrize("name", ["object.npy", "object.npz", "labels.npz", "plain.npy", "plain.npz"])
def test_a_pickle_is_refused_and_not_executed(payloads, name):
    with pytest.raises(UserError, match="cannot be read as a NumPy file") as caught:
        _make(payloads / name)
    assert "\n" not in str(caught.value) and not (payloads / "executed").exists()


def test_a_pickle_that_nobody_reads_is_not_executed(payloads):
    assert len(_make(payloads / "elsewhere.npz")) == 10
    assert not (payloads / "executed").exists()


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(array_lib, "_memory_bytes", lambda: 2**20)
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros((2**15, 8, 8), np.uint8))  # 2 MB in 4 kB
    assert (tmp_path / "bomb.npz").stat().st_size < 2**14
    with pytest.raises(UserError, match=r"'images' takes 0.0 GB unpacked, and the machine has 0.0 GB of memory; save"):
        _make(tmp_path / "bomb.npz")
    np.save(tmp_path / "large.npy", np.zeros((2**15, 8, 8), np.uint8))  # read piece by piece
    assert len(_make(tmp_path / "large.npy")) == 2**15


def test_a_header_that_lies_about_the_size(tmp_path):
    """An array that says 10^17 bytes in a file of a hundred."""
    np.save(tmp_path / "a.npy", IMAGES)
    data = (tmp_path / "a.npy").read_bytes()
    more = b"0" * 15
    lie = data[:128].replace(b"(10,", b"(10" + more + b",").replace(b" " * len(more) + b"\n", b"\n")
    assert lie != data[:128] and len(lie) == 128
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", lie)
    (tmp_path / "a.npy").write_bytes(lie)
    for name in ("a.npz", "a.npy"):
        with pytest.raises(UserError, match="does not fit in memory|cannot be read as a NumPy file"):
            _make(tmp_path / name)


def test_no_damage_of_one_byte_is_a_traceback(tmp_path):
    """Every byte before the pixels, in every place: one line, or an array all the same."""
    np.save(tmp_path / "a.npy", IMAGES)
    np.savez(tmp_path / "a.npz", images=IMAGES)
    for name, size in (("a.npy", 128), ("a.npz", 170)):
        whole = (tmp_path / name).read_bytes()
        places = [*range(size), *(range(len(whole) - 90, len(whole)) if name == "a.npz" else ())]
        for place in places:
            for change in (1, 0x80):
                data = bytearray(whole)
                data[place] ^= change
                (tmp_path / name).write_bytes(data)
                try:
                    _make(tmp_path / name)
                except UserError as error:
                    assert "\n" not in str(error), place


def test_the_other_kind_of_file_under_the_name(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    np.savez(tmp_path / "b.npz", IMAGES)
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    with pytest.raises(UserError, match="its content is not a .npz archive"):
        _make(tmp_path / "a.npz")
    with pytest.raises(UserError, match="is a .npz file by its content; rename it"):
        _make(tmp_path / "b.npy")


def test_zeros_and_ones_are_said_and_taken_as_they_are(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES // 128)
    images = _make(tmp_path / "a.npy")
    (note,) = images.notes
    assert "all 0 or 1 of 255, nearly black; save 255 * x if they mean 0..1" in note
    np.testing.assert_array_equal(images.load(np.arange(10)), IMAGES // 128)
    assert _make(tmp_path / "a.npy", image_size=(4, 4)).notes == (note,)  # resized too
    np.save(tmp_path / "b.npy", np.concatenate([0 * IMAGES, IMAGES]))  # black ones at the front mean nothing
    assert _make(tmp_path / "b.npy").notes == ()


@pytest.mark.parametrize(
    "labels, told",
    [
        (np.arange(10.0), r"must be integers \[N\]; got float64 \[10\]"),
        (np.eye(10, dtype=np.int64), r"must be integers \[N\]; got int64 \[10, 10\]"),
        (np.array(list("abcdefghij")), r"must be integers \[N\]; got <U1 \[10\]"),
    ],
    ids=["float", "one-hot", "text"],
)
def test_labels_that_are_no_class_numbers(tmp_path, tiny_config, labels, told):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=labels)
    images = _make(tmp_path / "a.npz", "train[:50%]")
    assert images.labels is None
    assert re.search(told, images.notes[0])
    config = tiny_config("model.num_classes=10", "data.name=array", f"data.path={tmp_path / 'a.npz'}")
    with pytest.raises(UserError, match=f"needs a label for every image.*{told}"):
        data_factory.build_source(config, "train")


def test_labels_out_of_range(tmp_path, tiny_config):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.arange(10) - 1)
    config = tiny_config("model.num_classes=10", "data.name=array", f"data.path={tmp_path / 'a.npz'}")
    with pytest.raises(UserError, match="got 10 for the labels -1..8 of array 'train'"):
        data_factory.build_source(config, "train")


@pytest.mark.parametrize(
    "shape, num_channels, message",
    [
        ((64, 64, 3), 3, "looks like one image [H, W, C]; save x[None]"),
        ((10, 3, 16, 16), 3, "looks like [N, C, H, W]; save x.transpose(0, 2, 3, 1)"),
        ((10, 1, 64, 2), 1, "looks like [N, C, H, W]; save x.transpose(0, 2, 3, 1)"),
    ],
)
def test_the_number_of_channels_decides_how_axes_are_read(shape, num_channels, message, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    with pytest.raises(UserError) as error:
        array_lib.make_array(split="train", image_size=(4, 4), num_channels=num_channels, path=str(tmp_path / "x.npy"))
    assert message in str(error.value)


def test_arrays_whose_axes_look_odd_are_read_as_asked(tmp_path):
    for shape, num_channels in (((10, 1, 64, 2), 2), ((5, 8, 3), 1), ((5, 3, 3), 1), ((10, 3, 16, 16), 16)):
        images = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        np.save(tmp_path / "x.npy", images)
        path = str(tmp_path / "x.npy")
        source = array_lib.make_array(split="train", image_size=None, num_channels=num_channels, path=path)
        assert len(source) == shape[0] and source.image_shape == (*shape[1:3], num_channels)
        assert np.array_equal(source.load(np.arange(shape[0])).ravel(), images.ravel())
