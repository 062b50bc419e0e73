"""A folder as people have it: broken files, odd sizes, hidden things, sub-folders."""

import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import ImageSource, image_source, make_source
from ddpm_jax.runtime.errors import UserError


def _make(path, split="train", image_size=(8, 8), num_channels=3) -> ImageSource:
    return make_source(
        name="image_folder",
        path=str(path),
        split=split,
        image_size=image_size,
        num_channels=num_channels,
    )


def _flat(folder, values, ending="png"):
    """One picture a value, all its pixels that value."""
    folder.mkdir(parents=True, exist_ok=True)
    for value in values:
        Image.new("RGB", (9, 11), (value,) * 3).save(folder / f"{value:03d}.{ending}")


def _values(images) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def _all(images: ImageSource) -> np.ndarray:
    return images.load(np.arange(len(images)))


def test_sorted_order_any_depth_and_any_size(tmp_path, picture, either_way):
    _flat(tmp_path / "b", [3, 4])
    _flat(tmp_path / "a" / "deep", [5])
    _flat(tmp_path, [200])
    images = _make(tmp_path)
    assert isinstance(images, ImageSource) and images.image_shape == (8, 8, 3) and images.notes == ()
    assert _values(_all(images)) == [200, 5, 3, 4]  # 200.png, a/deep/005.png, b/003.png, b/004.png
    assert images.labels is None  # one lies in no sub-folder
    picture(30, 50).save(tmp_path / "wide.webp", lossless=True)
    assert _make(tmp_path, image_size=(16, 24)).load(np.array([4, 0])).shape == (2, 16, 24, 3)


def test_what_is_ignored(tmp_path, either_way):
    _flat(tmp_path, [1, 2], "JPG")
    _flat(tmp_path / ".thumbnails", [3])
    _flat(tmp_path / "__MACOSX", [4])
    (tmp_path / "._001.jpg").write_bytes(b"resource fork")
    (tmp_path / "notes.txt").write_text("not a picture")
    images = _make(tmp_path)
    assert len(images) == 2 and images.notes == ()


def test_labels_are_the_sub_folders(tmp_path, either_way):
    _flat(tmp_path / "dog", [1, 2])
    _flat(tmp_path / "cat" / "young", [3])
    images = _make(tmp_path)
    assert images.labels.dtype == np.int64 and images.labels.tolist() == [0, 1, 1]
    assert _make(tmp_path, "dog").labels is None  # these lie in no sub-folder


def test_one_sub_folder_is_no_class(tmp_path):
    _flat(tmp_path / "img_align_celeba", [1, 2])
    assert _make(tmp_path).labels is None


def test_broken_files_are_skipped_and_listed_once(tmp_path):
    _flat(tmp_path / "a", [1, 3, 5])
    _flat(tmp_path / "b", [7])
    whole = (tmp_path / "a" / "001.png").read_bytes()
    (tmp_path / "a" / "002.png").write_bytes(b"")
    (tmp_path / "a" / "004.png").write_bytes(whole[:44])
    (tmp_path / "b" / "006.jpg").write_text("<html>not found</html>")
    images = _make(tmp_path)
    assert _values(_all(images)) == [1, 3, 5, 7]
    assert images.labels.tolist() == [0, 0, 0, 1]
    (note,) = images.notes
    assert note.startswith("skipped 3 of 7 image files")
    assert "a/002.png (not an image)" in note and "a/004.png" in note and "b/006.jpg" in note
    assert "\n" not in note


def test_a_long_list_of_broken_files_is_cut(tmp_path):
    _flat(tmp_path, [1])
    for i in range(20):
        (tmp_path / f"x{i:02d}.png").write_bytes(b"")
    (note,) = _make(tmp_path).notes
    assert note.startswith("skipped 20 of 21") and note.endswith("and 15 more")


