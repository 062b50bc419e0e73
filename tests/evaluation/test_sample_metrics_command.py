"""`evaluate` on samples: a run's and anyone's, the numbers, their names, the caches, and stops on the way."""

import json

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import evaluate
from ddpm_jax.data import make_source
from ddpm_jax.evaluation import feature_classifier, feature_extractors
from ddpm_jax.evaluation.frechet_distance import frechet_from_features
from ddpm_jax.evaluation.kid import kernel_distance
from ddpm_jax.evaluation.metrics_from_features import numbers_table, warning_of
from ddpm_jax.evaluation.precision_recall import precision_recall
from ddpm_jax.evaluation.report import Report
from ddpm_jax.evaluation.texture import texture_numbers, texture_of
from ddpm_jax.experiment.generator import Generator
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.runtime.devices import make_mesh

FLAGS = ["--what=samples", "--num_samples=20", "--batch_size=8", "--sampler=ddim", "--num_sampler_steps=4"]


@pytest.fixture(scope="module")
def digits():
    return make_source(name="digits", split="train", image_size=(8, 8), num_channels=1)


def measure(workdir, folder, cache, *flags):
    return evaluate.main([f"--workdir={workdir}", f"--out={folder}", f"--cache={cache}", *FLAGS, *flags])


def entries(folder):
    return json.loads((folder / "evaluation.json").read_text())["samples"]


def pixels(images):
    return images.reshape(len(images), -1) / np.float32(255)


def save(path, images):
    np.savez(path, arr_0=images)
    return str(path)


def score(samples, reference, *flags):
    return evaluate.main([f"--samples={samples}", f"--reference={reference}", *flags])


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_a_run_is_measured_on_the_samples_that_sample_draws(straight_run, tmp_path, cache, digits, capsys):
    folder = tmp_path / "deep" / "folder"
    assert measure(straight_run, folder, cache, "--extractor=pixels", "--num_reference=30") == 0
    out, err = capsys.readouterr()
    (entry,) = entries(folder)
    # The pictures lie in a file that others can read, and are those of the generator.
    (pictures,) = folder.glob("samples_step_*/pictures.npy")
    run = open_run(str(straight_run))
    run = run.with_sampler({"sampler": "ddim", "num_sampler_steps": 4}, batch_size=8, num_devices=8)
    drawn = run.generator(make_mesh()).generate(run.params, seed=0, num_samples=20)
    np.testing.assert_array_equal(np.load(pictures), drawn)
    # The numbers are the functions' own.
    a, b = pixels(drawn), pixels(digits.load(np.arange(30)))
    numbers = entry["numbers"]
    assert numbers["frechet"] == pytest.approx(frechet_from_features(a, b), rel=1e-6)
    assert numbers["kernel"]["whole"] == pytest.approx(kernel_distance(a, b), rel=1e-4, abs=1e-6)
    assert (numbers["precision"], numbers["recall"]) == precision_recall(a, b)
    for name, value in texture_numbers(texture_of(drawn), texture_of(digits.load(np.arange(30)))).items():
        assert numbers[name] == pytest.approx(value, rel=1e-6)
    # All that they depend on is said, in the file and beside the printed number.
    protocol = entry["protocol"]
    assert protocol["samples"]["sampler"] == "ddim" and protocol["samples"]["num_calls"] == 4
    assert protocol["samples"]["weights"] == "ema" and protocol["samples"]["step"] == run.step
    assert protocol["reference"]["name"] == "digits:train[:95%]" or protocol["reference"]["name"] == "digits:train"
    table = (folder / "evaluation.md").read_text()
    note = next(line for line in table.splitlines() if line.startswith("Note: "))
    assert note.removeprefix("Note: ").removesuffix(".") in err and note not in out  # it is printed once
    assert table.split("\n\n")[-1].strip() in out
    assert f"| Frechet distance (pixels) | {numbers['frechet']:.5g} |" in table
    for part in ("20 of a digits run (8x8x1)", "ddim with 4 network calls, seed 0", "30 of digits", "no FID"):
        assert part in table
    assert "warning: Frechet distance (pixels) of 20 samples and 30 real images" in err
    assert "| FID" not in table
    assert f"| speckled images | {numbers['speckled']['share']:.1%} | have more grain than 99 % of the real" in table


