"""Schedules against their formulas, and every derived table against 50-digit arithmetic."""

import dataclasses
from decimal import Decimal, localcontext

import jax
import numpy as np
import pytest

from ddpm_jax.diffusion.schedules import SCHEDULES, make_schedule, schedule_from_betas
from ddpm_jax.runtime.errors import UserError

NAMES = sorted(SCHEDULES)
SETTINGS = [(name, T) for name in NAMES for T in (50, 1000)] + [("cosine", 4000), ("linear", 4000)]
TABLES = [f.name for f in dataclasses.fields(make_schedule(num_steps=50)) if f.name != "betas_float64"]

# One rounding to float32 is at most 2^-24 relative; the float64 work before it adds less than a tenth.
ONE_ROUNDING = 1.1 * 2.0**-24


def betas_of(schedule):
    return np.asarray(schedule.betas_float64)


def tables_in_decimal(betas):
    """The formulas of Ho et al. 2020, section 2, in 50 digits: a dict of lists of T Decimals."""
    with localcontext() as context:
        context.prec = 50
        betas = [Decimal(float(beta)) for beta in betas]
        bars = [Decimal(1)]
        for beta in betas:
            bars.append(bars[-1] * (1 - beta))
        infinity = Decimal("inf")
        out = {name: [] for name in TABLES}
        for t, beta in enumerate(betas):
            bar, prev, alpha = bars[t + 1], bars[t], 1 - beta
            variance = beta * (1 - prev) / (1 - bar)
            row = dict(
                betas=beta,
                alphas=alpha,
                alphas_bar=bar,
                alphas_bar_prev=prev,
                sqrt_alphas_bar=bar.sqrt(),
                one_minus_alphas_bar=1 - bar,
                sqrt_one_minus_alphas_bar=(1 - bar).sqrt(),
                log_one_minus_alphas_bar=(1 - bar).ln(),
                sqrt_recip_alphas_bar=(1 / bar).sqrt() if bar else infinity,
                sqrt_recipm1_alphas_bar=(1 / bar - 1).sqrt() if bar else infinity,
                posterior_mean_coef_x_0=beta * prev.sqrt() / (1 - bar),
                posterior_mean_coef_x_t=(1 - prev) * alpha.sqrt() / (1 - bar),
                posterior_var=variance,
                log_var_fixed_small=variance.ln() if t else None,
                log_var_fixed_large=beta.ln() if t else None,
                log_betas=beta.ln(),
                half_log_snr=(bar / (1 - bar)).ln() / 2 if bar else -infinity,
            )
            for key, value in row.items():
                out[key].append(value)
        if len(betas) > 1:  # the repair: at t=0 both take beta-tilde of t=1
            out["log_var_fixed_small"][0] = out["log_var_fixed_large"][0] = out["posterior_var"][1].ln()
        return {key: np.array([float(v) for v in values]) for key, values in out.items()}


@pytest.mark.parametrize("name,num_steps", SETTINGS)
def test_every_table_is_the_exact_value_rounded_once(name, num_steps):
    schedule = make_schedule(name, num_steps=num_steps)
    expected = tables_in_decimal(betas_of(schedule))
    assert sorted(expected) == sorted(TABLES)
    for key, table in expected.items():
        ours = np.asarray(getattr(schedule, key))
        assert ours.dtype == np.float32 and ours.shape == (num_steps,)
        # atol: a logarithm next to 0 (1 - alpha-bar next to 1) keeps float64's 1e-16 in absolute terms.
        np.testing.assert_allclose(ours, table, rtol=ONE_ROUNDING, atol=1e-15, err_msg=key)


