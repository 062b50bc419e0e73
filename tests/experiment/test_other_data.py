"""Data that are no images: signals, volumes and real numbers, through the same trainer and the same commands."""

import shutil

import numpy as np
import pytest

from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.experiment.training import train
from ddpm_jax.runtime.errors import UserError

LENGTH, NUM = 12, 40
VALUES = ["codec.name=floats", "sample.clip_x_0=false"]


@pytest.fixture(scope="module")
def config_of(tiny_config):
    """(path, sizes, overrides) -> the config of the small run on the array file."""

    def config_of(path, sizes, *overrides):
        size = "".join(f"{n}," for n in sizes)
        data = [f"data.path={path}", "data.name=array", "data.split=train[:80%]", "data.eval_split=train[80%:]"]
        return tiny_config(*data, f"data.image_size={size}", *overrides)

    return config_of


@pytest.fixture(scope="module")
def signals():
    """Sines of one period with random phase, about 20 with amplitude 5; float64 [N, LENGTH], without channels."""
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, (NUM, 1))
    return 20 + 5 * np.sin(2 * np.pi * np.arange(LENGTH) / LENGTH + phases)


@pytest.fixture(scope="module")
def run(config_of, signals, tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    np.savez(folder / "signals.npz", arr_0=signals, labels=np.arange(NUM) % 2)
    config = config_of(
        folder / "signals.npz", (LENGTH,), *VALUES, "floats.mean=20", "floats.scale=4", "train.sample_every_steps=4"
    )
    assert train(config, str(folder / "run")) is None
    return folder / "run"


def test_signals_are_trained_and_sampled(run, signals, sample_main, capfd):
    names = {path.name for path in (run / "samples").iterdir()}
    assert names == {"step_00000004_ema.npz", "step_00000004_raw.npz", "final_ema.npz", "final_raw.npz"}
    final = np.load(run / "samples" / "final_ema.npz")["arr_0"]
    assert final.dtype == np.float32 and final.shape == (4, LENGTH, 1)
    samples = open_run(str(run)).sample(4, batch_size=8, progress=False)
    np.testing.assert_allclose(samples, final, rtol=1e-5, atol=1e-4)
    assert sample_main([f"--workdir={run}", "--num_samples=4", "--seed=0", f"--out={run}/new"]) == 0
    assert np.array_equal(np.load(run / "new.npz")["arr_0"], samples) and not (run / "new.png").exists()
    assert capfd.readouterr().out.splitlines()[-1] == f"wrote {run}/new.npz (float32 [4, {LENGTH}, 1] as arr_0)"


def test_batches_are_the_rows_of_the_file(run, signals):
    assert len(open_run(str(run)).source()) == NUM * 8 // 10
    source = open_run(str(run)).source("train")  # all, in the file's order
    assert len(source) == NUM and source.image_shape == (LENGTH, 1)
    rows = source.load(np.array([3, 0]))
    assert rows.dtype == np.float32 and np.array_equal(rows[..., 0], signals[[3, 0]].astype(np.float32))
    assert source.labels.tolist()[:3] == [0, 1, 0]


def test_a_stopped_run_resumes_exactly(run, state_of, tmp_path):
    """Without its last checkpoint, and without its last samples, the run does the rest again, bit for bit."""
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints" / "8")
    (copy / "samples" / "final_ema.npz").unlink()
    assert train(open_run(str(copy)).config, str(copy)) is None
    done, again = np.load(run / "samples" / "final_ema.npz"), np.load(copy / "samples" / "final_ema.npz")
    assert np.array_equal(done["arr_0"], again["arr_0"])
    (copy / "samples" / "final_ema.npz").unlink()
    assert train(open_run(str(copy)).config, str(copy)) is None  # a finished run draws what is missing
    assert (copy / "samples" / "final_ema.npz").exists()


def test_evaluate_refuses_it(run, capfd):
    from ddpm_jax.evaluate import main

    for what in ("--what=bits", "--what=samples"):
        assert main([f"--workdir={run}", what]) == 2
        message = f"evaluate measures images, and this run has float32 arrays of shape [{LENGTH}, 1]"
        assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    "array, sizes, overrides",
    [
        (np.random.default_rng(0).integers(0, 256, (20, 4, 5, 6, 2), np.uint8), (4, 5, 6), ["data.num_channels=2"]),
        (np.random.default_rng(0).integers(0, 256, (20, 4, 5, 2), np.uint8), (4, 5), ["data.num_channels=2"]),
        (np.random.default_rng(0).normal(size=(20, 4, 5)), (4, 5), VALUES),
    ],
    ids=["volumes", "images of 2 channels", "fields"],
)
def test_volumes_and_fields(array, sizes, overrides, config_of, tmp_path):
    np.save(tmp_path / "data.npy", array)
    config = config_of(tmp_path / "data.npy", sizes, "train.num_steps=2", "sample.num_sampler_steps=3", *overrides)
    assert train(config, str(tmp_path / "run")) is None
    assert {path.name for path in (tmp_path / "run" / "samples").iterdir()} == {"final_ema.npz", "final_raw.npz"}
    drawn = np.load(tmp_path / "run" / "samples" / "final_ema.npz")["arr_0"]
    assert drawn.shape == (4, *array.shape[1:]) + (1,) * (array.ndim - 1 == len(sizes))
    assert drawn.dtype == ("float32" if overrides == VALUES else "uint8")