def test_samples_of_a_task_name_what_they_are_shown(inpainting_run, tmp_path, cache):
    folder = tmp_path / "out"
    assert measure(inpainting_run, folder, cache, "--extractor=pixels", "--num_reference=30") == 0
    (entry,) = entries(folder)
    run = open_run(str(inpainting_run))
    assert entry["protocol"]["samples"]["shown_images"] == len(run.source(run.held_out_split))
    assert f"seed 0, the network shown {run.num_shown} images in turn" in (folder / "evaluation.md").read_text()
    (pictures,) = folder.glob("samples_step_*/pictures.npy")
    shown = run.condition_of(np.arange(20))
    kept, true = np.load(pictures), run.source(run.held_out_split).load(np.arange(20))
    np.testing.assert_array_equal(np.where(shown["known"] == 1, kept - true, 0), 0)


def test_nothing_is_drawn_or_extracted_twice(straight_run, tmp_path, cache, monkeypatch):
    flags = ["--extractor=pixels", "--num_reference=30"]
    assert measure(straight_run, tmp_path / "out", cache, *flags) == 0
    first = entries(tmp_path / "out")
    seen = []
    real = feature_extractors.Extractor.on_devices
    monkeypatch.setattr(Generator, "draw", lambda *a, **k: pytest.fail("drawn twice"))
    monkeypatch.setattr(feature_extractors.Extractor, "on_devices", lambda *a: seen.append(1) or real(*a))
    assert measure(straight_run, tmp_path / "out", cache, *flags) == 0
    assert entries(tmp_path / "out") == first and not seen
    # Other real pictures: their features are taken, the samples stay, and both results stand in the report.
    assert measure(straight_run, tmp_path / "out", cache, "--extractor=pixels", "--reference=digits:test") == 0
    assert len(seen) == 1 and [e["protocol"]["reference"]["num_images"] for e in entries(tmp_path / "out")] == [30, 180]
    # The same from another place with the same cache: the features of the real pictures are there.
    monkeypatch.undo()
    monkeypatch.setattr(feature_extractors.Extractor, "on_devices", lambda *a: seen.append(1) or real(*a))
    assert measure(straight_run, tmp_path / "elsewhere", cache, *flags) == 0
    assert len(seen) == 2  # of the samples alone
    assert entries(tmp_path / "elsewhere") == first


class Stop(BaseException):
    pass


def test_the_same_command_goes_on_to_the_same_numbers(straight_run, tmp_path, cache, monkeypatch, capsys):
    flags = ["--extractor=pixels", "--num_reference=30"]
    assert measure(straight_run, tmp_path / "straight", cache, *flags) == 0
    real, firsts = Generator.draw, []

    def stopped(self, params, *, first, **others):
        firsts.append(first)
        if len(firsts) == 2:
            raise Stop
        return real(self, params, first=first, **others)

    monkeypatch.setattr(Generator, "draw", stopped)
    folder = tmp_path / "stopped"
    with pytest.raises(Stop):
        measure(straight_run, folder, cache, *flags)
    assert not (folder / "evaluation.json").exists() and list(folder.glob("samples_step_*/pictures.partial.npy"))
    capsys.readouterr()
    assert measure(straight_run, folder, cache, *flags) == 0
    assert firsts == [0, 8, 8, 16] and "resuming from 4 of 12" in capsys.readouterr().err
    assert entries(folder) == entries(tmp_path / "straight")  # to the last bit


