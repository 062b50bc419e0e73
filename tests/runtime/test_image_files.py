"""Grids, strips and animations show every pixel where it belongs; arrays are what evaluators read."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.runtime import image_files
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.runtime.image_files import (
    can_be_drawn,
    grid_of_groups,
    image_grid,
    save_gif,
    save_grid,
    save_npz,
    save_strip,
)

GAP = image_files._GAP


def batch(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def cell(picture, row, column, height, width, scale, top=0):
    """The pixels of one image of a grid, at the size of the image."""
    y, x = top + GAP + row * (height * scale + GAP), GAP + column * (width * scale + GAP)
    return picture[y : y + height * scale : scale, x : x + width * scale : scale]


def error_of(function, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_each_image_is_in_its_place(num_channels):
    images = batch(7, 4, 6, num_channels)
    picture = image_grid(images, num_columns=3, scale=2)
    assert picture.shape[:2] == (3 * 8 + 4 * GAP, 3 * 12 + 4 * GAP)
    assert picture.ndim == (2 if num_channels == 1 else 3)
    for index in range(7):
        shown = cell(picture, index // 3, index % 3, 4, 6, 2)
        np.testing.assert_array_equal(shown.reshape(4, 6, num_channels), images[index])
    assert (cell(picture, 2, 1, 4, 6, 2) == image_files._PAPER).all()  # an empty place


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((64, 8, 8, 1), (8, 8)),  # 64 pixels a cell
        ((16, 32, 32, 3), (4, 2)),
        ((1, 8, 8, 1), (1, 8)),
        ((16, 256, 256, 3), (4, 1)),  # never smaller than the images
        ((400, 8, 8, 1), (20, 6)),  # as large as the limit lets it
        ((8, 8, 16, 1), (2, 8)),  # about square although the images are not
    ],
)
def test_default_size(shape, size):
    num_columns, scale = size
    np.testing.assert_array_equal(image_grid(batch(*shape)), image_grid(batch(*shape), num_columns, scale))


def test_small_grids_stay_within_the_limit():
    for num_images in (1, 10, 100, 300, 1000):
        assert max(image_grid(batch(num_images, 8, 8, 1)).shape) <= image_files._MAX_SIDE


def test_more_channels_show_the_first_three():
    images = batch(4, 8, 8, 5)
    np.testing.assert_array_equal(image_grid(images), image_grid(images[..., :3]))


def test_title():
    plain = image_grid(batch(4, 8, 8, 3), 2, 8)
    titled = image_grid(batch(4, 8, 8, 3), 2, 8, title="step 100")
    row = len(titled) - len(plain)
    np.testing.assert_array_equal(titled[row:], plain)
    assert row > 10 and titled[:row].max() > 200


def test_groups_are_side_by_side_under_their_names():
    grey, colour = batch(6, 8, 8, 1), batch(6, 8, 8, 3)
    picture = grid_of_groups({"shown": grey, "sample": colour}, num_groups=2)
    top = picture.shape[0] - (3 * 64 + 4 * GAP)
    assert top > 10 and picture.shape[1:] == (4 * 64 + 5 * GAP, 3)
    for number in range(6):
        row, column = number // 2, number % 2 * 2
        np.testing.assert_array_equal(cell(picture, row, column, 8, 8, 8, top), np.repeat(grey[number], 3, axis=-1))
        np.testing.assert_array_equal(cell(picture, row, column + 1, 8, 8, 8, top), colour[number])
    assert all(picture[:top, GAP + k * (64 + GAP) :][:, :64].max() > 200 for k in range(4))


@pytest.mark.parametrize("name", ["grid.png", "grid.webp", "sub/grid.PNG", "grid.jpg"])
def test_save_grid(tmp_path, name):
    save_grid(tmp_path / name, batch(4, 8, 8, 1), title="x")
    with Image.open(tmp_path / name) as picture:
        assert picture.width == 2 * 64 + 3 * GAP
        if name.lower().endswith("png"):
            np.testing.assert_array_equal(np.asarray(picture), image_grid(batch(4, 8, 8, 1), title="x"))
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [(tmp_path / name).name]


def test_strip_has_time_from_left_to_right(tmp_path):
    frames = batch(5, 2, 8, 8, 1)
    save_strip(tmp_path / "strip.png", frames, [f"t={t}" for t in (999, 500, 100, 10, 0)], scale=8)
    picture = np.asarray(Image.open(tmp_path / "strip.png"))
    top = picture.shape[0] - (2 * 64 + 3 * GAP)
    assert top > 10
    for moment in range(5):
        left = GAP + moment * (64 + GAP)
        assert picture[:top, left : left + 64].max() > 200  # each column has its label
        for image in range(2):
            shown = cell(picture, image, moment, 8, 8, 8, top)
            np.testing.assert_array_equal(shown, frames[moment, image, ..., 0])


def test_gif(tmp_path):
    frames = batch(4, 3, 8, 8, 1)
    save_gif(tmp_path / "a.gif", frames, duration_ms=50, hold_last_ms=1000)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 4 and animation.info["loop"] == 0
        durations = []
        for index in range(4):
            animation.seek(index)
            durations.append(animation.info["duration"])
            np.testing.assert_array_equal(np.asarray(animation.convert("L")), image_grid(frames[index]))
    assert durations == [50, 50, 50, 1000]


def test_colour_gif(tmp_path):
    frames = batch(3, 4, 4, 4, 3) // 64 * 64  # 64 colours: no palette loses any
    save_gif(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as animation:
        animation.seek(2)
        shown = np.asarray(animation.convert("RGB")).astype(int)
    assert abs(shown - image_grid(frames[2])).max() <= 8


def test_npz(tmp_path):
    images = batch(5, 4, 4, 3)
    save_npz(tmp_path / "sub" / "samples.npz", images)
    with np.load(tmp_path / "sub" / "samples.npz") as file:
        assert file.files == ["arr_0"] and file["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(file["arr_0"], images)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    save_grid(tmp_path / "grid.png", batch(4, 8, 8, 1))
    before = (tmp_path / "grid.png").read_bytes()

    def fail(self, file, format):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_grid(tmp_path / "grid.png", batch(1, 8, 8, 1))
    assert (tmp_path / "grid.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 4, 4, 1)), "images must be uint8 [N, H, W, C]; got float64 [2, 4, 4, 1]"),
        (batch(4, 4, 1), "images must be uint8 [N, H, W, C]; got uint8 [4, 4, 1]"),
        (batch(0, 4, 4, 1), "an image grid needs at least one image; got an array of shape [0, 4, 4, 1]"),
        (batch(2, 4, 4, 2), "an image grid needs images with 1 channel (grey), or 3 or more (RGB first); got 2"),
    ],
)
def test_bad_images(images, message):
    assert error_of(image_grid, images) == message


def test_bad_arguments(tmp_path):
    images, frames = batch(2, 4, 4, 1), batch(3, 2, 4, 4, 1)
    assert error_of(image_grid, images, num_columns=0) == "num_columns must be at least 1; got 0"
    assert error_of(image_grid, images, scale=-1) == "scale must be at least 1; got -1"
    assert error_of(save_grid, "grid.txt", images) == (
        "an image file must end in one of ['.bmp', '.jpeg', '.jpg', '.png', '.webp']; got 'grid.txt'"
    )
    assert error_of(save_strip, tmp_path / "s.png", frames, ["t=1"]) == (
        "a strip needs one label for each of its 3 columns; got 1"
    )
    assert error_of(save_gif, "a.png", frames) == "an animation must be a .gif file; got 'a.png'"
    assert error_of(save_gif, "a.gif", frames, 10) == "a GIF frame must be shown for at least 20 ms; got 10"
    assert error_of(save_gif, "a.gif", images) == (
        "frames must be uint8 [K, N, H, W, C]; got uint8 [2, 4, 4, 1]"
    )
    assert error_of(save_npz, "a.npy", images) == "an array file must end in .npz; got 'a.npy'"
    save_npz(tmp_path / "a.npz", images / 2)
    assert can_be_drawn(images) and not can_be_drawn(images / 2) and not can_be_drawn(images[..., 0])
    assert not can_be_drawn(np.zeros((2, 4, 4, 2), np.uint8))  # an image file has no 2 channels
