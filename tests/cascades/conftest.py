"""Two small runs that are the stages of a cascade: digits at 4x4 with classes, and from 4x4 to 8x8."""

import pytest

import ddpm_jax as dj


@pytest.fixture(scope="session")
def small_images_run(tiny_config, made_once):
    """The workdir of a small run that draws 4x4 images with classes, by another schedule than the next stage's."""
    from ddpm_jax.experiment.training import train

    overrides = (
        "data.image_size=4,4", "data.area_factor=2", "model.num_classes=10", "condition.drop_rate=0.25",
        "schedule.name=linear", "schedule.num_steps=30", "train.num_steps=4",
    )  # fmt: skip
    return made_once("small_images", lambda folder: train(tiny_config(*overrides), str(folder)))


@pytest.fixture(scope="module")
def runs(small_images_run, super_resolution_run):
    """Both, opened."""
    return [dj.open_run(str(small_images_run)), dj.open_run(str(super_resolution_run))]