def test_anyones_files_and_folders(tmp_path, cache, digits, capsys):
    images = digits.load(np.arange(40))
    mine, real = save(tmp_path / "mine.npz", images[:20]), save(tmp_path / "real.npz", images)
    (tmp_path / "pictures").mkdir()
    for index, image in enumerate(images[:20]):
        Image.fromarray(image[..., 0]).save(tmp_path / "pictures" / f"{index:03d}.png")
    flags = ["--extractor=pixels", f"--cache={cache}"]
    # The same pictures by three ways: an .npz, a folder, a data set; and the result goes where it is sent.
    tables = []
    for samples, reference in ((mine, real), (str(tmp_path / "pictures"), real), (mine, "digits:train")):
        more = ["--num_reference=40"] if reference == "digits:train" else []
        assert score(samples, reference, *flags, *more, f"--out={tmp_path / 'out'}") == 0
        tables.append(capsys.readouterr().out)
        assert "20 of " in tables[-1] and "40 of " in tables[-1]
    assert len(entries(tmp_path / "out")) == 3
    one, two, three = (entry["numbers"] for entry in entries(tmp_path / "out"))
    assert one == two == three
    assert score("digits:test", "digits:train", *flags) == 0  # real against real, of their own size
    assert "180 of digits:test (8x8x1)" in capsys.readouterr().out
    # A set against itself.
    assert score(real, real, *flags) == 0
    out = capsys.readouterr().out
    assert "| precision (pixels) | 1 |" in out and "| recall (pixels) | 1 |" in out and "wrote" not in out
    # The first N of a file, and another size.
    assert score(real, mine, *flags, "--num_samples=20", "--image_size=4,4") == 0
    assert "20 of" in capsys.readouterr().out


def test_a_changed_file_is_measured_anew(tmp_path, cache, digits, capsys):
    images = digits.load(np.arange(60))
    real, flags = save(tmp_path / "real.npz", images[:30]), ["--extractor=pixels", f"--cache={cache}"]
    mine = save(tmp_path / "mine.npz", images[30:])
    assert score(mine, real, *flags) == 0
    first = capsys.readouterr().out
    changed = images[30:].copy()
    changed[7] = 0  # a picture in the middle
    save(tmp_path / "mine.npz", changed)
    assert score(mine, real, *flags) == 0
    assert capsys.readouterr().out != first


def test_the_classifier_learns_the_data_and_is_never_called_fid(tmp_path, cache, digits, capsys, monkeypatch):
    steps = []
    real = feature_classifier.train_classifier
    shorter = lambda *a, **k: steps.append(1) or real(*a, num_steps=120, **k)  # noqa: E731
    monkeypatch.setattr(feature_classifier, "train_classifier", shorter)
    mine = save(tmp_path / "mine.npz", digits.load(np.arange(100)))
    noise = save(tmp_path / "noise.npz", np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1)).astype(np.uint8))
    flags = [f"--cache={cache}", "--num_reference=200", f"--out={tmp_path / 'out'}"]
    for samples in (mine, noise):
        assert score(samples, "digits:train", *flags) == 0
    assert len(steps) == 1  # trained once, then read
    out = capsys.readouterr().out
    assert "Frechet distance (classifier features)" in out and "class score (classifier)" in out
    assert "| FID" not in out and "| KID" not in out and "| Inception" not in out and "no FID" in out
    good, bad = entries(tmp_path / "out")
    facts = good["protocol"]["extractor"]
    assert facts == bad["protocol"]["extractor"]
    assert facts["held_out_accuracy"] > 0.8 and facts["trained_on"] == {"name": "digits:train", "num_images": 1617}
    # Real digits are near, noise is far: by every number.
    assert good["numbers"]["frechet"] < bad["numbers"]["frechet"] / 10
    assert good["numbers"]["kernel"]["whole"] < bad["numbers"]["kernel"]["whole"]
    assert good["numbers"]["precision"] > 0.9 > 0.2 > bad["numbers"]["precision"]
    assert 5 < good["numbers"]["score"]["mean"] <= 10
    # Its features have mean square 1 over held-out pictures.
    trained = feature_classifier.load_classifier(str(next(cache.glob("classifier_*.npz"))))
    extractor = feature_extractors.classifier_extractor(trained, {})
    found = extractor.on_devices(make_mesh(1), 162)(digits.load(np.arange(0, 1617, 10)), (8, 8, 1))
    assert (found["main"].astype(np.float64) ** 2).mean() == pytest.approx(1, rel=1e-4)
    read = found["logits"].argmax(axis=1) == digits.labels[::10]
    assert read.mean() == pytest.approx(facts["held_out_accuracy"])


