"""Lists of steps by rule and by name, the process of the kept steps, and fractional steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.forward_process import signal_and_noise
from ddpm_jax.diffusion.schedules import make_schedule, schedule_from_betas
from ddpm_jax.diffusion.timestep_spacing import (
    SPACINGS,
    host_half_log_snr,
    named_steps,
    respaced,
    spaced_steps,
    step_at_half_log_snr,
    time_grid,
)
from ddpm_jax.runtime.errors import UserError

LINEAR = make_schedule("linear")


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_rule_gives_exactly_so_many_falling_steps(spacing):
    for num_sampler_steps in (1, 2, 7, 18):
        steps = spaced_steps(1000, num_sampler_steps, spacing, schedule=LINEAR)
        assert len(steps) == num_sampler_steps
        assert np.all(np.diff(steps) < 0) and steps[0] <= 999 and steps[-1] >= 0
        time_grid(LINEAR, steps)
    if spacing in ("uniform", "quadratic", "log_snr", "karras"):
        assert steps[0] == pytest.approx(999) and steps[-1] == pytest.approx(0, abs=1e-9)


def test_rules_by_hand():
    assert spaced_steps(1000, 4, "leading").tolist() == [750, 500, 250, 0]
    assert spaced_steps(1000, 4, "trailing").tolist() == [999, 749, 499, 249]
    assert spaced_steps(1000, 3, "ddim_quadratic").tolist() == [800, 200, 0]
    assert spaced_steps(10, 4, "leading").tolist() == [6, 4, 2, 0]


def test_karras_and_log_snr_levels():
    levels = host_half_log_snr(LINEAR)
    for spacing, map_level in (("log_snr", lambda x: x), ("karras", lambda x: np.exp(-x / 7))):
        steps = spaced_steps(1000, 9, spacing, schedule=LINEAR)
        at = map_level(np.interp(steps, np.arange(1000), levels))
        np.testing.assert_allclose(np.diff(at), np.diff(at)[0], rtol=1e-9)


@pytest.mark.parametrize(
    "name,expected",
    [
        ("t=999,500,0", [999, 500, 0]),
        ("5", [999, 749, 500, 250, 0]),  # 999/4 = 249.75: 249.75, 499.5 -> 500, 749.25
        ("1", [0]),
        ("2,3", [999, 750, 500, 499, 0]),  # 499/2 = 249.5 -> 749.5 -> round half to even
        ("ddim4", [750, 500, 250, 0]),
        ("ddim50", list(range(980, -1, -20))),
    ],
)
def test_named_steps(name, expected):
    steps = named_steps(1000, name)
    # 500 + round(249.5): 249.5 rounds to the even 250.
    assert steps.tolist() == expected


def test_named_steps_of_250_hold_both_ends():
    steps = named_steps(1000, "250")
    assert len(steps) == 250 and steps[0] == 999 and steps[-1] == 0 and len(set(steps.tolist())) == 250
    assert len(named_steps(4000, "10,15,20")) == 45


def test_ddim_names_that_no_stride_makes():
    unreachable = []
    for n in range(1, 101):
        try:
            assert len(named_steps(1000, f"ddim{n}")) == n
        except UserError:
            unreachable.append(n)
    assert {37, 75, 80, 90} <= set(unreachable) and 1 in unreachable
    with pytest.raises(UserError, match="exactly 37 of 1000 steps; the nearest are ddim36 and ddim38"):
        named_steps(1000, "ddim37")


@pytest.mark.parametrize(
    "name,message",
    [
        ("ddim", "name must be such as"),
        ("many", "got 'many'"),
        ("10,,5", "got '10,,5'"),
        ("600,10", "section 1 has 500 of the 1000 steps, of which 600 cannot be taken; give 1 to 500"),
        ("0", "of which 0 cannot be taken"),
        ("t=5,9", "sampler's steps must be decreasing whole numbers in 0..999"),
        ("t=", "name must be such as"),
    ],
)
def test_named_steps_refuse(name, message):
    with pytest.raises(UserError) as error:
        named_steps(1000, name)
    assert message in str(error.value), str(error.value)


def test_the_kept_process_has_the_kept_alpha_bar():
    steps = np.array([999, 400, 3])
    kept = respaced(LINEAR, steps)
    np.testing.assert_allclose(kept.host_alphas_bar, LINEAR.host_alphas_bar[[3, 400, 999]], rtol=1e-12)
    whole = respaced(LINEAR, np.arange(1000))
    np.testing.assert_allclose(whole.betas_float64, LINEAR.betas_float64, rtol=1e-9)
    one = respaced(LINEAR, np.array([999]))
    assert one.num_steps == 1 and one.host_alphas_bar[0] == pytest.approx(LINEAR.host_alphas_bar[999])
    for bad in ([3, 3], [1000], [-1], [], [1.5]):
        with pytest.raises(UserError, match="the steps to keep must be distinct"):
            respaced(LINEAR, np.array(bad))


def test_fractional_steps_on_host_and_device_agree():
    t = np.array([0.0, 0.25, 7.0, 500.5, 998.999, 999.0])
    grid = time_grid(LINEAR, t[::-1])
    signal, noise = jax.jit(lambda t: signal_and_noise(LINEAR, t, 1))(jnp.asarray(t, jnp.float32))
    # float32 t near 1,000 has steps of 6e-5, over which the log SNR changes by less than 1e-6.
    np.testing.assert_allclose(signal, grid.alphas[:-1][::-1], rtol=4e-6)
    np.testing.assert_allclose(noise, grid.sigmas[:-1][::-1], rtol=4e-6)
    whole = time_grid(LINEAR, np.array([999, 7, 0]))
    np.testing.assert_allclose(grid.alphas[[0, 3, 5]], whole.alphas[:-1], rtol=1e-12)
    np.testing.assert_allclose(step_at_half_log_snr(LINEAR, np.log(grid.alphas[:-1] / grid.sigmas[:-1])), t[::-1])


def test_signal_and_noise_where_alpha_bar_is_0():
    schedule = schedule_from_betas(np.array([0.1, 0.5, 1.0]))
    signal, noise = signal_and_noise(schedule, jnp.array([0.0, 1.0, 2.0]), 1)
    np.testing.assert_allclose(signal**2, [0.9, 0.45, 0], rtol=1e-6)
    np.testing.assert_allclose(noise**2, [0.1, 0.55, 1], rtol=1e-6)


def test_there_is_no_grid_by_noise_level_where_alpha_bar_is_0():
    schedule = make_schedule("linear", num_steps=100, zero_terminal_snr=True)
    for spacing in ("log_snr", "karras"):
        with pytest.raises(UserError, match="has no grid if alpha-bar falls to 0: take 'uniform' or 'trailing'"):
            spaced_steps(100, 5, spacing, schedule=schedule)
