"""Commands that would replace something else refuse or say so; fields that nothing reads are refused before step 1."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax import benchmark, evaluate
from ddpm_jax.data.__main__ import main as data_main
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.experiment.training import train
from ddpm_jax.runtime.command_line import CommandParser, run
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.runtime.resume_file import fingerprint
from ddpm_jax.training.run_log import read_metrics

SHORT = ["--num_samples=2", "--num_sampler_steps=2", "--nocompilation_cache"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.train.update({"batchsize": 3}),
            "has the field 'train.batchsize', .*did you mean 'train.batch_size'",
        ),
        (lambda c: c.update({"bar": 1}), "has the field 'bar', which configs/base.py lacks"),
        (lambda c: c.update({"dif_fusion": {"loss": 1}}), "has the field 'dif_fusion.loss'"),
        (lambda c: c.diffusion.update({"predicton": "v"}), "did you mean 'diffusion.prediction'"),
        (lambda c: c.train.__delattr__("seed"), "lacks the field 'train.seed' of configs/base.py"),
    ],
)
def test_fields_that_nothing_reads_and_missing_ones_are_refused(tiny_config, change, message):
    config = tiny_config().copy_and_resolve_references().unlock()
    change(config)
    with pytest.raises(UserError, match=message):
        build_experiment(config)


def test_a_group_of_the_users_own_is_allowed(tiny_config):
    config = tiny_config().copy_and_resolve_references().unlock()
    config.update({"sketch": {"strength": 0.5}})
    build_experiment(config)


def test_a_run_whose_checkpoints_are_missing_does_not_begin_anew(own_run, tiny_config):
    shutil.rmtree(own_run / "checkpoints")
    before = (own_run / "metrics.jsonl").read_bytes()
    with pytest.raises(
        UserError, match="has the log of a run of 8 steps, which saved every 2, and no checkpoint: restore"
    ):
        train(tiny_config(), str(own_run))
    assert (own_run / "metrics.jsonl").read_bytes() == before
    # One that was killed before its first checkpoint does.
    lines = before.splitlines(keepends=True)
    (own_run / "metrics.jsonl").write_bytes(lines[0])
    assert train(tiny_config("train.num_steps=2"), str(own_run)) is None
    assert [line["step"] for line in read_metrics(own_run)] == [2]


def test_a_folder_of_something_else_is_refused(tiny_config, tmp_path):
    (tmp_path / "config.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match="holds a config.json of something else: give another folder"):
        train(tiny_config(), str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text()) == {"mine": 1}


@pytest.mark.parametrize(("name", "make"), [("samples", "touch"), ("metrics.jsonl", "mkdir"), ("config.json", "mkdir")])
def test_what_is_of_another_kind_is_refused_before_the_training(tiny_config, tmp_path, name, make):
    getattr(tmp_path / name, make)()
    with pytest.raises(UserError, match=f"{name} must be a .*: move it away, or give another --workdir"):
        train(tiny_config(), str(tmp_path))


def test_a_metrics_file_that_is_a_pipe_is_refused(tiny_config, tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="metrics.jsonl must be a file"):
        train(tiny_config(), str(tmp_path))


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "file"])
def test_a_checkpoint_of_another_kind_is_refused(own_run, tiny_config, kind, tmp_path):
    """A run deletes old checkpoints, which is no place for a link; a pipe would be waited for."""
    path = own_run / "checkpoints" / "8"
    shutil.move(path, tmp_path / "far")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "file":
        path.touch()
    else:
        path.symlink_to(tmp_path / ("far" if kind == "link" else "none"))
    message = f"checkpoints/8 is {'a link' if path.is_symlink() else 'no folder'}: put the folder of the checkpoint"
    with pytest.raises(UserError, match=message):
        train(tiny_config("train.num_steps=16"), str(own_run))
    if kind == "link":
        assert open_run(own_run).step == 8  # it may be read
    else:
        with pytest.raises(UserError, match=message):
            open_run(own_run)


def test_a_setting_is_checked_in_both_forms(straight_run, sample_main, tmp_path, capsys):
    flags = [f"--workdir={straight_run}", *SHORT, f"--out={tmp_path / 'new'}"]
    for given, said in (
        (["--config.sample.eta=0.5"], "--config.sample.eta is of --sampler=ddim; got 'ancestral'"),
        (["--num_sampler_steps=3", "--config.sample.num_sampler_steps=4"], "are the same setting: give one of them"),
        (["--config.sample.guidance_interval=1,2"], "--config.sample.guidance_interval needs a"),
    ):
        assert sample_main([*flags, *given]) == 2
        assert said in capsys.readouterr().err
    assert sample_main([*flags, "--config.sample.sampler=ddim", "--eta=0.5"]) == 0


def test_commands_say_what_they_replace(straight_run, sample_main, tmp_path, capsys):
    out = tmp_path / "new"
    flags = [f"--workdir={straight_run}", *SHORT, f"--out={out}"]
    assert sample_main(flags) == 0 and "in place of" not in capsys.readouterr().out
    (tmp_path / "new.npz").unlink()  # the PNG alone is something to lose, too
    assert sample_main(flags) == 0 and "in place of what was there" in capsys.readouterr().out
    bits = [f"--workdir={straight_run}", "--what=bits", "--max_images=4", f"--out={tmp_path / 'ev'}"]
    for number, respacing in enumerate(("2", "3")):
        settings = [f"--bits_respacing={respacing}", "--config.sample.clip_x_0=false", "--nocompilation_cache"]
        assert evaluate.main([*bits, *settings]) == 0
        assert ("evaluation.json, in place of what was there" in capsys.readouterr().out) == bool(number)
    for number in range(2):
        assert benchmark.main(["--config=digits", "--dry_run", "--nocompile", f"--out={tmp_path / 'b.json'}"]) == 0
        assert ("b.json, in place of what was there" in capsys.readouterr().out) == bool(number)
    assert benchmark.main(["--config=digits", "--dry_run", "--nocompile", f"--out={tmp_path}"]) == 2
    assert "--out must be a file; got the folder" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_is_one_line_in_every_command(number, capsys):
    def main(args):
        raise OSError(number, os.strerror(number), "new.npz")

    parser = CommandParser("sample", "", "", compiles=False)
    assert run(main, parser, []) == 74
    assert capsys.readouterr().err == (
        "error: no room on the disk: 'new.npz' could not be written; free some space and run the command again\n"
    )


def test_names_that_are_no_utf_8_have_a_fingerprint():
    assert fingerprint(["\udcff.png"]) != fingerprint(["\udcfe.png"])
    assert fingerprint(["a.png"]) == fingerprint(["a.png"])


def test_an_array_with_a_negative_size_is_one_line(tmp_path, tiny_config):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (40, 8, 8, -1), }".ljust(117) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"x" * 2560)
    experiment = build_experiment(tiny_config("data.name=array", f"data.path={tmp_path / 'a.npy'}"))
    with pytest.raises(UserError, match="a.npy' cannot be read as a NumPy file"):
        experiment.source()


def test_a_config_that_links_to_itself(tmp_path):
    (tmp_path / "loop.py").symlink_to("loop.py")
    with pytest.raises(UserError, match="no experiment"):
        load_config(str(tmp_path / "loop.py"))


def test_packing_refuses_empty_names_and_advises_what_works(tmp_path, capsys, monkeypatch):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.fromarray(np.full((9, 9, 3), 80 * i, np.uint8)).save(tmp_path / "images" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    for given, name in ((["images", ""], "OUT"), (["", "out"], "DIR")):
        assert data_main(["pack", *given, "--image_size=8"]) == 2
        assert f"{name} must not be empty" in capsys.readouterr().err
    for size in (8, 24, 48, 64, 96):
        assert data_main(["pack", "images", f"out{size}", f"--image_size={size}"]) == 0
        advice = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next: "))
        name, *fields = [word.partition("=")[2] for word in advice.split() if word.startswith("--config=")] + [
            word.removeprefix("--config.") for word in advice.split() if word.startswith("--config.")
        ]
        build_experiment(load_config(name, [*fields, "train.num_devices=1", "sample.batch_size=8"]))


def test_few_images_get_advice_that_works(tmp_path, tiny_config):
    from PIL import Image

    for i in range(3):
        Image.fromarray(np.full((8, 8), 80 * i, np.uint8)).save(tmp_path / f"{i}.png")
    of_folder = ("data.name=image_folder", f"data.path={tmp_path}")
    with pytest.raises(
        UserError, match="selects none of the 3 images.*--config.data.split=train --config.data.eval_split=$"
    ):
        train(tiny_config(*of_folder, "data.split=train[:95%]", "data.eval_split=train[95%:]"), str(tmp_path / "run"))


def test_too_many_pixels_are_refused_before_the_work(tmp_path, capsys):
    flags = ["--samples=none", "--reference=digits:train", "--extractor=pixels", "--image_size=6000,6000"]
    assert evaluate.main([*flags, "--nocompilation_cache"]) == 2
    assert "at most 4096 values per image; got --image_size=6000,6000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: dj.make_schedule("cosine", num_steps=1.5), UserError, "num_steps must be a whole number; got 1.5"),
        (lambda: dj.ddim_table(dj.make_schedule("cosine", num_steps=9), eta=float("nan")), UserError, "eta must be"),
        (lambda: dj.seed_keys(2**32), UserError, r"seed must be in 0..2\^32-1; got 4294967296"),
        (lambda: dj.to_uint8(np.array([0, 128], np.uint8)), TypeError, "x_0 must be of floats in"),
    ],
)
def test_wrong_arguments_of_the_library_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
