"""The digits benchmark: sets whose quality is known by construction get the numbers they must."""

import json
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def quality(benchmark_module):
    return benchmark_module("digits_quality")


@pytest.fixture(scope="module")
def lucidrains(benchmark_module):
    return benchmark_module("lucidrains")


@pytest.fixture(scope="module")
def judge(quality):
    return quality.Judge()


@pytest.fixture(scope="module")
def real(quality):
    return quality.load_real()[0]


def test_the_real_set_is_the_bytes_of_the_scan(quality, real):
    assert real.shape == (1797, 8, 8) and real.dtype == np.uint8
    assert set(np.unique(real)) == {int(v * 255 / 16 + 0.5) for v in range(17)}  # no v * 255 / 16 ends in .5
    held_out = np.flatnonzero(~quality.is_training(1797))
    assert len(held_out) == 180 and (held_out % 10 == 0).all()


def test_the_real_set_itself(judge, real):
    result = judge(real)
    assert result["frechet_all"] == pytest.approx(0, abs=1e-8)
    assert result["class_entropy_nats"] == pytest.approx(np.log(10), abs=0.01)
    assert sum(result["class_counts"]) == 1797
    assert result["nearest_min"] == 0
    assert result["near_copies"] == pytest.approx((1617 + 0.05 * 180) / 1797, abs=1e-3)


def test_a_constant_shift_adds_its_square_in_every_pixel(judge, real):
    """Of 64 pixels on the scale 0..1, moved by 51 / 255 = 0.2 without clipping: 64 * 0.04."""
    grey = (real // 2).astype(np.uint8)
    shifted = judge(grey + np.uint8(51))["frechet_all"]
    moved_mean = (grey + 51.0 - real).mean(axis=0) / 255
    kept_mean = (grey - 1.0 * real).mean(axis=0) / 255
    want = judge(grey)["frechet_all"] + (moved_mean**2).sum() - (kept_mean**2).sum()
    assert shifted == pytest.approx(want, rel=1e-9)


def test_uniform_noise_is_far_away_and_illegible(judge, real):
    noise = np.random.default_rng(0).integers(0, 256, real.shape, dtype=np.uint8)
    result = judge(noise)
    assert result["frechet_all"] > 100 * judge.reference["frechet_floor"]
    assert result["confident"] == 0
    assert result["nearest_min"] > judge.reference["nearest_mean"]


def test_copies_of_training_images_are_found(judge, quality, real):
    result = judge(real[quality.is_training(1797)])
    assert result["nearest_mean"] == 0 and result["near_copies"] == 1


def test_one_class_has_no_entropy(judge, quality, real):
    fours = real[quality.load_real()[1] == 4]
    result = judge(fours)
    assert result["class_counts"][4] >= len(fours) - 2
    assert result["class_entropy_nats"] < 0.1
    assert result["frechet_halves"] is None


def test_the_references_are_ordered_and_the_classifier_reads(judge):
    reference = judge.reference
    assert 0 < reference["frechet_bootstrap"]["mean"] < reference["frechet_floor"]
    assert reference["frechet_halves"]["mean"] == 2 * reference["frechet_floor"]
    assert reference["classifier_accuracy"] > 0.98 and reference["classifier_accuracy_held_out"] > 0.98
    assert reference["confident"] > 0.9
    assert reference["near_copies"] == pytest.approx(0.05, abs=0.001)


def test_the_bias_of_the_distance_falls_like_one_over_n(judge, quality):
    """What the extrapolated floor rests on: quarters are at twice the distance of halves."""
    rng, distances = np.random.default_rng(0), []
    for _ in range(20):
        order = rng.permutation(1797)
        distances.append(quality.frechet_from_features(judge.real[order[:449]], judge.real[order[449:898]]))
    assert np.mean(distances) == pytest.approx(2 * judge.reference["frechet_halves"]["mean"], rel=0.08)


def test_halves_of_samples_are_compared_with_halves(judge, quality):
    """The real set in the samples' place: each split's sets overlap, so below the disjoint halves."""
    result = quality.frechet_halves(judge.real, judge.real)
    assert result["mean"] == pytest.approx(judge.reference["frechet_halves"]["mean"] / 2, rel=0.15)


def test_nearest_distances_match_a_slow_loop(quality):
    rng = np.random.default_rng(0)
    a, b = rng.random((50, 64)), rng.random((70, 64))
    want = [min(np.sqrt(((x - y) ** 2).sum()) for y in b) for x in a]
    np.testing.assert_allclose(quality.nearest_distances(a, b), want, rtol=1e-12)
    many = quality.nearest_distances(np.tile(a, (90, 1)), b)  # in blocks
    np.testing.assert_allclose(many, np.tile(want, 90), rtol=1e-12)


def test_the_command_prints_a_table_and_writes_json_as_another_judge_does(quality, judge, real, tmp_path, capsys):
    """The command trains a classifier of its own: all numbers are the same."""
    path, out = tmp_path / "x.npz", tmp_path / "q.json"
    np.savez(path, arr_0=real[:1000, ..., None])
    assert quality.main([str(path), f"--json={out}"]) == 0
    printed, numbers = capsys.readouterr().out, json.loads(out.read_text())
    assert numbers["pixel_scale"] == "0..1" and numbers["samples"][str(path)]["num_images"] == 1000
    again = json.loads(json.dumps({"real": judge.reference, "samples": judge(real[:1000])}))
    assert numbers["real"] == again["real"] and again["samples"].items() <= numbers["samples"][str(path)].items()
    assert f"{numbers['samples'][str(path)]['frechet_all']:.4f}" in printed
    assert f"{numbers['real']['frechet_halves']['mean']:.4f}" in printed


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (None, "no such file"),
        (lambda p: p.write_text("hello"), "not a readable .npz file"),
        (lambda p: np.savez(p, images=np.zeros((2, 8, 8), np.uint8)), "must hold an array 'arr_0'"),
        (lambda p: np.savez(p, np.zeros((2, 8, 8))), "got float64 [2, 8, 8]"),
        (lambda p: np.savez(p, np.zeros((2, 28, 28, 1), np.uint8)), "got uint8 [2, 28, 28, 1]"),
        (lambda p: np.savez(p, np.zeros((1, 8, 8), np.uint8)), "N at least 2; got uint8 [1, 8, 8]"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(quality, tmp_path, capsys, save, message):
    path = tmp_path / "x.npz"
    if save:
        save(path)
    assert quality.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(path) in error
    assert message in error


def test_the_peer_learning_rate_rises_then_falls_to_zero(lucidrains):
    rates = [lucidrains.learning_rate_at(p, peak=1e-3) for p in (0.0, 0.01, 0.02, 0.51, 1.0, 1.1)]
    np.testing.assert_allclose(rates, [0, 5e-4, 1e-3, 5e-4, 0, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--minutes=0"], "--minutes must be above 0; got 0.0"),
        (["--sampling-steps=1001"], "--sampling-steps must be in 1..1000; got 1001"),
        (["--num-samples=0"], "--num-samples must be at least 1; got 0"),
        (["--data-path=x"], "--data-path is for --data=fashion_mnist"),
        (["--data=fashion_mnist", "--data-path=/none"], "--data-path"),
        (["--out=x.png"], "--out must name an .npz file"),
    ],
)
def test_bad_peer_flags_are_refused(lucidrains, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as exit_info:
        lucidrains.main([f"--out={tmp_path}/x.npz", *flags])
    assert exit_info.value.code == 2 and message in capsys.readouterr().err
