"""Super-resolution by a network that was trained for it: small images from arrays and files, levels, and refusals."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

import ddpm_jax as dj
from ddpm_jax.codecs.pixels import to_model_scale
from ddpm_jax.diffusion.image_conditions import shrunk
from ddpm_jax.experiment import shown_images
from ddpm_jax.experiment.shown_images import shown_at_level
from ddpm_jax.runtime.errors import UserError

QUICK = {"progress": False, "batch_size": 8, "sampler": "ddim", "num_sampler_steps": 3}


@pytest.fixture(scope="module")
def run(super_resolution_run):
    """With random weights: after eight steps hardly anything depends on what is shown."""
    run, rng = dj.open_run(str(super_resolution_run)), np.random.default_rng(0)
    return dataclasses.replace(
        run, params=jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), run.params)
    )


@pytest.fixture(scope="module")
def small(run):
    """The held-out images at half their size, uint8 [3, 4, 4, 1]."""
    images = run.source("test").load(np.arange(3))
    return np.stack([np.rint((np.asarray(shrunk(to_model_scale(image), 2)) + 1) * 127.5) for image in images]).astype(
        np.uint8
    )


def test_an_edit_is_the_sample_with_its_condition(run, small):
    """Without noise it is the sample that is shown the held-out image; with noise that with the noise of the edit."""
    results = dj.edit_images(run, small, "super_resolve", seed=4, classes=(3,), **QUICK)
    assert results.shape == (3, 1, 8, 8, 1)
    # What is shown differs in the last digit, in another program: a result near a half may go to the other side.
    samples = run.sample(3, seed=4, classes=(3,), **QUICK).astype(int)
    np.testing.assert_allclose(results[:, 0].astype(int), samples, atol=1)
    noisy = {"augmentation_level": 3, "factor": 2, "classes": (3,)}
    level_3 = dj.edit_images(run, small, "super_resolve", seed=4, **noisy, **QUICK)
    given = shown_at_level(run.image_task, small / np.float32(127.5) - 1, 3, 4, np.arange(3))
    assert given["level"].tolist() == [3] * 3
    given["label"] = np.int32(3)
    np.testing.assert_array_equal(level_3[:, 0], run.sample(3, seed=4, condition=given, **QUICK))
    assert np.any(level_3 != results)


def test_results_of_an_image_have_noise_of_their_own_whatever_the_batch(run, small):
    settings = {"num_results": 3, "augmentation_level": 8}
    results = dj.edit_images(run, small, "super_resolve", **settings, **QUICK)
    wide = dj.edit_images(run, small, "super_resolve", **settings, **QUICK | {"batch_size": 16})
    np.testing.assert_array_equal(wide, results)
    black = np.zeros((4, 4, 4, 1), np.float32)
    noises, others = (shown_at_level(run.image_task, black, 8, seed, np.arange(4))["shown"] for seed in (0, 1))
    assert len({noise.tobytes() for noise in noises}) == 4 and np.all(noises != others)


def test_another_level_compiles_nothing(run, small):
    run = dataclasses.replace(run)  # without the programs of the other tests
    for _ in range(2):  # the second call meets arrays of another origin, which JAX counts once more
        dj.edit_images(run, small, "super_resolve", augmentation_level=2, **QUICK)
    ((generator, _),) = run.programs.generators.values()
    programs = generator._advance._cache_size(), shown_images._at_level._cache_size()
    dj.edit_images(run, small, "super_resolve", augmentation_level=5, **QUICK)
    assert (generator._advance._cache_size(), shown_images._at_level._cache_size()) == programs
    assert len(run.programs.generators) == 1


def test_a_folder_is_enlarged_by_the_command(super_resolution_run, small, tmp_path, capsys):
    from ddpm_jax.edit import main

    run = dj.open_run(str(super_resolution_run))
    (tmp_path / "in").mkdir()
    for number, image in enumerate(small):
        Image.fromarray(image[..., 0]).save(tmp_path / "in" / f"{number}.png")
    out = tmp_path / "out"
    flags = [
        f"--workdir={super_resolution_run}", "--what=super_resolve", f"--images={tmp_path / 'in'}", f"--out={out}",
        "--sampler=ddim", "--num_sampler_steps=3", "--batch_size=8", "--augmentation_level=3",
    ]  # fmt: skip
    assert main(flags) == 0, capsys.readouterr()
    assert "results of 8 x 8 each" in (printed := capsys.readouterr().out) and "trained to super_resolve" in printed
    results = dj.edit_images(run, small, "super_resolve", augmentation_level=3, **QUICK)
    for number in range(3):
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{number}.png")), results[number, 0, ..., 0])
    assert (out / "grid.png").exists()
    np.savez(tmp_path / "small.npz", images=small)
    of_array = [*flags[:2], f"--images={tmp_path / 'small.npz'}", f"--out={tmp_path / 'of_array'}", *flags[4:]]
    assert main(of_array) == 0, capsys.readouterr()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "of_array" / "2.png")), results[2, 0, ..., 0])
    capsys.readouterr()
    assert main([*flags, "--factor=4"]) == 2
    assert "error: --factor must be 2, for which the network was trained; got 4" in capsys.readouterr().err
    assert main([*flags[:-1], "--augmentation_level=13"]) == 2
    assert "error: --augmentation_level must be in 0..12, the levels of the training" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(run, straight_run, small):
    with pytest.raises(UserError, match=r"images must be uint8 \['N', 4, 4, 1\]"):
        dj.edit_images(run, np.zeros((3, 8, 8, 1), np.uint8), "super_resolve", **QUICK)
    with pytest.raises(UserError, match=r"was trained for super_resolve by trained; got what=super_resolve by ddnm"):
        dj.edit_images(run, small, "super_resolve", method="ddnm", **QUICK)
    with pytest.raises(UserError, match=r"was trained for super_resolve by trained; got what=restore"):
        dj.edit_images(run, small, "restore", **QUICK)
    plain = dj.open_run(str(straight_run))
    with pytest.raises(UserError, match=r"what=super_resolve by trained needs .* condition.task=super_resolve; this"):
        dj.edit_images(plain, small, "super_resolve", factor=2, method="trained", **QUICK)
    with pytest.raises(UserError, match=r"augmentation_level=3 is for a network that was trained with"):
        dj.edit_images(plain, small, "super_resolve", factor=2, augmentation_level=3, **QUICK)