def test_the_tables_hold_for_betas_far_below_float64s_epsilon():
    schedule = schedule_from_betas(np.array([1e-20, 1e-18, 1e-10]))
    for key, table in tables_in_decimal([1e-20, 1e-18, 1e-10]).items():
        np.testing.assert_allclose(getattr(schedule, key), table, rtol=ONE_ROUNDING, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_steps", [50, 1000, 4000])
def test_betas_are_variances_and_alphas_bar_fall(name, num_steps):
    schedule = make_schedule(name, num_steps=num_steps)
    betas = betas_of(schedule)
    assert schedule.num_steps == len(betas) == num_steps
    assert np.all(betas > 0) and np.all(betas[:-1] < 1) and betas[-1] <= 1
    assert np.all(np.diff(schedule.host_alphas_bar) < 0)
    assert np.all(np.diff(betas) >= 0)
    np.testing.assert_array_equal(schedule.alphas_bar_prev[1:], schedule.alphas_bar[:-1])
    assert schedule.alphas_bar_prev[0] == 1


def test_linear_is_the_papers_at_1000_steps():
    np.testing.assert_array_equal(betas_of(make_schedule("linear")), np.linspace(1e-4, 0.02, 1000))


def test_linear_scales_so_that_the_last_alpha_bar_hardly_depends_on_T():
    last = {T: make_schedule("linear", num_steps=T).host_alphas_bar[-1] for T in (1000, 2000, 4000)}
    log_last = {T: np.log(bar) for T, bar in last.items()}
    betas = betas_of(make_schedule("linear", num_steps=250))
    np.testing.assert_allclose(betas[[0, -1]], [4e-4, 0.08], rtol=1e-15)
    # log(1 - beta) = -beta - beta^2/2 ...: the sum of beta is the same for all T, and the second-order sum,
    # 1000^2/T * mean(beta^2)/2 = 67.3/T, falls with T.
    assert log_last[2000] - log_last[1000] == pytest.approx(0.0673 / 2, rel=0.03)
    assert log_last[4000] - log_last[1000] == pytest.approx(0.0673 * 3 / 4, rel=0.03)


def test_the_named_ends():
    ends = dict(num_steps=100, beta_start=1e-3, beta_end=0.1)
    betas = {name: betas_of(make_schedule(name, **ends)) for name in NAMES}
    i = np.arange(100)
    np.testing.assert_allclose(np.diff(np.sqrt(betas["quadratic"]), 2), 0, atol=1e-15)
    np.testing.assert_allclose(np.diff(np.log(betas["geometric"]), 2), 0, atol=1e-14)
    for name in ("quadratic", "geometric", "warmup10", "warmup50"):
        np.testing.assert_allclose(betas[name][[0, -1]], [1e-3, 0.1], rtol=1e-14)
    np.testing.assert_array_equal(betas["constant"], 0.1)
    for name, warm in (("warmup10", 10), ("warmup50", 50)):
        np.testing.assert_allclose(betas[name][:warm], 1e-3 + 0.099 * i[:warm] / (warm - 1), rtol=1e-14)
        np.testing.assert_array_equal(betas[name][warm - 1 :], 0.1)
    np.testing.assert_allclose(betas["jsd"], 1 / (100 - i), rtol=1e-15)
    assert betas["jsd"][-1] == 1


def cosine(u):
    return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2


def sigmoid(u):
    low, high, at = (1 / (1 + np.exp(-np.asarray(v))) for v in (-3.0, 3.0, 6 * u - 3))
    return (high - at) / (high - low)


@pytest.mark.parametrize("name,formula", [("cosine", cosine), ("sigmoid", sigmoid)])
@pytest.mark.parametrize("num_steps", [10, 1000, 4000])
def test_alpha_bar_is_its_formula_until_the_clip(name, formula, num_steps):
    schedule = make_schedule(name, num_steps=num_steps)
    u = np.arange(1, num_steps + 1) / num_steps
    unclipped = betas_of(schedule) < 0.999
    assert unclipped[:-1].all() and not unclipped[-1]  # both formulas end at 0
    # T products of 1 - beta, each off by one rounding of float64; near u=1 alpha-bar is the square of a small
    # difference, which amplifies that by 1/sqrt(alpha-bar).
    expected = (formula(u) / formula(np.float64(0)))[unclipped]
    np.testing.assert_allclose(schedule.host_alphas_bar[unclipped], expected, rtol=1e-11)
    assert betas_of(schedule).max() == 0.999


def test_one_step():
    for name in NAMES:
        try:
            schedule = make_schedule(name, num_steps=1)
        except UserError:
            continue
        tables = {key: np.asarray(getattr(schedule, key)) for key in TABLES}
        assert all(table.shape == (1,) for table in tables.values())
        recip = ("sqrt_recip_alphas_bar", "sqrt_recipm1_alphas_bar", "half_log_snr")
        assert all(np.isfinite(table).all() for key, table in tables.items() if key not in recip), name
        assert tables["posterior_mean_coef_x_0"] == 1 and tables["posterior_mean_coef_x_t"] == 0
        np.testing.assert_allclose(tables["log_var_fixed_small"], np.log(schedule.betas_float64), rtol=1e-6)
    assert make_schedule("linear", num_steps=1).betas_float64 == (0.1,)
    assert make_schedule("jsd", num_steps=1).betas_float64 == (1.0,)


def test_a_schedule_passes_through_jit_and_tree_map():
    schedule = make_schedule("linear", num_steps=20)
    doubled = jax.jit(lambda s: jax.tree.map(lambda table: 2 * table, s))(schedule)
    np.testing.assert_array_equal(doubled.alphas_bar, 2 * schedule.alphas_bar)
    assert doubled.num_steps == 20
    jax.tree.map(lambda table: "a sharding", schedule)  # a tree of something else than arrays is fine


@pytest.mark.parametrize(
    "settings,parts",
    [
        (dict(name="cosin"), ["name", "'linear'", "got 'cosin'", "did you mean 'cosine'"]),
        (dict(num_steps=0), ["num_steps", "at least 1", "got 0"]),
        (dict(num_steps=10), ["(0, 1)", "got 0.01 to 2", "more steps"]),
        (dict(beta_start=0.0), ["beta_start", "got 0.0"]),
        (dict(beta_start=0.03), ["beta_start", "got 0.03 and 0.02"]),
        (dict(name="constant", beta_end=1.0), ["(0, 1)", "got 1 to 1"]),
    ],
)
def test_what_is_refused(settings, parts):
    with pytest.raises(UserError) as error:
        make_schedule(**settings)
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize("betas", [[], [[0.1]], [0.0, 0.1], [1.0, 0.1], [0.1, np.nan], [-0.1], [1.1]])
def test_betas_that_are_no_variances_are_refused(betas):
    with pytest.raises(UserError):
        schedule_from_betas(np.array(betas))
