"""Images, masks and names of results of the edit command, from files of every kind."""

import os

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data.image_decoding import header_shape, stored_shape
from ddpm_jax.editing.inputs import open_inputs
from ddpm_jax.editing.job import GRID_FILE, SETTINGS_FILE, EditJob
from ddpm_jax.editing.masks_of_files import open_masks
from ddpm_jax.editing.result_names import result_names
from ddpm_jax.runtime.errors import UserError

SHAPE, SIZE = (8, 8, 1), (8, 8)
HALF = np.repeat([[0], [1]], 4, axis=0).repeat(8, axis=1)  # [8, 8], the lower half is known


def save(path, values, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values).astype(dtype)).save(path)
    return str(path)


@pytest.mark.parametrize(
    "files, num_results, names",
    [
        (["a.png", "b.jpg", "s/a.png"], 1, ["a", "b", "s/a"]),
        (["a.jpg", "a.png"], 1, ["a.jpg", "a.png"]),
        (["A.png", "a.png"], 1, ["A.png", "a.png-2"]),
        (["a.jpg", "a.png", "a.png.png"], 1, ["a.jpg", "a.png", "a.png.png"]),
        (["a.jpg", "a.png", "a.png.jpg", "a.png.png"], 3, ["a.jpg", "a.png", "a.png.jpg", "a.png.png"]),
        (["grid.jpg"], 1, ["grid.jpg"]),
        (["grid.jpg", "grid.jpg.png"], 1, ["grid.jpg", "grid.jpg.png"]),
        (["a.png", "a_0.png"], 2, ["a", "a_0"]),
        (["a.jpg", "a.png/x.jpg"], 1, ["a.jpg", "a.png/x"]),
        (["a.jpg", "a_1.png/x.jpg"], 2, ["a.jpg", "a_1.png/x"]),
        (["a.jpg", "a_2.png/x.jpg"], 2, ["a", "a_2.png/x"]),
        (["b/a.jpg", "b/A.PNG/x.jpg"], 1, ["b/a.jpg", "b/A.PNG/x"]),
        (["grid.png/x.jpg", "Settings.json/x.jpg"], 2, ["grid.png_/x", "Settings.json_/x"]),
    ],
)
def test_results_have_names_of_their_own(files, num_results, names, tmp_path):
    found = result_names(files, num_results)
    assert list(found) == names
    job = EditJob(str(tmp_path / "out"), {}, found, num_results)
    numbers = range(len(files) * num_results)
    for number in numbers:
        job.write(number, np.full(SHAPE, number, np.uint8))
    paths = [job.path_of(number).relative_to(job.folder).as_posix().lower() for number in numbers]
    assert len({*paths, GRID_FILE, SETTINGS_FILE}) == len(paths) + 2
    for number in numbers:
        assert np.all(job.read(number) == number)


def test_random_names_never_meet():
    rng = np.random.default_rng(0)
    parts = ["a", "A", "a_0", "grid", "settings.json", "a.png", "a_0.png", "a.jpg", "grid.png", "é", "e\u0301"]
    for _ in range(300):
        num_results = int(rng.integers(1, 3))
        files = {"/".join(rng.choice(parts, rng.integers(1, 3))) + str(rng.choice([".png", ".jpg"])) for _ in range(12)}
        folders = {file[:end] for file in files for end in range(len(file)) if file[end] == "/"}
        files = sorted(files - folders)
        names = result_names(files, num_results)
        ends = [""] if num_results == 1 else ["_0", "_1"]
        paths = [f"{name}{end}.png".lower() for name in names for end in ends]
        places = {path[:end] for path in paths for end in range(len(path)) if path[end] == "/"}
        assert len({*paths, GRID_FILE, SETTINGS_FILE}) == len(paths) + 2
        assert not places & {*paths, GRID_FILE, SETTINGS_FILE}


def test_a_mask_in_a_folder_is_that_of_the_image_of_its_full_name(tmp_path):
    for name, values in {"photo.png": np.ones(SIZE), "photo.jpg.png": np.zeros(SIZE), "s/b.png": HALF}.items():
        save(tmp_path / "m" / name, 255 * values)
    masks = open_masks(str(tmp_path / "m"), ["photo.png", "photo.jpg.png", "s/b.jpg"], SIZE, fit=False)
    assert masks.by_image and masks.of(0).all() and not masks.of(1).any()
    np.testing.assert_array_equal(masks.of(2)[..., 0], HALF)
    # For photo.jpg it is photo.jpg.png, because photo.png is that of the image of this name.
    masks = open_masks(str(tmp_path / "m"), ["photo.jpg", "photo.png"], SIZE, fit=False)
    assert not masks.of(0).any() and masks.of(1).all()
    with pytest.raises(UserError, match="has none for 1, such as 's/b.gif': add 's/b.gif.png'"):
        open_masks(str(tmp_path / "m"), ["s/b.gif", "s/b.png"], SIZE, fit=False)
    save(tmp_path / "m" / "s" / "b.bmp", HALF)
    with pytest.raises(UserError, match="must have one file for 's/b.jpg'; it has s/b.bmp, s/b.png: keep one of them"):
        open_masks(str(tmp_path / "m"), ["s/b.jpg"], SIZE, fit=False)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "m").mkdir()
    for name in ("x.png", "x.npy", "m/a.png"):
        os.mkfifo(tmp_path / name)
    for name in ("x.png", "x.npy"):
        with pytest.raises(UserError, match="images must name an image file.* is a pipe or a device"):
            open_inputs("images", str(tmp_path / name), SHAPE)
        with pytest.raises(UserError, match="mask must name an image file.* is a pipe or a device"):
            open_masks(str(tmp_path / name), ["a.png"], SIZE, fit=False)
    with pytest.raises(UserError, match="mask .*: 'a.png' is a named pipe, not a file"):
        open_masks(str(tmp_path / "m"), ["a.jpg"], SIZE, fit=False)