def test_a_file_found_broken_later_is_replaced_by_the_next_of_its_class(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(image_source, "MEMORY_BUDGET_BYTES", 0)
    _flat(tmp_path / "a", [1, 3])
    _flat(tmp_path / "b", [7])
    whole = (tmp_path / "a" / "003.png").read_bytes()
    (tmp_path / "a" / "004.png").write_bytes(whole[:44])  # a good header, no pixels
    (tmp_path / "a" / "002.png").write_bytes(b"")  # no header: skipped at the start
    images = _make(tmp_path)
    assert len(images) == 4 and len(images.notes) == 1 and "002.png" in images.notes[0]
    for _ in range(2):  # the same each time, told once
        assert _values(images.load(np.array([0, 1, 2, 3]))) == [1, 3, 1, 7]
    assert len(images.notes) == 2 and "'a/004.png' is damaged" in images.notes[1]
    assert caplog.text.count("004.png") == 1


def test_nothing_left_to_replace_it(tmp_path, monkeypatch):
    monkeypatch.setattr(image_source, "MEMORY_BUDGET_BYTES", 0)
    _flat(tmp_path, [1])
    whole = (tmp_path / "001.png").read_bytes()
    (tmp_path / "001.png").write_bytes(whole[:44])
    images = _make(tmp_path)
    with pytest.raises(UserError, match="no image could be read in full"):
        images.load(np.array([0]))


def test_in_memory_and_on_demand_are_equal(tmp_path, picture, monkeypatch):
    for i, (height, width) in enumerate([(20, 30), (64, 64), (5, 9), (8, 8), (100, 40)]):
        picture(height, width).save(tmp_path / f"{i}.jpg")
    kept = _all(_make(tmp_path, num_channels=1))
    monkeypatch.setattr(image_source, "MEMORY_BUDGET_BYTES", 0)
    np.testing.assert_array_equal(_all(_make(tmp_path, num_channels=1)), kept)


def test_splits(tmp_path):
    _flat(tmp_path / "train", range(10))
    _flat(tmp_path / "held_out", range(100, 105))
    assert len(_make(tmp_path)) == 10 and len(_make(tmp_path, "held_out")) == 5
    assert len(_make(tmp_path, "all")) == 15
    left, right = (_values(_all(_make(tmp_path, s))) for s in ("train[:70%]", "train[70%:]"))
    assert len(left) == 7 and sorted(left + right) == list(range(10))
    with pytest.raises(UserError, match=r"\(held_out, train\); got 'held_in'; did you mean 'held_out'"):
        _make(tmp_path, "held_in")


def test_labels_do_not_depend_on_the_slice(tmp_path):
    for name in "abc":
        _flat(tmp_path / name, [ord(name)] * 1)
    seen = {}
    for split in ("train[:1]", "train[1:2]", "train[2:]"):
        images = _make(tmp_path, split)
        seen[_values(_all(images))[0]] = int(images.labels[0])
    assert seen == {97: 0, 98: 1, 99: 2}


def test_links_are_followed_but_not_in_circles(tmp_path):
    _flat(tmp_path / "elsewhere", [1, 2])
    _flat(tmp_path / "set", [3])
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "linked")
    os.symlink(tmp_path / "set", tmp_path / "set" / "circle")
    assert sorted(_values(_all(_make(tmp_path / "set")))) == [1, 2, 3]


def test_pictures_of_other_formats_are_mentioned(tmp_path):
    _flat(tmp_path, [1])
    (tmp_path / "phone.HEIC").write_bytes(b"?")
    (note,) = _make(tmp_path).notes
    assert "1 .heic" in note and "convert" in note


@pytest.mark.parametrize(
    "prepare, match",
    [
        (lambda p: p / "nowhere", r"^path must name a folder of images or a packed file; got .*no such folder"),
        (lambda p: "", r"^path must name a folder of images or a packed file; got ''; add path=DIR"),
        (lambda p: p, r"holds no image file \(it is empty\)"),
        (
            lambda p: _text(p),
            r"holds no image file \(it holds 1 .txt\); name a folder with files ending in .png",
        ),
        (lambda p: _text(p) / "a.txt", r"got '.*a.txt' \(a file\); name the folder"),
        (lambda p: _broken(p), r"no image could be read; skipped 1 of 1 .*bad.png \(not an image\)"),
    ],
    ids=["missing", "unset", "empty", "no images", "file", "all broken"],
)
def test_a_wrong_folder_is_refused_in_one_line(tmp_path, prepare, match, either_way):
    with pytest.raises(UserError, match=match) as caught:
        _make(prepare(tmp_path))
    assert "\n" not in str(caught.value)


def _text(folder):
    (folder / "a.txt").write_text("a")
    return folder


def _broken(folder):
    (folder / "bad.png").write_bytes(b"")
    return folder


def test_real_clothing_photographs(real_data, tmp_path):
    archive = real_data / "clothing" / "clothing-96px-jpeg.zip"
    if not archive.is_file():
        pytest.skip(f"real image data not found at {archive}; skipped")
    with zipfile.ZipFile(archive) as z:
        names = [name for name in z.namelist() if name.endswith(".jpg")]
        for name in names[:: len(names) // 20]:
            z.extract(name, tmp_path)
    images = _make(tmp_path, image_size=(64, 64))
    pixels = _all(images)
    assert pixels.shape[0] >= 20 and images.notes == () and len(np.unique(images.labels)) >= 5
    assert pixels.std(axis=(1, 2, 3)).min() > 5  # each shows something
    path = sorted(tmp_path.rglob("*.jpg"))[0]
    whole = np.asarray(Image.open(path), float)
    top, left = (whole.shape[0] - 96) // 2, (whole.shape[1] - 96) // 2
    square = whole[top : top + 96, left : left + 96]
    area = square.reshape(32, 3, 32, 3, 3).mean((1, 3))
    small = _all(_make(tmp_path, image_size=(32, 32)))[0]
    assert np.abs(small - area).mean() < 4  # a centre crop, averaged
