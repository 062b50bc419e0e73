"""`python -m ddpm_jax.sample --cascade`: files, what is printed, an interrupted run, and flags that do not fit."""

import os

import numpy as np
import pytest
from host_processes import HostProcesses
from PIL import Image

import ddpm_jax as dj
from ddpm_jax.cascades.cascade import Cascade
from ddpm_jax.cascades.stage import Stage

FAST = ["--sampler=ddim", "--num_sampler_steps=4", "--nocompilation_cache"]


@pytest.fixture
def command(sample_main, small_images_run, super_resolution_run, tmp_path):
    def command(*flags, cascade=f"{small_images_run},{super_resolution_run}", out=tmp_path / "x"):
        return sample_main([f"--cascade={cascade}", f"--out={out}", *FAST, *flags])

    return command


def test_files_and_output(command, tmp_path, runs, capfd):
    flags = ("--num_samples=11", "--augmentation_level=6", "--stage1.num_sampler_steps=5", "--stage2.guidance_scale=2")
    assert command(*flags, "--classes=4,1") == 0
    out = capfd.readouterr().out.splitlines()
    assert out[0] == "11 samples of a cascade of 2 stages, seed 0"
    assert out[1].startswith("stage 1: ") and out[1].endswith("4x4, step 4 (ema weights), ddim with 5 network calls")
    assert out[2].endswith(
        "8x8, step 8 (ema weights), ddim with 4 network calls, guidance scale 2, augmentation level 6"
    )
    assert out[3].startswith("stage 1: 11 samples in ") and out[4].startswith("stage 2: 11 samples in ")
    x = tmp_path / "x"
    assert out[5] == f"wrote {x}.npz (uint8 [11, 8, 8, 1] as arr_0, classes as arr_1), {x}_stage_1.npz and {x}.png"
    assert sorted(os.listdir(tmp_path)) == ["x.npz", "x.png", "x_stage_1.npz"]
    of_sampler = {"sampler": "ddim", "num_sampler_steps": 4}
    settings = [
        {**of_sampler, "num_sampler_steps": 5, "classes": (4, 1)},
        {**of_sampler, "guidance_scale": 2.0, "augmentation_level": 6},
    ]
    small, large = dj.sample_cascade(runs, 11, settings=settings, progress=False)
    with np.load(f"{x}.npz") as file:
        np.testing.assert_array_equal(file["arr_0"], large)
        assert file["arr_1"].tolist() == [4, 1] * 5 + [4]
    np.testing.assert_array_equal(np.load(f"{x}_stage_1.npz")["arr_0"], small)
    with Image.open(f"{x}.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize("stage", (0, 1))
def test_an_interrupted_cascade_continues_with_the_next_batch(command, tmp_path, monkeypatch, capfd, stage):
    flags = ("--num_samples=19", "--augmentation_level=3")
    assert command(*flags, out=tmp_path / "straight") == 0
    drawn, draw = [], Stage.draw

    def fails_later(self, before, *, first, **given):
        if (self.number, first) == (stage, 8):
            raise KeyboardInterrupt
        return draw(self, before, first=first, **given)

    def counts(self, before, *, first, **given):
        drawn.append((self.number, first))
        return draw(self, before, first=first, **given)

    monkeypatch.setattr(Stage, "draw", fails_later)
    assert command(*flags) == 130
    assert not os.path.exists(tmp_path / "x.npz")
    monkeypatch.setattr(Stage, "draw", counts)
    capfd.readouterr()
    assert command(*flags) == 0
    every = [(number, first) for number in range(2) for first in (0, 8, 16)]
    assert drawn == every[every.index((stage, 8)) :]
    assert f"stage {stage + 1}: 8 of 19 results are there already" in capfd.readouterr().out
    for ending in (".npz", "_stage_1.npz"):
        continued, straight = (np.load(tmp_path / f"{name}{ending}")["arr_0"] for name in ("x", "straight"))
        np.testing.assert_array_equal(continued, straight)
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]


def test_another_setting_of_a_stage_begins_it_again(command, tmp_path, monkeypatch):
    """The results of the stages before are used again."""
    drawn, draw = [], Stage.draw

    def fails_at_the_end(self, before, *, first, **given):
        drawn.append(self.number)
        if self.number == 1:
            raise KeyboardInterrupt
        return draw(self, before, first=first, **given)

    monkeypatch.setattr(Stage, "draw", fails_at_the_end)
    assert command("--num_samples=8", "--augmentation_level=3") == 130
    assert command("--num_samples=8", "--augmentation_level=4") == 130
    assert drawn == [0, 1, 1]
    assert command("--num_samples=8", "--augmentation_level=4", "--seed=1") == 130
    assert drawn[3:] == [0, 1]


def test_truncated_stages_are_written_as_floats(command, tmp_path, capfd):
    flags = ("--num_samples=3", "--truncate", "--stage2.augmentation_level=9", "--stage1.num_sampler_steps=0")
    assert command(*flags) == 0
    assert " of 30 network calls" in capfd.readouterr().out
    assert np.load(tmp_path / "x_stage_1.npz")["arr_0"].dtype == np.float32
    assert np.load(tmp_path / "x.npz")["arr_0"].dtype == np.uint8


def test_the_checkpoint_of_a_stage(command, capfd):
    assert command("--num_samples=3", "--stage2.step=4", "--stage1.weights=raw") == 0
    out = capfd.readouterr().out.splitlines()
    assert "step 4 (raw weights)" in out[1] and "step 4 (ema weights)" in out[2]


