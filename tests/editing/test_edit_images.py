"""`edit_images` and `python -m ddpm_jax.edit`: what an edit keeps, on what its results depend, and its folder."""

import json

import numpy as np
import pytest
from PIL import Image

import ddpm_jax as dj
from ddpm_jax.editing.condition import says_classes
from ddpm_jax.editing.edit_images import Editor
from ddpm_jax.editing.interpolation import on_sphere
from ddpm_jax.editing.masks_of_files import named_hole
from ddpm_jax.editing.settings import EDITS, checked_settings

QUICK = {"progress": False, "batch_size": 8}
REPAINT = {"jump_length": 3, "num_resamplings": 2}


@pytest.fixture(scope="module")
def run(straight_run):
    return dj.open_run(str(straight_run))


@pytest.fixture(scope="module")
def images(run):
    return run.source("test").load(np.arange(3))


@pytest.fixture(scope="module")
def mask():
    return dj.make_mask("bottom", 8, 8)


@pytest.mark.parametrize("method, more", [("repaint", REPAINT), ("replacement", {}), ("ddnm", {})])
def test_known_pixels_are_those_of_the_image(run, images, mask, method, more):
    results = dj.edit_images(run, images, "inpaint", mask=mask, method=method, num_results=2, **more, **QUICK)
    assert results.shape == (3, 2, 8, 8, 1) and results.dtype == np.uint8
    np.testing.assert_array_equal(results[:, :, :4], np.repeat(images[:, None, :4], 2, axis=1))
    assert np.mean(results[:, 0, 4:] != results[:, 1, 4:]) > 0.5
    everything = dj.edit_images(run, images, "inpaint", mask=np.ones((8, 8, 1)), method=method, **more, **QUICK)
    np.testing.assert_array_equal(everything[:, 0], images)


def test_with_nothing_known_the_results_are_those_of_sampling(run, images):
    nothing = np.zeros((8, 8, 1), bool)
    results = dj.edit_images(run, images, "inpaint", mask=nothing, method="replacement", num_results=2, seed=4, **QUICK)
    samples = run.sample(6, seed=4, batch_size=8, progress=False)
    np.testing.assert_array_equal(results.reshape(samples.shape), samples)


def test_sdedit_keeps_the_image_at_strength_0_and_where_it_is_known(run, images, mask):
    kept = dj.edit_images(run, images, "sdedit", strength=0, **QUICK)
    np.testing.assert_array_equal(kept[:, 0], images)
    some = dj.edit_images(run, images, "sdedit", strength=0.5, mask=mask, **QUICK)[:, 0]
    np.testing.assert_array_equal(some[:, :4], images[:, :4])
    assert np.any(some[:, 4:] != images[:, 4:])
    whole = dj.edit_images(run, images, "sdedit", strength=1, sampler="dpmpp_2m", num_sampler_steps=5, **QUICK)
    assert whole.shape == (3, 1, 8, 8, 1)


def test_results_do_not_depend_on_the_batch(run, images, mask):
    eight = dj.edit_images(run, images, "inpaint", mask=mask, method="ddnm", num_results=4, **QUICK)
    sixteen = dj.edit_images(
        run, images, "inpaint", mask=mask, method="ddnm", num_results=4, batch_size=16, progress=False
    )
    np.testing.assert_allclose(eight.astype(int), sixteen.astype(int), atol=1)


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_outpainting_continues_the_image_on_its_side(run, images, side):
    (result,) = dj.edit_images(run, images[:1], "outpaint", side=side, method="replacement", **QUICK)[:, 0]
    axis = 1 if side in ("left", "right") else 0
    assert result.shape[axis] == 12 and result.shape[1 - axis] == 8
    old = slice(4, 12) if side in ("left", "top") else slice(0, 8)
    np.testing.assert_array_equal(result[:, old] if axis else result[old], images[0])


