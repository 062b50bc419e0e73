"""`python -m ddpm_jax.sample`: the files it writes, and what sample n depends on."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.runtime.image_files import class_columns
from ddpm_jax.workdir.checkpoints import Checkpoints


@pytest.fixture
def draw(sample_main, straight_run, tmp_path):
    def draw(*flags, workdir=straight_run, out=None):
        out = out or tmp_path / "x"
        assert sample_main([f"--workdir={workdir}", f"--out={out}", "--nocompilation_cache", *flags]) == 0
        with np.load(f"{out}.npz") as file:
            assert list(file) == ["arr_0"]
            return file["arr_0"]

    return draw


def test_files(draw, tmp_path, capfd):
    images = draw("--num_samples=11")
    assert images.dtype == np.uint8 and images.shape == (11, 8, 8, 1)
    assert len(np.unique(images.reshape(11, -1), axis=0)) == 11
    with Image.open(tmp_path / "x.png") as grid:
        assert grid.format == "PNG"
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == f"wrote {tmp_path}/x.npz (uint8 [11, 8, 8, 1] as arr_0) and {tmp_path}/x.png"
    assert err.splitlines()[-1].startswith("sampling: 40/40 steps") and "Traceback" not in err


def test_sample_n_depends_on_the_seed_and_n(draw):
    eleven = draw("--num_samples=11")  # two batches of 8
    # Another batch size is another program: sums may round otherwise, by a grey value where x.5 is near.
    for other in (draw("--num_samples=11", "--batch_size=16"), draw("--num_samples=3"), draw("--num_samples=17")):
        num = min(len(other), 11)
        np.testing.assert_allclose(other[:num].astype(int), eleven[:num].astype(int), atol=1)
        assert np.mean(other[:num] != eleven[:num]) < 0.01
    assert np.array_equal(draw("--num_samples=11"), eleven)
    assert np.mean(draw("--num_samples=11", "--seed=1") != eleven) > 0.5


def test_one_device_draws_what_eight_do(draw, straight_run, tmp_path):
    """A real process with one device, beside this one with eight."""
    assert jax.device_count() == 8
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run(
        [sys.executable, "-m", "ddpm_jax.sample", f"--workdir={straight_run}", f"--out={tmp_path}/one",
         "--num_samples=9"], check=True, env=env,
    )  # fmt: skip
    one, eight = np.load(tmp_path / "one.npz")["arr_0"], draw("--num_samples=9")
    np.testing.assert_allclose(one.astype(int), eight.astype(int), atol=1)
    assert np.mean(one != eight) < 0.01


def test_weights_of_eight_devices_on_one(tiny_config, tmp_path):
    """A checkpoint asks for no device: what eight wrote is read as NumPy."""
    from ddpm_jax.experiment.build import build_experiment
    from ddpm_jax.runtime.devices import make_mesh, replicated

    experiment = build_experiment(tiny_config("train.num_devices=8"))
    state = jax.tree.map(
        lambda leaf: jax.device_put(np.ones(leaf.shape, leaf.dtype), replicated(make_mesh(8))),
        experiment.abstract_state,
    )
    checkpoints = Checkpoints(str(tmp_path), create=True)
    checkpoints.save(state, "{}")
    checkpoints.close()
    code = (
        "from ddpm_jax.workdir.checkpoints import Checkpoints; import jax; assert jax.device_count() == 1;"
        f"print(type(jax.tree.leaves(Checkpoints({str(tmp_path)!r}).restore_params('params')[1])[0]).__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("ndarray\n", "")


def test_weights_and_checkpoints_differ(draw):
    kinds = [draw("--num_samples=2", *flags) for flags in
             ([], ["--weights=raw"], ["--step=2"], ["--sampler=ddim"], ["--sampler=ddim", "--eta=1"],
              ["--num_sampler_steps=5"], ["--sampler=ddim", "--num_sampler_steps=4", "--spacing=quadratic"])]
    assert len({images.tobytes() for images in kinds}) == len(kinds)
    assert np.array_equal(draw("--num_samples=2", "--weights=ema", "--step=8"), kinds[0])


def test_config_comes_from_the_checkpoint(draw, own_run):
    wanted = draw("--num_samples=2")
    config = json.loads((own_run / "config.json").read_text())
    config["conv_net"]["channels"] = 64
    config["schedule"]["name"] = "linear"
    (own_run / "config.json").write_text(json.dumps(config))
    assert np.array_equal(draw("--num_samples=2", workdir=own_run), wanted)
    (own_run / "config.json").unlink()
    assert np.array_equal(draw("--num_samples=2", workdir=own_run), wanted)


def test_without_out_they_lie_in_the_workdir(sample_main, own_run, capsys):
    for seed, words in ((3, ".png\n"), (3, ".png, in place of what was there\n"), (4, ".png\n")):
        assert sample_main([f"--workdir={own_run}", "--num_samples=1", f"--seed={seed}", "--nocompilation_cache"]) == 0
        path = own_run / "samples" / f"step_8_seed_{seed}"
        assert path.with_suffix(".npz").is_file() and path.with_suffix(".png").is_file()
        assert capsys.readouterr().out.endswith(f"{path}{words}")


@pytest.mark.parametrize("extension", ["", ".png", ".npz"])
def test_out(sample_main, straight_run, tmp_path, extension):
    out = tmp_path / "new" / "deep" / f"v1.5{extension}"
    assert sample_main([f"--workdir={straight_run}", f"--out={out}", "--num_samples=1", "--nocompilation_cache"]) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["v1.5.npz", "v1.5.png"]


def test_weights_that_do_not_fit(sample_main, straight_run, tmp_path, monkeypatch, capfd):
    from ddpm_jax.experiment import run_checkpoint

    real = run_checkpoint.config_from_json

    def wider(text):
        config = real(text)
        with config.unlocked():
            config.conv_net.channels = 4
        return config

    monkeypatch.setattr(run_checkpoint, "config_from_json", wider)
    assert sample_main([f"--workdir={straight_run}", f"--out={tmp_path}/x", "--nocompilation_cache"]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: the checkpoint does not fit the network of its config: ['conv_in']['bias'] is (8,) ")
    assert len(err.splitlines()) == 1


def test_any_field_of_the_sampling_may_be_given(draw, sample_main, straight_run, tmp_path, capsys):
    flags = ["--num_samples=8", "--sampler=ddim", "--num_sampler_steps=5"]
    by_fields = draw("--num_samples=8", "--config.sample.sampler=ddim", "--config.sample.num_sampler_steps=5")
    assert np.array_equal(by_fields, draw(*flags))
    assert not np.array_equal(by_fields, draw(*flags, "--noconfig.sample.clip_x_0"))
    capsys.readouterr()
    line = [f"--workdir={straight_run}", f"--out={tmp_path / 'x'}", "--nocompilation_cache"]
    for field, message in (
        ("--config.train.seed=3", "a field after --config. must be one of ['sample.*']; got 'train.seed'"),
        ("--config.sample.sampler=ddm", "--config.sample.sampler must be one of ["),
        ("--guidance_rescale=0.5", "--guidance_rescale needs a --guidance_scale other than 1"),
        ("--guidance_scale=1e39", "--guidance_scale must be in 0..1e+06; got 1e+39"),
        ("--config.sample.churm=3", "'sample.churm'"),
        ("--clip_x_0=false --dynamic_threshold=0.9", "--clip_x_0 has no effect where a dynamic threshold takes its"),
        ("--clip_x_0=maybe", "--clip_x_0 must be true or false; got 'maybe'; an example: --clip_x_0=true"),
        ("--variance=small", "--variance must be one of ['fixed_large', 'fixed_small']; got 'small'"),
        ("--sampler=ddim --variance=fixed_small", "--variance=fixed_small is of --sampler=ancestral; got 'ddim'"),
    ):
        assert sample_main([*line, *field.split()]) == 2
        printed = capsys.readouterr().err.strip()
        assert message in printed and len(printed.splitlines()) == 1


def test_the_variance_and_the_limit_of_x_0(draw, straight_run, capfd):
    """fixed_small is ddim's noise of eta = 1; the run has fixed_large."""
    small = draw("--num_samples=8", "--variance=fixed_small").astype(int)
    assert "ancestral (variance fixed_small) with 20 network calls" in capfd.readouterr().out
    assert np.abs(small - draw("--num_samples=8", "--sampler=euler_ancestral")).max() <= 1
    assert np.array_equal(draw("--num_samples=8", "--variance=fixed_large"), draw("--num_samples=8"))
    assert not np.array_equal(small, draw("--num_samples=8"))
    flags = ["--num_samples=8", "--sampler=ddim", "--num_sampler_steps=5"]
    assert np.array_equal(draw(*flags, "--clip_x_0=true"), draw(*flags))
    assert not np.array_equal(draw(*flags, "--clip_x_0=false"), draw(*flags))