REFUSED = {
    "--step=4": "--step is a checkpoint of one run: give --stage1.step=N",
    "--workdir=digits": "--workdir=DIR is one run, --cascade=DIR,DIR the stages of a cascade: give one of them",
    "--columns=3": "--columns is of the samples of one run",
    "--stage3.eta=1": "--stage3 is of a cascade of more stages; --cascade has 2",
    "--stage0.eta=1": "needs the number of a stage, from 1 on",
    "--stage2.seed=1": "a setting of --stage2 must be one of",
    "--stage2.eta": "--stage2.eta needs a value, as --stage2.eta=VALUE",
    "--stage2.step=last": "--stage2.step must be a whole number; got 'last'",
    "--stage1.ema_std=x": "--stage1.ema_std must be a number; got 'x'",
    "--stage1.best=maybe": "--stage1.best must be true or false; got 'maybe'",
    "--stage1.batch_size=0": "--stage1.batch_size must be",
    "--stage2.batch_size=x": "--stage2.batch_size must be",
    "--stage1.num_grid=3": "a setting of --stage1 must be one of",
    "--stage2.eta=0.5,": "--stage2.eta",
    "--stage2.step=5": "stage 2 (",
    "--stage2.augmentation_level=13": "--stage2.augmentation_level must be in 0..12",
    "--augmentation_level=13": "--augmentation_level must be in 0..12",
    "--truncate": "--truncate needs an --augmentation_level above 0",
    "--batch_size=3": "--batch_size must be a multiple of 8",
    "--num_samples=0": "--num_samples must be at least 1",
    "--classes=11": "--classes must",
    "--stage2.classes=1": "--stage2.classes are those of the first stage",
}


@pytest.mark.parametrize("flag", REFUSED)
def test_flags_that_do_not_fit(command, flag, capfd, tmp_path):
    assert command(flag) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and REFUSED[flag] in error
    assert not os.listdir(tmp_path)


def test_two_ways_to_choose_a_checkpoint_are_refused(command, capfd):
    for flags, said in (
        (["--stage2.step=4", "--stage2.best=true"], "both choose a checkpoint"),
        (["--stage2.weights=raw", "--stage2.ema_std=0.1"], "both choose weights"),
    ):
        assert command(*flags) == 2
        assert said in capfd.readouterr().err


def test_a_file_that_cannot_be_written_is_noticed_first(command, tmp_path, capfd):
    (tmp_path / "x_stage_1.npz").mkdir()
    assert command() == 2
    assert "x_stage_1.npz cannot be written" in capfd.readouterr().err


def test_fields_of_sample_are_of_the_stages_that_have_them(command, capfd):
    flags = ("--config.sample.augmentation_level=5", "--config.sample.classes=3", "--stage2.batch_size=16")
    assert command("--num_samples=3", *flags) == 0
    assert capfd.readouterr().out.splitlines()[2].endswith("augmentation level 5")


def test_the_batch_of_a_stage_takes_precedence(command, monkeypatch):
    drawn, draw = [], Stage.draw

    def counts(self, before, *, first, **given):
        drawn.append((self.number, first))
        return draw(self, before, first=first, **given)

    monkeypatch.setattr(Stage, "draw", counts)
    assert command("--num_samples=17", "--batch_size=16", "--stage2.batch_size=8") == 0
    assert drawn == [(0, 0), (0, 16), (1, 0), (1, 8), (1, 16)]


def test_another_filter_of_the_small_images_is_said(runs):
    assert Cascade(runs).notes == ()
    resized = runs[0].with_fields(["data.area_factor=1"], ["data.*"])
    (note,) = Cascade([resized, runs[1]]).notes
    assert "stage 1 was trained with data.area_factor=1, and 2 gives the small images of stage 2" in note


def test_a_long_name_is_noticed_first(command, tmp_path, capfd):
    assert command(out=tmp_path / ("x" * 225)) == 2
    assert "its name is too long" in capfd.readouterr().err


def test_folders_that_are_no_cascade(command, sample_main, small_images_run, tmp_path, capfd):
    for cascade, said in (
        (str(small_images_run), "--cascade must be 2 to 8 folders of runs"),
        (f"{small_images_run},", "--cascade must be 2 to 8 folders of runs"),
        (f"{small_images_run},nowhere", "there is no 'nowhere'"),
        (f"{small_images_run},digits", "stage 2 (digits): each stage after the first"),
    ):
        assert command(cascade=cascade) == 2
        assert said in capfd.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert command(cascade=f"{small_images_run},{empty}") == 2
    assert f"stage 2 ({empty}): " in (error := capfd.readouterr().err) and "--workdir" not in error
    assert sample_main(["--num_samples=3"]) == 2
    assert "got neither" in capfd.readouterr().err
    assert sample_main([f"--workdir={small_images_run}", "--stage1.eta=1"]) == 2
    assert "--stage1.eta is of a cascade: give --cascade=DIR,DIR" in capfd.readouterr().err


@pytest.mark.processes
def test_two_processes_draw_what_one_does(command, small_images_run, super_resolution_run, tmp_path):
    flags = ["--num_samples=11", "--truncate", "--augmentation_level=9", "--stage1.num_sampler_steps=0"]
    out = tmp_path / "two"
    given = [f"--cascade={small_images_run},{super_resolution_run}", f"--out={out}", *FAST[:2], *flags]
    processes = HostProcesses(tmp_path / "hosts", "sample", given)
    assert processes.codes() == [0, 0], processes.all_output()
    assert [line for line in processes.lines(1) if line.strip()] == [] and processes.errors(1) == ""
    assert command(*flags) == 0
    two, one = (np.load(f"{path}.npz")["arr_0"].astype(int) for path in (out, tmp_path / "x"))
    np.testing.assert_allclose(two, one, atol=1)