@pytest.mark.parametrize("method", ["ddnm", "ilvr"])
def test_super_resolution_has_the_means_of_the_small_image(run, images, method):
    small = images.reshape(3, 4, 2, 4, 2, 1).mean((2, 4)).round().astype(np.uint8)
    # The network is hardly trained: without a limit to 0..255 in the way, grey images stay in that range.
    small = (96 + small // 4).astype(np.uint8)
    large = dj.edit_images(run, small, "super_resolve", factor=2, method=method, **QUICK)[:, 0].astype(float)
    inside = ((large > 0) & (large < 255)).reshape(3, 4, 2, 4, 2).all((2, 4))
    error = np.abs(large.reshape(3, 4, 2, 4, 2, 1).mean((2, 4)) - small)[..., 0]
    assert inside.any() and np.all(error[inside] <= 0.51)  # four values, each rounded by at most a half


def test_a_variation_of_strength_0_is_the_image_that_the_inversion_gives_back(run, images):
    back = dj.edit_images(run, images, "variation", strength=0, num_fixed_point=20, num_sampler_steps=10, **QUICK)
    assert np.abs(back[:, 0].astype(int) - images).max() <= 1
    far = dj.edit_images(run, images, "variation", strength=1, num_sampler_steps=10, num_results=2, **QUICK)
    assert np.mean(far[:, 0] != far[:, 1]) > 0.2  # many pixels are 0 or 255


def test_interpolation_begins_at_the_image_and_ends_at_the_other(run, images):
    given = {"to": images[::-1], "num_results": 3, "num_sampler_steps": 10, "num_fixed_point": 20}
    frames = dj.edit_images(run, images, "interpolate", **given, **QUICK).astype(int)
    assert np.abs(frames[:, 0] - images).max() <= 1 and np.abs(frames[:, 2] - images[::-1]).max() <= 1
    noised = dj.edit_images(run, images, "interpolate", to=images[::-1], num_results=3, method="noised",
                            strength=0.05, **QUICK)  # fmt: skip
    assert noised.shape == (3, 3, 8, 8, 1)
    between = dj.edit_images(run, None, "interpolate", method="noise", num_pairs=2, num_results=3,
                             num_sampler_steps=10, **QUICK)  # fmt: skip
    ends = run.sample(4, sampler="ddim", num_sampler_steps=10, clip_x_0=False, batch_size=8, progress=False)
    np.testing.assert_allclose(between[:, [0, 2]].reshape(ends.shape).astype(int), ends.astype(int), atol=1)


def test_on_the_sphere_lengths_are_kept():
    a, b = np.random.default_rng(0).standard_normal((2, 5, 4, 4, 1))
    b *= np.sqrt(np.sum(a**2, (1, 2, 3)) / np.sum(b**2, (1, 2, 3))).reshape(5, 1, 1, 1)
    share = np.linspace(0, 1, 5).reshape(5, 1, 1, 1)
    np.testing.assert_allclose(np.sum(on_sphere(a, b, share) ** 2, (1, 2, 3)), np.sum(a**2, (1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(on_sphere(a, a, share), a, rtol=1e-6)


def test_other_images_masks_strengths_and_seeds_compile_nothing(straight_run, images, mask):
    run = dj.open_run(str(straight_run))
    for _ in range(2):  # the second call meets arrays of another origin, which JAX counts once more
        dj.edit_images(run, images, "sdedit", strength=0.5, mask=mask, num_results=3, **QUICK)
    ((generator, _),) = run.programs.generators.values()
    programs = generator._advance._cache_size()
    dj.edit_images(run, images[::-1], "sdedit", strength=0.8, mask=~mask, seed=1, num_results=3, **QUICK)
    assert generator._advance._cache_size() == programs and len(run.programs.generators) == 1


@pytest.mark.parametrize(
    "what, given, message",
    [
        ("inpaint", {}, "mask says what is known, for inpaint, sdedit; got what='inpaint': give one"),
        ("inpaint", {"mask": np.full((8, 8, 1), 128)}, "mask must be boolean, or 1 where the image is known"),
        ("inpaint", {"mask": np.ones((4, 4, 1))}, r"mask must be \[8, 8, 1\] or \[3, 8, 8, 1\]; got \[4, 4, 1\]"),
        ("outpaint", {"mask": np.ones((8, 8, 1))}, "got what='outpaint': leave it out"),
        ("sdedit", {"factor": 2}, "factor is a setting of super_resolve; got what=sdedit by sdedit"),
        ("sdedit", {"strength": float("nan")}, r"strength must be in \[0, 1\]"),
        ("sdedit", {"strength": 0.01}, "at least 1/20 with 20 sampler steps; got 0.01"),
        ("super_resolve", {"factor": 3}, "factor must divide the size of the run's images, 8 x 8; got 3"),
        ("colourise", {}, "what=colourise needs a network for colour images; the images of this run have 1 channel"),
        ("interpolate", {}, "to is of what=interpolate; got what='interpolate': give the other images"),
        ("variation", {"eta": 0.5}, "eta has no effect on what=variation by ddim"),
        ("variation", {"num_results": 0}, "num_results must be at least 1; got 0"),
        ("variation", {"num_sampler_steps": 21}, r"num_sampler_steps must be in 1..20 \(T\); got 21"),
        ("interpolate", {"to": np.zeros((3, 8, 8, 1), np.uint8), "num_sampler_steps": 10**5}, r"in 1..20 \(T\); got"),
        ("variation", {"num_fixed_point": 10**6}, "num_fixed_point must leave at most 1,000,000 network calls"),
        ("inpaint", {"mask": np.zeros((8, 8, 1)), "num_resamplings": 10**6}, "num_resamplings must leave at most 1,"),
        ("inpaint", {"jump_length": 10**8}, "jump_length must be at most 1000000; got 100000000"),
        ("interpolate", {"method": "noise", "num_pairs": 10**9}, "num_pairs must be at most 1000000"),
        ("variation", {"num_results": 10**8}, "num_results must be at most 10000000"),
        ("sdedit", {"num_results": 4_000_000}, "at most 10,000,000 results; got 3 times num_results=4000000"),
        ("inpaint", {"method": "dps", "zeta": 3e38}, r"zeta must be in \[0, 1000\], 0 for no influence; got 3e\+38"),
        ("inpaint", {"method": "dps", "zeta": "a"}, "zeta must be a number; got 'a'"),
        ("sdedit", {"batch_size": 1.5}, "batch_size must be a whole number; got 1.5"),
        ("sdedit", {"mask": [[1], [1, 0]]}, "mask must be one array; got parts of different shapes"),
        ("sdedit", {"num_sampler_steps": 2, "strength": 0.2}, "^strength must be 0, or at least 1/2 with 2 sampler st"),
        ("paint", {}, "what must be one of .*; got 'paint'; did you mean 'inpaint'"),
    ],
)
def test_what_does_not_fit_is_said(run, images, what, given, message):
    with pytest.raises(dj.UserError, match=message):
        dj.edit_images(run, images, what, **QUICK | given)


def test_other_types_are_said_in_one_line(run, images):
    with pytest.raises(dj.UserError, match="^run must be a TrainedRun, from dj.open_run; got 'digits'$"):
        dj.edit_images("digits", images, "sdedit")
    with pytest.raises(dj.UserError, match="^images must be one array; got parts of different shapes$"):
        dj.edit_images(run, [np.zeros((8, 8, 1)), np.zeros((4, 8, 1))], "sdedit")


def test_numbers_of_numpy_are_numbers():
    assert checked_settings("sdedit", {"strength": np.float32(0.5)}) == {"method": "sdedit", "strength": 0.5}
    assert checked_settings("inpaint", {"method": "dps", "zeta": np.float32(1)})["zeta"] == 1


def test_classes_may_be_an_array_or_one_number(inpainting_run, images, mask):
    run = dj.open_run(str(inpainting_run))
    for classes, wanted in ((np.array([3, 7]), (3, 7)), (0, (0,)), ("0", (0,)), ((), ()), (None, ())):
        given = {} if classes is None else {"classes": classes}
        editor = Editor(run, "inpaint", num_results=2, batch_size=8, **given)
        assert says_classes(given) == bool(wanted) and editor.run.sampler_settings["classes"] == list(wanted)
    with pytest.raises(dj.UserError, match="^classes has 2 classes and each image 1 result: give num_results=2 or mo"):
        dj.edit_images(run, images, "inpaint", mask=mask, classes=(3, 7), **QUICK)


def test_every_edit_has_its_defaults():
    for what, kind in EDITS.items():
        for method in kind.methods:
            assert checked_settings(what, {"method": method})["method"] == method


@pytest.fixture
def folder(images, tmp_path):
    """Three images, one of them in a sub-folder, and a damaged one."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name, image in zip(("a", "grid", "sub/c"), images, strict=True):
        Image.fromarray(image[..., 0]).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "bad.png").write_text("x")
    return tmp_path / "in"


@pytest.fixture
def edit(straight_run, tmp_path):
    from ddpm_jax.edit import main

    def edit(*flags, out="out"):
        fixed = ["--nocompilation_cache", "--batch_size=8", f"--workdir={straight_run}", f"--out={tmp_path / out}"]
        return main([*fixed, *flags])

    return edit


def test_a_folder_is_edited_and_an_interrupted_job_continues(edit, folder, run, images, mask, tmp_path, capfd):
    flags = ["--what=inpaint", "--hole=bottom", "--method=replacement", "--num_results=2", f"--images={folder}"]
    assert edit(*flags) == 0
    out = tmp_path / "out"
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert names == ["a_0.png", "a_1.png", "grid.png", "grid.png_0.png", "grid.png_1.png", "sub/c_0.png", "sub/c_1.png"]
    assert "skipped 1 of 4 image files that could not be read: bad (not an image)" in capfd.readouterr().out
    first = np.asarray(Image.open(out / "a_1.png"))
    np.testing.assert_array_equal(first[:4], images[0, :4, :, 0])
    whole = {path: path.read_bytes() for path in out.rglob("*.png")}
    for name in ("a_1.png", "sub/c_0.png"):
        (out / name).unlink()
    assert edit(*flags) == 0
    assert "4 of 8 results are there already" in capfd.readouterr().out
    assert {path: path.read_bytes() for path in out.rglob("*.png")} == whole
    assert json.loads((out / "settings.json").read_text())["what"] == "inpaint"
    assert edit(*flags, "--seed=1") == 2
    assert "holds results of another seed: 0, and now it is 1" in capfd.readouterr().err


def test_the_results_of_an_array_are_those_of_python(edit, run, images, mask, tmp_path):
    np.savez(tmp_path / "x.npz", images)
    np.save(tmp_path / "m.npy", mask)
    flags = ["--what=inpaint", "--method=ddnm", "--num_results=2", f"--mask={tmp_path}/m.npy"]
    assert edit(f"--images={tmp_path}/x.npz", *flags) == 0
    results = dj.edit_images(run, images, "inpaint", mask=mask, method="ddnm", num_results=2, **QUICK)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "2_1.png")), results[2, 1, ..., 0])


def test_masks_that_do_not_fit_are_refused_before_the_first_step(edit, folder, tmp_path, capfd):
    grey, large, white = np.full((8, 8), 17), np.zeros((16, 16)), np.full((8, 8), 255)
    for name, array in (("grey", grey), ("large", large), ("white", white)):
        Image.fromarray(array.astype(np.uint8)).save(tmp_path / f"{name}.png")
    messages = {
        "grey": "must have the values 0 (black, the hole) and 255 (white, known) only; got others, such as 17",
        "large": "must be 8 x 8 pixels (height x width), the size of the run's images; got 16 x 16: give --fit_mask",
        "white": "is white everywhere for 'a', so that all is known",
        "none": "there is no",
    }
    for name, message in messages.items():
        assert edit("--what=inpaint", f"--images={folder}", f"--mask={tmp_path}/{name}.png") == 2
        err = capfd.readouterr().err
        assert message in err and err.startswith("error: --mask") and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_other_folders_and_missing_images_are_refused(edit, folder, tmp_path, capfd):
    assert edit("--what=sdedit", f"--images={folder}", out="in") == 2
    assert "--out must be a new or empty folder" in capfd.readouterr().err
    assert edit("--what=sdedit", f"--images={folder}/bad.png") == 2
    assert "bad.png' could not be read as an image: not an image" in capfd.readouterr().err
    assert edit("--what=sdedit") == 2
    assert "--images must name the image, a folder of images, or an array file to edit" in capfd.readouterr().err


def test_the_share_of_a_random_hole(edit, folder, images, tmp_path, capfd):
    flags = ["--what=inpaint", "--method=replacement", f"--images={folder}/a.png"]
    assert edit(*flags, "--hole=random", "--hole_share=0.25") == 0
    mask = dj.make_mask("random", 8, 8, share=0.25)[..., 0]
    result = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    assert mask.sum() == 48
    np.testing.assert_array_equal(result[mask], images[0, ..., 0][mask])
    assert np.any(result[~mask] != images[0, ..., 0][~mask])
    for share, message in {
        1: "hole_share must be above 0 and below 1, the share of the pixels in the hole; got 1",
        0: "hole_share must be above 0",
        float("nan"): "hole_share must be above 0",
        0.001: "hole_share 0.001 is no pixel of 8 x 8: give at least 0.0156 and at most 0.984",
        0.999: "hole_share 0.999 is every pixel of 8 x 8",
    }.items():
        with pytest.raises(dj.UserError, match=message):
            named_hole("random", share, 8, 8)
    capfd.readouterr()
    messages = {
        ("--hole=random", "--hole_share=1"): "--hole_share must be above 0 and below 1, the share of the pixels in",
        ("--hole=left", "--hole_share=0.25"): "--hole_share is of --hole=random; got --hole=left: leave it out",
        ("--hole_share=0.25",): "--hole_share is of --hole=random; got no --hole: give it",
    }
    for given, message in messages.items():
        assert edit(*flags, *given, out="other") == 2
        err = capfd.readouterr().err
        assert message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "other").exists()
