"""The exact laboratory: its distances on pairs whose distance is known, and methods that are known to be exact."""

import re
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import make_schedule

NUM = 2000


@pytest.fixture(scope="module")
def laboratory(benchmark_module):
    return benchmark_module("exact_laboratory")


@pytest.fixture(scope="module")
def distances(benchmark_module, laboratory):
    return benchmark_module("laboratory.distances")


@pytest.fixture(scope="module")
def methods(benchmark_module, laboratory):
    return benchmark_module("laboratory.methods")


@pytest.fixture(scope="module")
def process():
    return Process(make_schedule("cosine", num_steps=200), variance="fixed_small")


@pytest.mark.parametrize("num_dims", [2, 5])
def test_sliced_w2_of_a_shift(distances, num_dims):
    """The projection of a shift d is d cos: the mean square is |d|^2 / D over all directions."""
    reference = np.random.default_rng(0).standard_normal((NUM, num_dims))
    shift = np.arange(1.0, num_dims + 1)
    distance = distances.SlicedW2(reference)
    assert distance(reference) == pytest.approx(0, abs=1e-9)
    # In two dimensions the directions are even, which is exact; in more they are random.
    share = np.mean((shift @ distance._directions) ** 2)
    assert distance(reference + shift) == pytest.approx(np.sqrt(share))
    assert share == pytest.approx(shift @ shift / num_dims, rel=1e-9 if num_dims == 2 else 0.5)


def test_sliced_w2_of_fewer_samples(distances):
    """Every tenth of the sorted reference, at its quantiles."""
    reference = np.linspace(0, 1, 10_001)[:, None] * np.array([1.0, 0.0])
    samples = (np.arange(100) + 0.5)[:, None] / 100 * np.array([1.0, 0.0])
    assert distances.SlicedW2(reference)(samples) < 1e-4


def test_the_two_sample_test(distances):
    rng = np.random.default_rng(1)
    one, other = rng.standard_normal((2, 1000, 2))
    # Of independent votes one standard deviation is 0.011; neighbours vote together.
    assert distances.two_sample_accuracy(one, other) == pytest.approx(0.5, abs=0.06)
    assert distances.two_sample_accuracy(one, other + 10) == 1.0
    # Two Gaussians at a distance of 2: the best classifier is right with Phi(1) = 0.841.
    assert distances.two_sample_accuracy(one, other + np.array([2.0, 0.0])) == pytest.approx(0.841, abs=0.04)


def test_distances_of_gaussians(distances):
    mean, std = np.array([0.0, 1.0]), np.array([1.0, 2.0])
    assert distances.gaussian_w2(mean, std, mean, std) == 0 and distances.gaussian_kl(mean, std, mean, std) == 0
    assert distances.gaussian_w2(mean, std, mean + 3, std + 4) == pytest.approx(np.sqrt(2 * 9 + 2 * 16))
    # ln(2) + (1 + 1)/(2 * 4) - 1/2 for N(0, 1) from N(1, 4)
    one = np.array([0.0]), np.array([1.0]), np.array([1.0]), np.array([2.0])
    assert distances.gaussian_kl(*one) == pytest.approx(np.log(2) + 2 / 8 - 0.5)


def test_intervals(distances):
    """The 95 % interval of five values, by Student's t with 4 degrees of freedom."""
    found = distances.estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3 and found.half_width == pytest.approx(2.776 * np.sqrt(2.5 / 5))


def test_every_sampler_has_a_row_or_is_one_of_them(methods):
    from ddpm_jax.experiment.sampler_factory import SAMPLERS

    same = {"euler": "ddim", "dpmpp_1": "ddim", "euler_ancestral": "ancestral", "dpmpp_sde": "ancestral"}
    rows = {name.split(",")[0] for name in methods.SAMPLERS}
    assert {same.get(name, name) for name in SAMPLERS} == rows


@pytest.mark.parametrize("name", ["ancestral", "dpmpp_2m", "plms"])
def test_the_pushed_gaussian_is_what_is_drawn(laboratory, methods, process, name):
    law = laboratory.gaussian(3)
    table = methods.SAMPLERS[name](process, 10)
    mean, std = methods.pushed_gaussian(process, law, table)
    drawn = methods.Drawer(process, law, num=NUM, max_calls=10)(table, 0)
    assert np.all(np.abs(drawn.mean(0) - mean) < 5 * std / np.sqrt(NUM))
    np.testing.assert_allclose(drawn.std(0), std, rtol=5 / np.sqrt(2 * NUM))


def test_the_best_variance_is_exact_on_a_gaussian(laboratory, methods, distances, process):
    """p(x_s | x_t) of a Gaussian is Gaussian: with its own variance any number of calls draws the law itself."""
    law = laboratory.gaussian(2)
    kinds = laboratory.kinds(laboratory.Settings(num_steps=200))
    # The last row adds no noise: Var[x_0 | x_t] at t = 0 is missing.
    a, n = (float(level[0, 0]) for level in process.levels(jnp.zeros(1, jnp.int32), ndim=2))
    var = law.variances[0]
    true = law.means[0], np.sqrt(var - var * n**2 / (a**2 * var + n**2))

    def error(name, calls):
        row_process, table = kinds[name](calls)
        return distances.gaussian_w2(*methods.pushed_gaussian(row_process, law, table), *true)

    # float32: x_T / sqrt(alpha-bar_T) = 4000 loses four digits in the first row, which the later ones mostly forget.
    assert error("ancestral, best variance", 3) < 1e-4 and error("ancestral, best variance", 20) < 1e-4
    for name in ("ancestral, fixed_small", "ddim"):
        assert 0.01 < error(name, 20) < error(name, 3)