def entry_of(name, step=1):
    numbers = {"frechet": 12.0, "kernel": {"mean": 0.25, "standard_deviation": 0.5, "num_subsets": 100,
               "subset_size": 1000, "whole": 0.125}, "spatial_frechet": 3.5, "precision": 0.5, "recall": 0.25,
               "score": {"mean": 9.0, "standard_deviation": 0.1, "num_splits": 10, "of_reference": 11.0}}  # fmt: skip
    extractor = {"name": name, "resize": "clean", "weights_fingerprint": "abc", "held_out_accuracy": 0.99,
                 "trained_on": {"name": "d", "num_images": 3}}  # fmt: skip
    samples = {"name": "a digits run", "num_images": 20_000, "image_shape": [8, 8, 1], "step": step, "weights": "ema",
               "sampler": "ddim", "num_calls": 50, "seed": 3}  # fmt: skip
    reference = {"name": "digits:train", "num_images": 50_000, "image_shape": [8, 8, 1]}
    protocol = {"extractor": extractor, "samples": samples, "reference": reference}
    return {"protocol": protocol, "numbers": numbers, "warning": None}


def test_inceptions_numbers_have_the_papers_names():
    table = numbers_table(entry_of("inception"))
    for row in ("| FID | 12 |", "| KID | 0.25 | ± 0.5 over 100 subsets of 1000; 0.125 on all pairs |",
                "| sFID | 3.5 |", "| precision | 0.5 |",
                "| Inception Score | 9 | ± 0.1 over 10 splits; the real images: 11 |"):  # fmt: skip
        assert row in table
    assert "Inception v3 (2015-12-05), weights abc, resize clean" in table and "no FID" not in table
    few = entry_of("inception")
    few["numbers"]["kernel"]["subset_size"] = 500
    few["protocol"]["samples"]["num_images"] = few["protocol"]["reference"]["num_images"] = 500
    assert "| KID | 0.25 | on all pairs, because 500 images are too few for subsets |" in numbers_table(few)
    for other in ("classifier", "pixels"):
        assert "FID |" not in numbers_table(entry_of(other)) and "KID |" not in numbers_table(entry_of(other))


def test_few_pictures_are_warned_of_on_either_side():
    assert warning_of("inception", 10_000, 10_000) is None
    assert "FID of 9999 samples and 50000 real" in warning_of("inception", 9999, 50_000)
    assert "FID of 50000 samples and 9999 real" in warning_of("inception", 50_000, 9999)


