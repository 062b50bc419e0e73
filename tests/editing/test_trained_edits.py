"""Edits by networks that were trained for them: what they are shown, what is kept, and what is refused."""

import numpy as np
import pytest
from PIL import Image

import ddpm_jax as dj
from ddpm_jax.editing.settings import EDITS_OF_TASK
from ddpm_jax.experiment.training import train
from ddpm_jax.runtime.errors import UserError

QUICK = {"progress": False, "batch_size": 8, "sampler": "ddim", "num_sampler_steps": 3}


@pytest.fixture(scope="module")
def run(inpainting_run):
    return dj.open_run(str(inpainting_run))


@pytest.fixture(scope="module")
def images(run):
    return run.source("test").load(np.arange(3))


@pytest.fixture(scope="module")
def mask():
    return dj.make_mask("bottom", 8, 8)


def test_the_known_part_is_kept_and_decides_the_rest(run, images, mask):
    results = dj.edit_images(run, images, "inpaint", mask=mask, num_results=2, **QUICK)
    np.testing.assert_array_equal(results[:, :, :4], np.repeat(images[:, None, :4], 2, axis=1))
    assert np.any(results[:, 0, 4:] != results[:, 1, 4:])
    everything = dj.edit_images(run, images, "inpaint", mask=np.ones((8, 8, 1)), **QUICK)
    np.testing.assert_array_equal(everything[:, 0], images)
    # The same noise beside another image: what is drawn depends on what is shown.
    others = dj.edit_images(run, images[[1, 2, 0]], "inpaint", mask=mask, num_results=2, **QUICK)
    assert np.any(others[:, :, 4:] != results[:, :, 4:])
    wide = dj.edit_images(run, images, "inpaint", mask=mask, num_results=2, **QUICK | {"batch_size": 16})
    np.testing.assert_array_equal(wide, results)


def test_an_edit_is_the_sample_with_its_condition(run, images, mask):
    """Where nothing is known, projection changes nothing, and the result is a sample."""
    nothing = np.zeros((8, 8, 1), bool)
    results = dj.edit_images(run, images, "inpaint", mask=nothing, seed=4, classes=(3,), **QUICK)
    shown = {"shown": np.zeros((8, 8, 1), np.float32), "known": np.zeros((8, 8, 1), np.float32)}
    samples = run.sample(3, seed=4, condition=shown | {"label": np.int32(3)}, **QUICK)
    np.testing.assert_array_equal(results[:, 0], samples)


def test_classes_and_guidance(run, images, mask):
    plain, guided = (
        dj.edit_images(run, images, "inpaint", mask=mask, classes=(3, 4), num_results=2, guidance_scale=scale, **QUICK)
        for scale in (1, 4)
    )
    assert np.any(plain != guided)
    np.testing.assert_array_equal(guided[:, :, :4], np.repeat(images[:, None, :4], 2, axis=1))


def test_outpaint_shows_the_half_beside_it(run, images):
    results = dj.edit_images(run, images, "outpaint", side="left", **QUICK)
    assert results.shape == (3, 1, 8, 12, 1)
    np.testing.assert_array_equal(results[:, 0, :, 4:], images)


@pytest.fixture(scope="module")
def grey_and_colours(tiny_config, made_once):
    """The folder of colour images, and the workdir of a run that colours them."""

    def make(folder):
        (folder / "data").mkdir()
        rng = np.random.default_rng(0)
        for i in range(16):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / "data" / f"{i:02}.png")
        config = tiny_config(
            "data.name=image_folder", f"data.path={folder / 'data'}", "data.split=train[:8]",
            "data.eval_split=train[8:]", "data.num_channels=3", "condition.task=colourise", "train.num_steps=2",
            "train.batch_size=8",
        )  # fmt: skip
        train(config, str(folder / "run"))

    return made_once("colours", make)


def test_a_folder_is_coloured_by_the_command(grey_and_colours, tmp_path, capsys):
    from ddpm_jax.edit import main

    images, out = grey_and_colours / "data", tmp_path / "out"
    flags = [
        f"--workdir={grey_and_colours / 'run'}", "--what=colourise", f"--images={images}", f"--out={out}",
        "--sampler=ddim", "--num_sampler_steps=2",
    ]  # fmt: skip
    assert main(flags) == 0
    assert "by a network trained to colourise" in capsys.readouterr().out
    assert len(list(out.glob("??.png"))) == 16 and np.asarray(Image.open(out / "00.png")).shape == (8, 8, 3)
    run = dj.open_run(str(grey_and_colours / "run"))
    grey = np.asarray(Image.open(images / "00.png").convert("L"))[None, ..., None]
    result = dj.edit_images(run, grey, "colourise", progress=False, sampler="ddim", num_sampler_steps=2)
    np.testing.assert_array_equal(result[0, 0], np.asarray(Image.open(out / "00.png")))
    assert main([flags[0], "--what=inpaint", *flags[2:], "--hole=centre"]) == 2
    assert "a network with condition.task='colourise' was trained for colourise by trained; got --what=inpaint" in (
        capsys.readouterr().err
    )


def test_what_does_not_fit_is_refused(run, straight_run, images, mask):
    with pytest.raises(UserError, match=r"was trained for inpaint and outpaint by trained; got what=sdedit"):
        dj.edit_images(run, images, "sdedit")
    with pytest.raises(UserError, match=r"got what=inpaint by repaint: take a run without a task"):
        dj.edit_images(run, images, "inpaint", mask=mask, method="repaint")
    plain = dj.open_run(str(straight_run))
    with pytest.raises(UserError, match=r"what=restore by trained needs .* condition.task=jpeg or deblur; this run"):
        dj.edit_images(plain, images, "restore")
    with pytest.raises(UserError, match=r"what=inpaint by trained needs a network .* condition.task=inpaint or uncrop"):
        dj.edit_images(plain, images, "inpaint", mask=mask, method="trained")


def test_every_task_has_an_edit():
    from ddpm_jax.diffusion.image_conditions import TASKS
    from ddpm_jax.editing.settings import EDITS, TRAINED

    assert set(EDITS_OF_TASK) == set(TASKS)
    assert all(TRAINED in EDITS[what].methods for edits in EDITS_OF_TASK.values() for what in edits)