def test_a_config_of_a_later_version_or_with_whole_numbers(draw, own_run, sample_main, tmp_path, capsys):
    """A field that is not known is one line; 1 for 1.0 is taken."""
    path = own_run / "checkpoints" / "8" / "config" / "metadata"
    line = [f"--workdir={own_run}", f"--out={tmp_path / 'x'}"]
    (own_run / "checkpoints" / "8" / "manifest.json").unlink()
    item = json.loads(path.read_text())
    config = json.loads(item["config"])
    config["sample"]["dynamic_threshold"] = 1
    path.write_text(json.dumps(item | {"config": json.dumps(config)}))
    assert np.array_equal(draw("--num_samples=8", workdir=own_run), draw("--num_samples=8", "--dynamic_threshold=1"))
    config["conv_net"]["later"] = 1
    path.write_text(json.dumps(item | {"config": json.dumps(config)}))
    capsys.readouterr()
    assert sample_main(line) == 2
    assert "has the field 'conv_net.later', which this ddpm_jax does not know: upgrade" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("num_images", "num_classes", "columns"),
    [(64, 0, None), (64, 1, None), (100, 10, 10), (40, 10, 10), (64, 2, 8), (16, 3, 3), (64, 99, None), (4, 10, None)],
)
def test_a_column_of_the_grid_has_one_class(num_images, num_classes, columns):
    assert class_columns(num_images, num_classes) == columns


def test_columns_may_be_given(draw, tmp_path):
    draw("--num_samples=6", "--columns=2")
    with Image.open(tmp_path / "x.png") as grid:
        assert 1.4 < grid.height / grid.width < 1.6  # three rows, two columns