def test_the_report_keeps_one_entry_a_protocol_whatever_the_facts(tmp_path):
    report = Report(str(tmp_path), None)
    for entry in (entry_of("inception"), entry_of("pixels"), entry_of("inception", step=2), entry_of("pixels")):
        report.add_samples(entry)
    assert len(entries(tmp_path)) == 3
    facts = {"num_images": 1, "data": "d", "split": "test", "step": 2, "weights": "ema", "schedule": "linear",
             "num_steps": 9, "prediction": "eps", "variance": "fixed_small", "seed": 0}  # fmt: skip
    total = {"mean": 3.0, "standard_error": None}
    Report(str(tmp_path), facts).add(ode_bits_per_dim={"total": total, "num_probes": 1, "num_ode_steps": 5})
    assert len(entries(tmp_path)) == 3
    # Metrics of samples leave the bits alone.
    Report(str(tmp_path), None).add_samples(entry_of("classifier"))
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["ode_bits_per_dim"]["total"] == total and found["facts"] == facts and len(found["samples"]) == 4
    text = (tmp_path / "evaluation.md").read_text()
    assert "probability flow" in text and text.count("| FID |") == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--what=samples", "--extractor=vgg"], "--extractor must be one of ['classifier', 'inception', 'pixels']"),
        (["--what=samples", "--extractor=inception"], "--extractor=inception needs --inception_weights=FILE"),
        (["--what=samples", "--inception_weights=/none.pth"], "there is no '/none.pth'"),
        (["--what=samples", "--extractor=pixels", "--inception_weights=x"], "needs --extractor=inception"),
        (["--what=samples", "--resize=clean"], "--resize needs --extractor=inception; got --extractor=classifier"),
        (["--what=samples", "--resize=lanczos"], "--resize must be one of ['clean', 'tf_bilinear']"),
        (["--what=samples", "--num_samples=-1"], "--num_samples must be at least 0; got -1"),
        (["--what=samples", "--num_samples=9", "--extractor=pixels", "--num_reference=3"],
         "must be at least 4 on each side; got 9 samples and 3 real images"),
        (["--what=samples", "--num_samples=9"], "must be at least 10 on each side"),
        (["--what=samples", "--num_reference=5000"], "the training data has 1"),
        (["--what=samples", "--reference=nothing.npz"], "there is no 'nothing.npz'"),
        (["--what=samples", "--reference=digits:holdout"], "the split of --reference must be"),
        (["--what=samples", "--reference=digit:train"], "the name in --reference must be one of digits, mnist"),
        (["--what=samples", "--image_size=16,16"], "--image_size must be that of the run's images, 8,8"),
        (["--what=samples", "--image_size=16"], "--image_size must be that of the run's images, 8,8"),
        (["--what=samples", "--image_size=16,"], "--image_size must be H,W in pixels, such as 64,64, or one number "),
        (["--what=samples", "--sampler=dimm"], "--sampler must be one of"),
        (["--what=samples", "--cache=/dev/null/x"], "--cache: the folder /dev/null/x cannot be written"),
        (["--what=samples", "--out=/dev/null/x"], "--out: the folder /dev/null/x cannot be written"),
        (["--extractor=pixels"], "--extractor is only for sample metrics: give --what=samples too"),
        (["--sampler=ddim"], "--sampler is only for sample metrics: give --what=samples too"),
        (["--samples=x.npz"], "give one of them"),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_run_is_one_line(straight_run, tmp_path, capsys, flags, message):
    if not any(flag.startswith("--cache") for flag in flags):
        flags = [*flags, *([f"--cache={tmp_path}"] if "--what=samples" in flags else [])]
    assert evaluate.main([f"--workdir={straight_run}", *flags]) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


def test_what_does_not_fit_files_is_one_line(tmp_path, cache, digits, capsys):
    grey, colour = digits.load(np.arange(12)), digits.load(np.arange(12)).repeat(3, axis=-1)
    mine, other = save(tmp_path / "mine.npz", grey), save(tmp_path / "other.npz", colour)
    large = save(tmp_path / "large.npz", np.zeros((12, 65, 64, 1), np.uint8))
    floats = save(tmp_path / "floats.npz", np.zeros((12, 8, 8, 1)))
    (tmp_path / "empty").mkdir()
    for flags, message in (
        ([f"--samples={mine}"], "--samples needs real images to compare with: give --reference"),
        ([f"--samples={tmp_path / 'none.npz'}", f"--reference={mine}"], "--samples must be an .npz or .npy file"),
        ([f"--samples={mine}", f"--reference={mine}"], "has none: take --extractor=pixels"),
        ([f"--samples={mine}", f"--reference={other}", "--extractor=pixels"], "compares images of equal shape"),
        ([f"--samples={large}", f"--reference={large}", "--extractor=pixels"], "at most 4096 values per image"),
        ([f"--samples={floats}", f"--reference={mine}", "--extractor=pixels"], "must hold uint8 images"),
        ([f"--samples={tmp_path / 'empty'}", f"--reference={mine}", "--extractor=pixels"], "holds no image file"),
        ([f"--samples={mine}", f"--reference={mine}", "--sampler=ddim"], "--sampler is only for a run"),
        ([f"--samples={mine}", f"--reference={mine}", "--what=bits"], "--what=bits is only for a run"),
        ([f"--samples={mine}", f"--reference={mine}", "--ode"], "--ode is only for a run"),
        ([f"--samples={mine}", f"--reference={mine}", "--max_images=3"], "--max_images is only for a run"),
        (["--samples=celeb_a:train", f"--reference={mine}"], "needs the size of the images: give --image_size=H,W"),
        ([], "what to measure? give --workdir=DIR, the folder of a training run, or --samples=FILE"),
    ):
        assert evaluate.main([*flags, *([f"--cache={cache}"] if flags else [])]) == 2
        err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning:")]
        assert len(err) == 1 and err[0].startswith("error: ") and message in err[0], (err, message)