def broken(signals, **changes):
    """The signals with one value changed."""
    values = signals.astype(changes.get("dtype", "float64"))
    values[7, 3] = changes["value"]
    return values


@pytest.mark.parametrize(
    "make, sizes, overrides, message",
    [
        (lambda s: s, (LENGTH,), [], "must hold uint8 for codec.name='pixels'; got float64 [40, 12, 1]: for real "
         "numbers give codec.name='floats'"),
        (lambda s: s.reshape(NUM, 4, 3), (4, 3), [], "for real numbers that are not pixels: codec.name='floats'"),
        (lambda s: s, (LENGTH + 1,), VALUES, "must hold rows of shape [13, 1], data.image_size and data.num_channels; "
         "got float64 [40, 12, 1]"),
        (lambda s: s, (LENGTH,), [*VALUES, "data.num_channels=2"], "must hold rows of shape [12, 2]"),
        (lambda s: s[:0], (LENGTH,), VALUES, "has no rows"),
        (lambda s: s.astype(complex), (LENGTH,), VALUES, "must hold real numbers; got complex128"),
        (lambda s: broken(s, value=np.nan), (LENGTH,), VALUES, "has NaN, infinite or too large values, first in row 7"),
        (lambda s: broken(s, value=-np.inf), (LENGTH,), VALUES, "first in row 7"),
        (lambda s: broken(s, value=1e39), (LENGTH,), VALUES, "first in row 7"),
    ],
    ids=["pixels", "images", "length", "channels", "empty", "complex", "NaN", "infinite", "beyond float32"],
)  # fmt: skip
def test_data_that_do_not_fit(make, sizes, overrides, message, config_of, signals, tmp_path):
    np.save(tmp_path / "data.npy", make(signals))
    experiment = build_experiment(config_of(tmp_path / "data.npy", sizes, *overrides))
    with pytest.raises(UserError) as error:
        experiment.source()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["data.flip=true"], "data.flip=True mirrors images, and data.image_size=(12,) is of other data"),
        (["model.name=unet"], "data.image_size must be (height, width) for the U-Net; got (12,)"),
        (["sample.clip_x_0=true"], "codec.name='floats' has an unbounded x_0: sample.clip_x_0 must be False"),
        (["floats.scale=0"], "floats.scale must be above 0"),
        (["data.image_size=0,"], "data.image_size must be (height, width)"),
    ],
)
def test_settings_that_do_not_fit(overrides, message, config_of):
    with pytest.raises(UserError) as error:
        build_experiment(config_of("signals.npz", (LENGTH,), *VALUES, *overrides))
    assert message in str(error.value)


def test_only_an_array_has_other_sizes_and_types(tiny_config):
    for overrides, message in (
        (["data.image_size=8,"], "got (8,); only data.name='array' reads other data"),
        (VALUES, "'digits' has images of pixels, which need codec.name='pixels'; got codec.name for float32 values"),
    ):
        experiment = build_experiment(tiny_config(*overrides))
        with pytest.raises(UserError) as error:
            experiment.source()
        assert message in str(error.value)


def test_one_size_of_the_command_line(tiny_config):
    assert tiny_config("data.image_size=8").data.image_size == (8, 8)  # a square
    for text in ("8,", "(8,)", "[8,]"):
        assert tiny_config(f"data.image_size={text}").data.image_size == (8,)
