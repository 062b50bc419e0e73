"""Classes by name: from the sub-folders of the images to the samples."""

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.experiment.sampler_settings import with_class_numbers
from ddpm_jax.experiment.training import train
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.training.run_status import status_lines
from ddpm_jax.workdir.class_names import numbered, read_class_names, write_class_names

NAMES = ("hat", "pants", "shoes")
DRAW = {"num_sampler_steps": 2, "progress": False}


@pytest.fixture(scope="module")
def named_run(tiny_config, made_once):
    """A run of a folder with three sub-folders."""

    def make(folder):
        for name in NAMES:
            (folder / "images" / name).mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
                Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
        fields = ("data.name=image_folder", f"data.path={folder / 'images'}", "data.split=train", "data.eval_split=")
        config = tiny_config(*fields, "model.num_classes=3", "train.num_steps=2", "sample.num_grid=6")
        train(config, str(folder / "run"))

    return made_once("named", make) / "run"


def test_samples_by_name_are_those_by_number(named_run, sample_main, tmp_path, capsys):
    run = open_run(named_run)
    assert run.class_names == NAMES == read_class_names(named_run)
    np.testing.assert_array_equal(run.sample(4, classes=("shoes", 0), **DRAW), run.sample(4, classes=(2, 0), **DRAW))
    np.testing.assert_array_equal(run.sample(4, classes="hat", **DRAW), run.sample(4, classes=(0,), **DRAW))
    flags = [f"--workdir={named_run}", "--num_sampler_steps=2", "--nocompilation_cache", f"--out={tmp_path / 'new'}"]
    assert sample_main([*flags, "--num_samples=9", "--classes=pants,hat,shoes"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "columns: 1 pants, 0 hat, 2 shoes"
    np.testing.assert_array_equal(np.load(tmp_path / "new.npz")["arr_1"], [1, 0, 2] * 3)
    assert sample_main([*flags, "--num_samples=36"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "columns: 0 hat, 1 pants, 2 shoes, and so on in turn"
    assert sample_main([*flags, "--classes=hut"]) == 2
    said = capsys.readouterr().err
    assert said == "error: --classes must be numbers or names of the classes 0 hat, 1 pants, 2 shoes; got 'hut'\n"
    assert "classes   0 hat, 1 pants, 2 shoes" in status_lines(str(named_run))


def test_names_and_numbers():
    given = {"classes": "hat, 2", "negative_classes": ("shoes",), "eta": 0.5}
    assert with_class_numbers(given, NAMES) == {"classes": "0,2", "negative_classes": "2", "eta": 0.5}
    assert with_class_numbers({"classes": (1, 2)}, NAMES) == {"classes": (1, 2)}
    # The forms that a config takes.
    for text, numbers in (("(hat,shoes)", "0,2"), ("['shoes']", "2"), ("hat,", "0")):
        assert with_class_numbers({"classes": text}, NAMES) == {"classes": numbers}
    for text in ("(0,1)", "3,", "", "[2]"):
        assert with_class_numbers({"classes": text}, NAMES) == {"classes": text}
    assert with_class_numbers({"classes": ("a, b",)}, ("a, b",)) == {"classes": "0"}
    # A number is a number, also where a class has a number as its name.
    assert with_class_numbers({"classes": "1"}, ("1", "0")) == {"classes": "1"}
    assert with_class_numbers({"classes": "x"}, ()) == {"classes": "x"}  # refused where the values are checked
    with pytest.raises(UserError, match="^negative_classes must be numbers or names of the classes 0 hat.*got 'x'"):
        with_class_numbers({"negative_classes": ("x",)}, NAMES)
    with pytest.raises(UserError, match="got '0-2': give a list such as 3,7$"):
        with_class_numbers({"classes": "0-2"}, NAMES)
    assert numbered([str(i) for i in range(20)]).endswith("11 11, ...") and numbered((), [3, 4]) == "3, 4"


@pytest.mark.parametrize("content", [None, b"{}", b"[1]", b"[", b"\xff"])
def test_without_a_file_that_can_be_read_there_are_no_names(tmp_path, content):
    if content is not None:
        (tmp_path / "class_names.json").write_bytes(content)
    assert read_class_names(tmp_path) == ()
    write_class_names(tmp_path, NAMES)
    assert read_class_names(tmp_path) == NAMES


def test_a_classifier_of_other_names_is_refused(named_run, tmp_path):
    write_class_names(tmp_path, ("hat", "shoes", "pants"))
    with pytest.raises(
        UserError, match="classifier has the classes 0 hat, 1 shoes, 2 pants; the run has 0 hat, 1 pants"
    ):
        open_run(named_run).sample(2, classifier=tmp_path, **DRAW)


def test_a_resumed_run_says_that_its_length_changes(named_run, tiny_config, tmp_path, capsys):
    for num_steps in (2, 4):
        train(tiny_config(f"train.num_steps={num_steps}"), str(tmp_path))
    out = capsys.readouterr().out
    assert out.count("the run had 2 steps; to keep them: --config.train.num_steps=2") == 1
