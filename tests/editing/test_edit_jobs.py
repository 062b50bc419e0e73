"""A folder of results: what continues, what is refused before the first network call, and what a failure leaves."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.editing.job import EditJob, check_out
from ddpm_jax.editing.same_job import difference
from ddpm_jax.runtime.errors import UserError

FACTS = {"seed": 0, "run": "digits", "images": "in", "sampler": {"eta": 0.0, "negative_classes": [], "classifier": "c"}}
IMAGE = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)


@pytest.fixture
def images(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abc":
        Image.fromarray(IMAGE[..., 0]).save(tmp_path / "in" / f"{name}.png")
    return tmp_path / "in"


@pytest.fixture
def edit(straight_run, tmp_path):
    from ddpm_jax.edit import main

    def edit(*flags, out="out", workdir=straight_run):
        fixed = ["--nocompilation_cache", "--batch_size=8", f"--workdir={workdir}", f"--out={tmp_path / out}"]
        return main([*fixed, "--what=sdedit", "--sampler=ddim", "--num_sampler_steps=4", *flags])

    return edit


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"seed": 1}, "seed: 0, and now it is 1"),
        ({"images": None}, 'images: "in", and now it is none'),
        ({"sampler": {**FACTS["sampler"], "negative_classes": [3]}}, "sampler: negative_classes was () and is (3,)"),
        ({"sampler": {"a": {"b": 1}}}, "sampler: eta was 0.0 and is none"),
        ({"more": {"a": {"b": 1}}}, 'more: none, and now it is {"a": {"b": 1}}'),
    ],
)
def test_what_differs_is_named(changed, message):
    assert difference(FACTS, FACTS) is None
    assert difference(FACTS, FACTS | changed) == message


def test_of_long_values_the_part_that_differs_is_shown():
    old, new = (list(range(150)) + [number] + list(range(151, 200)) for number in (150, 999))
    told = difference({"a": {"b": {"c": old}}}, {"a": {"b": {"c": new}}})
    assert told.startswith("a: b.c was ...") and "149, 150, 151" in told and "149, 999, 151" in told and len(told) < 200


def test_paths_may_be_spelled_in_other_ways(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("in/", "./in", "~/in", str(tmp_path / "in"), "in/../in"):
        assert difference(FACTS, FACTS | {"images": path}) is None
        assert difference(FACTS | {"run": path}, FACTS | {"run": "in"}) is None
        assert difference({"sampler": {"classifier": path}}, {"sampler": {"classifier": "in"}}) is None
    assert difference(FACTS, FACTS | {"images": "other"}) == 'images: "in", and now it is "other"'
    assert difference({"method": "./in"}, {"method": "in"}) is not None


def test_results_that_cannot_be_written_are_refused_at_once(tmp_path):
    long = "x" * (255 - len(".png") - len("..4194304.part"))
    folder = str(tmp_path / "out")
    EditJob(folder, {}, (long,), 1).write(0, IMAGE)
    for name in (f"{long}x", "é" * 120):
        with pytest.raises(UserError, match="is too long to be written: give the image a shorter name"):
            EditJob(str(tmp_path / "new"), {}, ("a", name), 1)
    with pytest.raises(UserError, match="is too long to be written"):
        EditJob(str(tmp_path / "new"), {}, ("a/" * 2040 + "b",), 1)
    assert not (tmp_path / "new").exists()
    (tmp_path / "out" / "a.png").mkdir()
    (tmp_path / "out" / "b").write_text("x")
    with pytest.raises(UserError, match="a.png' must be a file, a result; it is a folder: give another out"):
        EditJob(folder, {}, ("a",), 1)
    with pytest.raises(UserError, match="b' must be a folder of results; it is a file: give another out"):
        EditJob(folder, {}, ("b/c/d",), 1)


def test_where_results_may_be(tmp_path):
    images = tmp_path / "in"
    images.mkdir()
    for folder in (tmp_path / "in" / "out", tmp_path / "in" / "a" / "b"):
        with pytest.raises(UserError, match="out must not be inside the folder of images, .*: give another"):
            check_out(str(folder), f"{images}/")
    (tmp_path / "link").symlink_to(images)
    with pytest.raises(UserError, match="out must not be inside"):
        check_out(str(images / "out"), str(tmp_path / "link"))
    with pytest.raises(UserError, match=r"out must name a folder; got ''"):
        check_out("", None)
    for folder in ("in2", "out", "in/.out"):  # hidden folders are not listed
        check_out(str(tmp_path / folder), str(images))
    check_out(str(tmp_path), str(images))


def test_a_damaged_result_is_drawn_again(edit, images, tmp_path, capfd):
    assert edit(f"--images={images}") == 0
    whole = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    for name, data in (("a", whole[tmp_path / "out" / "a.png"][:-20]), ("c", b"")):
        (tmp_path / "out" / f"{name}.png").write_bytes(data)
    capfd.readouterr()
    assert edit(f"--images={images}/") == 0
    out = capfd.readouterr().out
    assert "1 of 3 results are there already" in out
    assert "note: results that are damaged are drawn again: a.png, c.png" in out
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*.png")} == whole


def test_a_job_without_an_image_leaves_its_folder(edit, tmp_path, capfd):
    for name, count in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.png").write_text("x")
        assert edit(f"--images={tmp_path / name}") == 2
        error = capfd.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and ("not an image" if count == 1 else "no image could be read") in error
        assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    assert edit(f"--images={tmp_path / 'two'}") == 2
    assert list((tmp_path / "out").iterdir()) == []


def test_the_whole_reason_why_an_image_is_skipped_is_told(edit, images, tmp_path, capfd):
    Image.new("1", (9600, 9600)).save(images / "large.png")
    assert edit(f"--images={images}", "--strength=0") == 0
    told = "skipped 1 of 4 image files that could not be read: large (9600 x 9600 pixels; the most is 89,478,485: make"
    out, err = capfd.readouterr()
    assert told in out and "Warning" not in err
    assert not (tmp_path / "out" / "large.png").exists()


def test_every_mask_of_an_array_is_checked_and_remembered(edit, images, tmp_path, capfd):
    masks = np.zeros((3, 8, 8), bool)
    masks[:, 4:] = True
    flags = [f"--images={images}", f"--mask={tmp_path / 'm.npy'}", "--strength=0"]
    np.save(tmp_path / "m.npy", masks)
    assert edit(*flags) == 0
    masks[2, 0] = True
    np.save(tmp_path / "m.npy", masks)
    assert edit(*flags) == 2
    assert "holds results of another mask" in capfd.readouterr().err
    masks[1] = True
    np.save(tmp_path / "m.npy", masks)
    assert edit(*flags, out="new") == 2
    assert "is white everywhere for 'b'" in capfd.readouterr().err


def test_another_checkpoint_of_a_guiding_network_is_another_job(edit, images, straight_run, tmp_path, capfd):
    shutil.copytree(straight_run, tmp_path / "weak")
    shutil.rmtree(tmp_path / "weak" / "checkpoints" / "8")  # the weights of the run itself
    flags = [f"--images={images / 'a.png'}", f"--autoguidance={tmp_path / 'weak'}", "--guidance_scale=2"]
    assert edit(*flags) == 0
    facts = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert facts["guiding network"]["autoguidance"]["step"] == 6
    shutil.rmtree(tmp_path / "weak" / "checkpoints" / "6")
    assert edit(*flags) == 2
    assert "holds results of another guiding network: autoguidance.step was 6 and is 4" in capfd.readouterr().err
