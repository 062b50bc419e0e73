"""The command: a workdir from weights, on which sampling, evaluation and training work, and weights from a workdir."""

import dataclasses
import json
import os
import pickle
import re
import shutil
import sys
import types
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from diffusers_folders import SCHEDULER, UNET, write_folder
from PIL import Image

from ddpm_jax import convert, evaluate, train
from ddpm_jax.experiment import config_files, config_json, training
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.interchange import diffusers, ho_et_al, imported_workdir, openai
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.workdir import checkpoints

ONE_LEVEL = UNET | dict(block_out_channels=[4], down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"])


@pytest.fixture(scope="module", autouse=True)
def keep_the_compilation_cache():
    """The commands leave the tests' own cache alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "that of the tests")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "small"
    write_folder(path, ONE_LEVEL)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path / f"{i}.png")
    return path


def run_convert(*argv):
    return convert.main(list(map(str, argv)))


@pytest.fixture(scope="module")
def imported_run(folder, pictures, tmp_path_factory):
    """The workdir of the small network, imported by the command with the data named."""
    path = tmp_path_factory.mktemp("runs") / "small"
    assert run_convert(f"--from={folder}", f"--workdir={path}", f"--config.data.path={pictures}") == 0
    return path


@pytest.fixture
def own_copy(imported_run, tmp_path):
    return shutil.copytree(imported_run, tmp_path / "run")


def test_an_import_is_a_workdir_at_step_0(folder, imported_run):
    imported = diffusers.read_diffusers(folder)
    for weights in ("ema", "raw"):
        run = open_run(str(imported_run), weights=weights)
        assert run.step == 0
        jax.tree.map(np.testing.assert_array_equal, run.params, imported.params)
    saved = config_json.config_from_json((imported_run / "config.json").read_text())
    assert saved == run.config and sorted(os.listdir(imported_run)) == ["checkpoints", "config.json"]


def test_it_says_what_was_imported(folder, tmp_path, capsys, caplog):
    assert run_convert(f"--from={folder}", f"--workdir={tmp_path / 'run'}") == 0
    out, err = capsys.readouterr()
    assert not err and not caplog.messages
    for line in (
        "network   2,801 parameters for images of 8x8x1, from diffusers",
        "schedule  linear, 20 steps",
        "predicts  eps, variance fixed_large",
        "sampler   ancestral, 20 network calls, clip_x_0 true",
        "note      the file does not say which images, learning rate and EMA",
    ):
        assert line in out, out


def test_sampling_from_an_import(imported_run, tmp_path, sample_main):
    out = tmp_path / "new"
    argv = [f"--workdir={imported_run}", "--num_samples=8", f"--out={out}"]
    assert sample_main([*argv, "--num_sampler_steps=3"]) == 0
    images = np.load(f"{out}.npz")["arr_0"]
    assert images.shape == (8, 8, 8, 1) and images.std() > 10


def test_evaluating_an_import(folder, pictures, tmp_path, capsys):
    """Which pictures may be said when importing, or when measuring."""
    assert run_convert(f"--from={folder}", f"--workdir={tmp_path / 'run'}") == 0
    argv = [f"--workdir={tmp_path / 'run'}", "--what=bits", f"--out={tmp_path / 'out'}"]
    for more, match in (
        ([], "give --split, such as --split=train"),
        (["--split=train"], "data.path must name a folder of images or a packed file; got ''; add"),
        (["--config.unet.channels=8"], "a field after --config. must be one of ['data.data_dir'"),
        (["--config=digits"], "takes no --config=FILE"),
    ):
        assert evaluate.main([*argv, *more]) == 2
        assert match in capsys.readouterr().err
    assert evaluate.main([*argv, "--split=train", "--batch_size=8", f"--config.data.path={pictures}"]) == 0
    assert "16 images of image_folder 'train', step 0, ema weights" in capsys.readouterr().out


def train_on(run, *more):
    settings = {
        "train.num_steps": 2, "train.batch_size": 8, "train.num_devices": 1, "sample.num_grid": 1,
        "sample.num_preview_steps": 1, "sample.batch_size": 1, "sample.num_sampler_steps": 2,
        "optim.learning_rate": 1e-5, "optim.grad_clip": 0,
    }  # fmt: skip
    overrides = [f"--config.{field}={value}" for field, value in settings.items()]
    argv = [f"--config={run / 'config.json'}", f"--workdir={run}", *overrides, *more]
    return train.main(argv)


def test_training_goes_on_from_an_import(own_copy, capsys):
    before = open_run(str(own_copy)).params
    assert train_on(own_copy) == 0  # another learning rate, and another optimiser than that of the import
    assert "from the imported weights" in capsys.readouterr().out
    after = open_run(str(own_copy), weights="raw")
    assert after.step == 2
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, before)
    assert 0 < max(jax.tree.leaves(change)) < 1e-4  # two updates of Adam with 1e-5
    # From here on it is a run like any other: the learning rate is its own.
    assert train_on(own_copy, "--config.train.num_steps=3", "--config.optim.learning_rate=1e-3") == 2
    assert "optim.learning_rate was 1e-05 and is 0.001" in capsys.readouterr().err
    assert train_on(own_copy, "--config.train.num_steps=3") == 0
    assert "resuming from step 2" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["unet.channels=8", "schedule.num_steps=30", "diffusion.prediction=v"])
def test_training_keeps_what_the_weights_mean(own_copy, capsys, change):
    assert train_on(own_copy, f"--config.{change}") == 2
    assert f"{change.split('=')[0]} was" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["w.npz", "w.safetensors", "folder"])
def test_weights_go_out_and_come_back(own_copy, tmp_path, capsys, name):
    path = tmp_path / name
    assert run_convert(f"--workdir={own_copy}", f"--to={path}") == 0
    assert f"wrote {path} (ema weights of step 0)" in capsys.readouterr().out
    assert run_convert(f"--from={path}", f"--workdir={tmp_path / 'again'}") == 0
    once, again = open_run(str(own_copy)), open_run(str(tmp_path / "again"))
    assert once.config == again.config
    jax.tree.map(np.testing.assert_array_equal, once.params, again.params)


def test_the_weights_and_the_step_are_chosen(straight_run, tmp_path, capsys):
    for weights in ("ema", "raw"):
        path = tmp_path / f"{weights}.npz"
        assert run_convert(f"--workdir={straight_run}", f"--to={path}", f"--weights={weights}", "--step=4") == 0
        expected = open_run(str(straight_run), step=4, weights=weights).params
        np.testing.assert_array_equal(np.load(path)["conv_in/kernel"], expected["conv_in"]["kernel"])
    assert run_convert(f"--workdir={straight_run}", f"--to={path}", "--step=5") == 2
    assert "--step must be one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv,match",
    [
        ([], "give one of --from=PATH"),
        (["--from=a", "--to=b"], "give one of --from=PATH"),
        (["--from=absent"], "there is no 'absent'"),
        (["--from={folder}", "--format=difusers"], "--format must be one of .* did you mean 'diffusers'"),
        (["--from={folder}", "--weights=raw"], "--weights is only for --to"),
        (["--from={folder}", "--ema_std=0"], "--ema_std is only for --to"),
        (["--from={folder}", "--step=0"], "--step is only for --to"),
        (["--from={folder}", "--config=digits"], "takes no --config=FILE"),
        (["--from={folder}", "--config.unet.channels=8"], "--config.unet.channels cannot be changed"),
        (["--from={folder}", "--config.data.pth=x"], "unknown config field 'data.pth'; did you mean 'data.path'"),
        (["--from={pictures}"], "its format is not recognised"),
        (["--from={folder}", "--model=cifar10"], "--model=cifar10 is not for diffusers"),
        (["--from={tensorflow}"], "network it belongs to: give --model, one of .'celebahq256'"),
        (["--from={folder}/config.json", "--format=original"], "which network it belongs to: give --model"),
        (["--from={folder}/config.json", "--format=openai"], "which network it belongs to: give --model"),
        (["--from={upsampler}"], "64_256_upsampler lacks input_blocks.0.0.bias"),
        (["--to=x", "--format=openai"], "--format=openai can only be imported"),
        (["--to=x", "--model=cifar10"], "--model is only for --from"),
        (["--from={mine}"], "trained with improved-diffusion or guided-diffusion needs --architecture=CONFIG"),
        (["--from={mine}", "--architecture=improved_cifar10"], "lacks conv_in|has, but the network|lacks input_blocks"),
        (["--from={mine}", "--architecture=nothing"], "no experiment 'nothing'"),
        (["--from={mine}", "--architecture=digits", "--config.model.name=conv_net"], "is of a U-Net"),
        (["--from={mine}", "--architecture=digits", "--model=lsun_cat"], "describes another: give one of them"),
        (["--from={mine}", "--qkv_order=qkv_first"], "--qkv_order is only for --architecture"),
        (["--from={mine}", "--architecture=digits", "--qkv_order=x"], "--qkv_order must be one of"),
        (["--from={folder}", "--architecture=digits"], "--architecture is not for diffusers"),
        (["--from={tensorflow}", "--architecture=digits", "--qkv_order=qkv_first"], "--qkv_order is only for openai"),
        (["--to=x", "--architecture=digits"], "--architecture is only for --from"),
        (["--to=x.pt"], "--to must be a folder, FILE.safetensors or FILE.npz"),
        (["--to=x.npz", "--config.data.path=x"], "is only for --from"),
        (["--frm=x"], "unknown flag '--frm'; did you mean '--from'"),
    ],
)
def test_mistakes_are_one_line(folder, pictures, tmp_path, capsys, argv, match):
    upsampler, mine = tmp_path / "64_256_upsampler.pt", tmp_path / "ema_0.9999_050000.pt"
    for path in (upsampler, mine):
        with zipfile.ZipFile(path, "w") as archive:  # an empty dict, as torch.save writes it
            archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
    tensorflow = Path(__file__).parent / "tensorflow_files" / "model.ckpt-3"
    paths = {"folder": folder, "pictures": pictures, "upsampler": upsampler, "mine": mine, "tensorflow": tensorflow}
    argv = [argument.format(**paths) for argument in argv]
    assert run_convert(*argv, f"--workdir={tmp_path / 'run'}") == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert re.search(match, err[0]), err[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("source", ["openai", "openai by --model", "original", "original by its index"])
def test_published_checkpoints_reach_their_readers(folder, tmp_path, monkeypatch, source):
    """The networks themselves are too large for a test: the readers have tests of their own."""
    read = []

    def reader(tensors, model):
        read.append((sorted(tensors), model))
        return diffusers.read_diffusers(folder)

    monkeypatch.setattr(openai, "read_openai", reader)
    monkeypatch.setattr(ho_et_al, "read_original", reader)
    monkeypatch.setattr(ho_et_al, "is_wanted", lambda name: True)
    files = Path(__file__).parent / "tensorflow_files"
    argv = {
        "openai": [f"--from={tmp_path / 'lsun_cat.pt'}"],
        "openai by --model": [f"--from={tmp_path / 'mine.bin'}", "--format=openai", "--model=lsun_cat"],
        "original": [f"--from={files / 'model.ckpt-3'}", "--model=cifar10"],
        "original by its index": [f"--from={files / 'model.ckpt-3.index'}", "--model=cifar10"],
    }[source]
    for name in ("lsun_cat.pt", "mine.bin"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
    assert run_convert(*argv, f"--workdir={tmp_path / 'run'}") == 0
    tensors, model = read[0]
    assert model == ("lsun_cat" if "openai" in source else "cifar10")
    assert tensors or "openai" in source
    assert open_run(str(tmp_path / "run")).step == 0


def test_no_run_is_overwritten(folder, own_copy, capsys):
    before = sorted(os.walk(own_copy))
    assert run_convert(f"--from={folder}", f"--workdir={own_copy}") == 2
    assert "--workdir must be a new or empty folder" in capsys.readouterr().err
    assert sorted(os.walk(own_copy)) == before


def test_a_killed_import_leaves_nothing_that_looks_whole(folder, tmp_path, monkeypatch):
    """At any of its moments the workdir is not there; at the last one it is there whole."""
    imported, seen = diffusers.read_diffusers(folder), []

    class Killed(BaseException):
        pass

    def killed_at(moment):
        def stop(*args, **kwargs):
            seen.append(sorted(os.listdir(tmp_path)))
            raise Killed

        return stop

    for target, name in ((checkpoints.Checkpoints, "save"), (checkpoints.Checkpoints, "wait"), (os, "replace")):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(target, name, killed_at(name))
            imported_workdir.write_workdir(imported, tmp_path / "run")
    assert len(seen) == 3 and not any("run" in names for names in seen)
    assert os.listdir(tmp_path) == []
    imported_workdir.write_workdir(imported, tmp_path / "run")
    assert open_run(str(tmp_path / "run")).step == 0


def test_an_import_that_cannot_be_sampled_from_is_refused_before_it_is_written(folder, tmp_path):
    imported = diffusers.read_diffusers(folder)
    config = imported.config.copy_and_resolve_references()
    config.sample.num_sampler_steps = 21
    with pytest.raises(UserError, match="sample.num_sampler_steps must be in 1..20"):
        imported_workdir.write_workdir(dataclasses.replace(imported, config=config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_runs_config_is_an_experiment(imported_run, tmp_path):
    path = imported_run / "config.json"
    config = config_files.load_config(str(path), ["train.seed=3"])
    assert config.train.seed == 3 and config.schedule.num_steps == 20
    other = tmp_path / "config.json"
    for text, match in (
        (json.dumps(SCHEDULER), "has the field '_class_name', which no experiment has"),
        ('{"train": {"seed": "a"}}', "train.seed of .* must be like 0; got 'a'"),
        ("{", "the saved config is damaged"),
    ):
        other.write_text(text)
        with pytest.raises(UserError, match=match):
            config_files.load_config(str(other))
    with pytest.raises(UserError, match="no experiment"):
        config_files.load_config(str(tmp_path / "absent.json"))


def test_only_an_import_may_change_the_optimiser(straight_run, tiny_config, tmp_path):
    run = shutil.copytree(straight_run, tmp_path / "run")
    with pytest.raises(UserError, match="optim.learning_rate was"):
        training.train(tiny_config("optim.learning_rate=0.5"), str(run))


class TestHub:
    """`--from=OWNER/NAME`, with a stand-in for huggingface_hub."""

    @pytest.fixture
    def hub(self, monkeypatch, folder, tmp_path):
        monkeypatch.chdir(tmp_path)
        calls = []

        def snapshot_download(name, allow_patterns):
            calls.append((name, allow_patterns[1]))
            return str(folder)

        stand_in = types.SimpleNamespace(snapshot_download=snapshot_download)
        monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
        return stand_in, calls

    def test_a_model_is_downloaded(self, hub):
        assert run_convert("--from=google/small", "--workdir=run") == 0
        assert open_run("run").step == 0
        # Not the pickles beside the safetensors.
        assert hub[1] == [("google/small", "*.safetensors")]

    def test_older_models_have_no_safetensors(self, hub, tmp_path):
        (tmp_path / "cache").mkdir()
        hub[0].snapshot_download = lambda name, allow_patterns: hub[1].append(allow_patterns[1]) or tmp_path / "cache"
        assert run_convert("--from=google/small", "--workdir=run") == 2
        assert hub[1] == ["*.safetensors", "*.bin"]

    @pytest.mark.parametrize(
        "flags", [["--config.train.nope=1"], ["--model=cifar10"], ["--format=npz"], ["--workdir=full"], ["--workdir=g://x"]]
    )
    def test_nothing_is_downloaded_for_what_must_fail(self, hub, flags, capsys):
        os.makedirs("full/x")
        assert run_convert("--from=google/small", "--workdir=run", *flags) == 2
        assert not hub[1] and len(capsys.readouterr().err.splitlines()) == 1

    def test_a_failure_is_one_line(self, hub, capsys):
        def fail(name, allow_patterns):
            raise OSError("404 Client Error.\nRepository Not Found")

        hub[0].snapshot_download = fail
        assert run_convert("--from=google/smal", "--workdir=run") == 2
        err = capsys.readouterr().err
        assert "the Hugging Face Hub did not give it (OSError: 404 Client Error. Repository Not Found): check" in err
        assert len(err.splitlines()) == 1

    def test_without_the_package(self, hub, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        assert run_convert("--from=google/small", "--workdir=run") == 2
        assert "run 'pip install huggingface_hub' first, or download it with 'hf download" in capsys.readouterr().err

    def test_a_folder_comes_first(self, hub, folder):
        shutil.copytree(folder, "google/small")
        assert run_convert("--from=google/small", "--workdir=run") == 0 and not hub[1]
        assert run_convert("--from=google/other", "--workdir=run2") == 2 and not hub[1]
        assert run_convert("--from=google/small", "--workdir=.") == 2 and os.path.exists(os.getcwd())
        assert run_convert("--from=", "--workdir=run3") == 2
