"""Classifier-free guidance from the command line and from a config, on a small run with classes."""

import numpy as np
import pytest

from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.experiment.training import train
from ddpm_jax.runtime.devices import make_mesh

CLASSES = ("model.num_classes=10", "condition.drop_rate=0.5", "train.num_steps=4")


@pytest.fixture(scope="module")
def guided_run(tiny_config, made_once):
    """A run that was also trained without classes."""

    def make(workdir):
        assert train(tiny_config(*CLASSES), str(workdir)) is None

    return made_once("guided", make)


@pytest.fixture
def draw(guided_run, sample_main, tmp_path):
    def draw(*flags):
        out = tmp_path / "drawn.npz"
        flags = ["--num_samples=12", "--sampler=ddim", "--num_sampler_steps=5", "--nocompilation_cache", *flags]
        assert sample_main([f"--workdir={guided_run}", f"--out={out}", *flags]) == 0
        with np.load(out) as file:
            return dict(file)

    return draw


def test_it_is_trained_with_and_without_the_class(guided_run):
    run = open_run(str(guided_run))
    assert run.params["label_embedding"].shape == (11, 8)
    assert run.condition["label"].null == 10


def test_guidance_changes_samples_and_scale_1_does_not(draw, capsys):
    plain = draw()
    assert "guidance scale" not in capsys.readouterr().out
    strong = draw("--guidance_scale=4")
    assert "5 network calls, guidance scale 4, seed 0" in capsys.readouterr().out
    np.testing.assert_array_equal(draw("--guidance_scale=1")["arr_0"], plain["arr_0"])
    np.testing.assert_array_equal(draw("--guidance_scale=4")["arr_0"], strong["arr_0"])
    np.testing.assert_array_equal(strong["arr_1"], np.arange(12) % 10)
    assert np.any(strong["arr_0"] != plain["arr_0"])


def test_a_sample_does_not_depend_on_the_batch(draw):
    whole, parts = (draw("--guidance_scale=4", f"--batch_size={size}")["arr_0"] for size in (16, 8))
    assert np.abs(whole.astype(int) - parts).max() <= 1


def test_an_interval(draw):
    plain, everywhere, part = (
        draw(*flags)["arr_0"].astype(int)
        for flags in (
            [],
            ["--guidance_scale=4", "--guidance_interval=-500,1000"],
            ["--guidance_scale=4", "--guidance_interval=-2,2"],
        )
    )
    assert np.abs(everywhere - draw("--guidance_scale=4")["arr_0"]).max() <= 1
    assert np.any(part != plain) and np.any(part != everywhere)


def test_a_class_to_guide_away_from(draw):
    """Away from its own class, as every second sample here is, is no guidance."""
    half = draw("--guidance_scale=4", "--negative_classes=3,5", "--classes=3")["arr_0"].astype(int)
    plain = draw("--classes=3")["arr_0"]
    assert np.abs(half[::2] - plain[::2]).max() <= 1 and np.any(half[1::2] != plain[1::2])
    other = draw("--guidance_scale=4", "--negative_classes=5,6", "--classes=3")["arr_0"]
    assert np.any(other != draw("--guidance_scale=4", "--classes=3")["arr_0"])


def test_rescaling_is_seen(draw):
    assert np.any(draw("--guidance_scale=8", "--guidance_rescale=0.7")["arr_0"] != draw("--guidance_scale=8")["arr_0"])


def test_a_config_may_have_it(guided_run, draw):
    """As `sample` without a flag draws it."""
    run = open_run(str(guided_run)).with_sampler(
        {"guidance_scale": 4.0, "sampler": "ddim", "num_sampler_steps": 5}, batch_size=16, num_devices=1
    )
    images = run.generator(make_mesh(1)).generate(run.params, seed=0, num_samples=12)
    np.testing.assert_array_equal(images, draw("--guidance_scale=4", "--batch_size=16")["arr_0"])
    assert run.sampler_settings["guidance_scale"] == 4.0 and run.sampler_settings["guidance_interval"] == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--guidance_scale=-1"], "--guidance_scale must be in 0..1e+06; got -1.0: "
         "1 means no guidance, try 1.5 to 3"),
        (["--guidance_scale=nan"], "--guidance_scale must be in 0..1e+06; got nan"),
        (["--guidance_scale=2", "--guidance_interval=3,1"], "--guidance_interval must be LOW,HIGH of the log SNR, "
         "LOW below HIGH; got 3,1"),
        (["--guidance_scale=2", "--guidance_interval=500,1000"],
         "--guidance_interval=500,1000 contains none of the "),
        (["--guidance_scale=2", "--guidance_interval=3"],
         "--guidance_interval must be LOW,HIGH of the log SNR, or empty; got (3,)"),
        (["--guidance_scale=2", "--guidance_interval=a,b"],
         "--guidance_interval must be LOW,HIGH of the log SNR, or empty; got ('a', "),
        (["--classes=3-7"], "--classes must be in 0..9, the known classes; got '3-7': give a list such as 3,7"),
        (["--guidance_scale=2", "--guidance_rescale=2"], "--guidance_rescale must be in [0, 1], 0 for none; got"),
        (["--guidance_scale=2", "--negative_classes=10"], "--negative_classes must be in 0..9"),
    ],
)  # fmt: skip
def test_what_is_refused(guided_run, sample_main, tmp_path, capfd, flags, message):
    assert sample_main([f"--workdir={guided_run}", f"--out={tmp_path}/x", "--nocompilation_cache", *flags]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"error: {message}") and len(err.splitlines()) == 1


def test_a_run_that_was_not_trained_for_it(straight_run, sample_main, tmp_path, capfd):
    flags = [f"--workdir={straight_run}", f"--out={tmp_path}/x", "--nocompilation_cache", "--guidance_scale=3"]
    assert sample_main(flags) == 2
    assert capfd.readouterr().err == (
        "error: --guidance_scale=3.0 needs a network that was also trained without the condition; the run has "
        "condition.drop_rate=0.0 and model.num_classes=0: take 1, or train with condition.drop_rate=0.1 and "
        "model.num_classes=N\n"
    )


def test_the_condition_is_given_as_an_array(guided_run):
    run, labels = open_run(str(guided_run)), np.array([3, 7, 3, 1])
    settings = {"sampler": "ddim", "num_sampler_steps": 5, "guidance_scale": 4, "progress": False}
    each = run.sample(4, condition={"label": labels}, **settings)
    np.testing.assert_array_equal(each[:1], run.sample(4, condition={"label": 3}, **settings)[:1])
    np.testing.assert_array_equal(run.sample(4, classes=(3, 7, 3, 1), **settings), each)
    assert np.any(run.sample(4, condition={"label": 10}, **settings) != each)  # of no class
    for condition, message in (
        ({"label": [1, 2]}, r"the condition 'label' must be \[4\], a row for each sample, or \[\], one .* got \[2\]"),
        ({"label": 11}, "the condition 'label' must be in 0..10; got 11..11"),
        ({"label": 2**32 + 3}, "the condition 'label' must fit int32; got 4294967299..4294967299"),
        ({"label": 0.5}, "the condition 'label' must be int32; got float64"),
        ({"text": [0] * 4}, r"the network takes the entries \['label'\]; got \['text'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            run.sample(4, condition=condition, **settings)