def test_what_is_known_is_kept_and_the_rest_is_drawn(methods, laboratory, process):
    law = laboratory.pinwheel(4)
    known = {"mask": np.array([1, 0, 1, 0]), "x_0": np.array([0.3, 9.0, -0.2, 9.0])}
    draw = methods.Drawer(process, law, num=50, max_calls=5)
    drawn = draw(methods.SAMPLERS["ddim"](process, 5), 0, edit="replacement", **known)
    np.testing.assert_array_equal(drawn[:, [0, 2]], np.tile(np.float32([0.3, -0.2]), (50, 1)))
    assert np.all(drawn[:, [1, 3]] != 9) and drawn[:, 1].std() > 0.01


def test_edits_fit_the_measurement_and_one_program_serves_all_settings(laboratory, benchmark_module):
    """DDNM and ILVR exactly, DPS nearly, whether a coordinate or the mean is known."""
    edits, law = benchmark_module("laboratory.edits"), laboratory.pinwheel(2)
    settings = laboratory.Settings(
        num_steps=200, num_samples=200, repetitions=2, measurement_calls=(20, 10), zetas=((40, 0.1), (30, 0.08))
    )
    process = settings.process()
    draw = settings.drawer(process, law, 40)
    methods = edits.measurement_methods(settings, process)
    unedited = draw(methods[-1].table, 0)
    before = draw._draw._cache_size()
    for observed in (edits.Observed.of_half(settings), edits.Observed.of_mean(settings)):
        for method in methods:
            zeta = {} if method.zeta is None else {"zeta": method.zeta}
            drawn = draw(method.table, 0, edit=method.edit, **zeta, **observed.given(method.edit, observed.images[0]))
            free, misfit = (
                np.sqrt(np.mean(((samples - observed.images[0]) @ observed.matrix.T) ** 2))
                for samples in (unedited, drawn)
            )
            assert misfit < (free / 2 if method.edit == "dps" else 1e-6)
    assert draw._draw._cache_size() == before + 3  # DDNM, ILVR and DPS


def test_guidance_of_scale_1_draws_the_class_and_one_program_serves_all(methods, laboratory, process):
    law = laboratory.pinwheel(2)
    draw = methods.Drawer(process, law, num=NUM, max_calls=50)
    table = methods.SAMPLERS["dpmpp_2m"](process, 50)
    of_class = draw(table, 0, label=1)
    mean, covariance = law.given_class(1).moments()
    # The discretisation of 50 calls is far below the error of the samples.
    assert np.all(np.abs(of_class.mean(0) - mean) < 5 * np.sqrt(np.diag(covariance) / NUM))
    draw(table, 0, label=1, scale=2.0)
    before = draw._draw._cache_size()
    for sampler, scale in (("ancestral", 3.0), ("unipc", 1.5)):
        draw(methods.SAMPLERS[sampler](process, 20), 1, label=2, scale=scale, interval=(-1.0, 3.0))
    assert draw._draw._cache_size() == before


def test_autoguidance_corrects_a_flawed_network(laboratory, methods, process, benchmark_module):
    """The error of the main network is half of the weaker one's, in variance a quarter, which extrapolation removes."""
    variants, law = benchmark_module("laboratory.guidance_variants"), laboratory.pinwheel(2)
    flawed, weak = variants.with_noise(law, 0.1), variants.with_noise(law, 0.2)
    draw = methods.Drawer(process, flawed, num=NUM, max_calls=50, weak=weak)
    table = methods.SAMPLERS["dpmpp_2m"](process, 50)
    true, alone, guided = (
        np.trace(covariance)
        for covariance in (
            law.given_class(1).moments()[1],
            np.cov(draw(table, 0, label=1).T),
            np.cov(draw(table, 0, label=1, scale=4 / 3).T),
        )
    )
    assert alone - true == pytest.approx(2 * 0.1**2, rel=0.3)  # of a variance, some 3 % of 0.2 with NUM samples
    assert abs(guided - true) < 0.6 * (alone - true)


def test_the_command_prints_eight_tables_and_writes_three_plots(laboratory, tmp_path, capsys):
    laboratory.main(["--quick", "--num_samples=120", f"--out={tmp_path}/lab"])
    out = capsys.readouterr().out
    assert len(re.findall(r"^\|( --- \|)+$", out, re.M)) == 8 and "nan" not in out and "no plots" not in out
    assert all(line[0] + line[-1] == "||" for line in out.splitlines() if "|" in line)  # titles have none
    for name in ("samplers", "guidance", "inpainting"):
        assert (tmp_path / f"lab_{name}.png").stat().st_size > 5000


def test_the_command_says_that_it_writes_no_plots(laboratory, monkeypatch, capsys):
    monkeypatch.setattr(laboratory, "gaussian_table", lambda settings: sys.exit())
    with pytest.raises(SystemExit):
        laboratory.main(["--quick"])
    assert capsys.readouterr().out.splitlines()[-1] == "no plots: give --out=PREFIX"


def test_an_edit_takes_its_own_arrays(methods, laboratory, process):
    draw = methods.Drawer(process, laboratory.pinwheel(2), num=5, max_calls=5)
    for edit, given in (("dps", {"y": 1.0}), (None, {"y": 1.0}), ("ddmn", {})):
        with pytest.raises(ValueError, match="takes"):
            draw(methods.SAMPLERS["ddim"](process, 5), 0, edit=edit, **given)


@pytest.mark.parametrize("flag", ["--dims=1", "--x_0_limit=0", "--num_samples=1", "--schedule=none", "--out="])
def test_wrong_flags_are_one_line(laboratory, flag, capsys):
    with pytest.raises(SystemExit) as end:
        laboratory.main([flag])
    assert end.value.code == 2 and flag.split("=")[0] in capsys.readouterr().err.splitlines()[-1]