def test_16_bit_masks_are_read_as_they_are_stored(tmp_path):
    for white in (1, 255, 65535):
        mask = open_masks(save(tmp_path / "m.png", white * HALF, np.uint16), ["a.png"], SIZE, fit=False).of(0)
        np.testing.assert_array_equal(mask[..., 0], HALF)
    dark = save(tmp_path / "dark.png", np.where(HALF, 65535, 1000), np.uint16)
    with pytest.raises(UserError, match=r"0 \(black, the hole\) and 65535 \(white, known\) only; .* such as 1000"):
        open_masks(dark, ["a.png"], SIZE, fit=False)
    np.testing.assert_array_equal(open_masks(dark, ["a.png"], SIZE, fit=True).of(0)[..., 0], HALF)
    large = save(tmp_path / "large.png", np.kron(np.where(HALF, 40000, 20000), np.ones((2, 2))), np.uint16)
    np.testing.assert_array_equal(open_masks(large, ["a.png"], SIZE, fit=True).of(0)[..., 0], HALF)


@pytest.mark.parametrize("values, other", [((1, 255), 1), ((0, 1, 255), 1), ((0, 1, 17), 17)])
def test_other_values_of_a_mask_are_named(values, other, tmp_path):
    array = np.resize(values, SIZE)
    with pytest.raises(UserError, match=rf"255 \(white, known\) only; got others, such as {other}:"):
        open_masks(save(tmp_path / "m.png", array), ["a.png"], SIZE, fit=False)
    np.save(tmp_path / "m.npy", array)
    with pytest.raises(UserError, match=f"got others, such as {max(values)}: give fit_mask to take 128 and more"):
        open_masks(str(tmp_path / "m.npy"), ["a.png"], SIZE, fit=False)


def test_arrays_of_masks_with_fit_mask(tmp_path):
    path = str(tmp_path / "m.npy")

    def opened(values):
        np.save(path, values)
        return open_masks(path, ["a.png"], SIZE, fit=True).of(0)[..., 0]

    for known, hole in ((1, 0), (True, False), (255, 0), (128, 127), (200.5, 0.5)):
        np.testing.assert_array_equal(opened(np.where(HALF, known, hole)), HALF)
    for known, hole in ((0.7, 0.2), (300, 0), (-1, 128), (np.nan, 255)):
        with pytest.raises(UserError, match=r"must have values in 0..255, of which 128 and more are known, or 0 and 1"):
            opened(np.where(HALF, known, hole))
    with pytest.raises(UserError, match=r"got \[4, 4\]: fit_mask resizes image files alone"):
        opened(np.ones((4, 4)))
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(UserError, match="could not be read as an array: it holds no array"):
        open_masks(str(tmp_path / "empty.npz"), ["a.png"], SIZE, fit=False)


def test_notes_say_which_images_are_resized(tmp_path):
    for name, size in (("a", 8), ("b", 16), ("c", 4)):
        save(tmp_path / "in" / f"{name}.png", np.zeros((size, 8)))
    (tmp_path / "in" / "bad.png").write_text("x")
    save(tmp_path / "in" / "rgb.png", np.zeros((8, 8, 3)))
    assert open_inputs("images", str(tmp_path / "in"), SHAPE).notes == (
        "2 of 5 images are resized and cropped to 8 x 8, such as b.png (resized and cropped from 16 x 8 to 8 x 8)",
        "1 of 5 images is read as grey, such as rgb.png (colour is read as grey)",
    )


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_the_shape_in_a_header_is_that_of_the_upright_image(ending, tmp_path):
    exif = Image.Exif()
    for orientation in (1, 3, 6, 8):
        exif[0x0112] = orientation
        Image.new("L", (20, 8)).save(tmp_path / f"x.{ending}", exif=exif)
        wanted = (20, 8, 1) if orientation > 4 else (8, 20, 1)
        assert header_shape(tmp_path / f"x.{ending}") == stored_shape(tmp_path / f"x.{ending}") == wanted


def test_a_large_jpeg_is_read_at_a_part_of_its_size(tmp_path, recwarn):
    Image.new("L", (9600, 9600), 200).save(tmp_path / "x.jpg")
    inputs = open_inputs("images", str(tmp_path / "x.jpg"), SHAPE)
    assert np.all(inputs.load(0) == 200) and not recwarn.list
    assert inputs.notes == ("x.jpg: resized and cropped from 9600 x 9600 to 8 x 8",)
    with pytest.raises(UserError, match="9600 x 9600 pixels; the most is"):
        open_masks(str(tmp_path / "x.jpg"), ["a.png"], SIZE, fit=True)
    assert not recwarn.list


def test_messages_name_the_argument_of_the_command(tmp_path):
    (tmp_path / "empty").mkdir()
    for opening in (
        lambda: open_inputs("images", str(tmp_path / "empty"), SHAPE),
        lambda: open_masks(str(tmp_path / "empty"), ["a.png"], SIZE, fit=False),
    ):
        with pytest.raises(UserError, match="holds no image file") as caught:
            opening()
        caught.value.rename("--{}".format)
        assert str(caught.value).startswith("--")
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8)))
    with pytest.raises(UserError, match="for real numbers that are not pixels: no edit takes them"):
        open_inputs("images", str(tmp_path / "x.npy"), SHAPE)
