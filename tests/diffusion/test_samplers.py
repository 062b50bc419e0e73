"""Every sampler table: identities between them, and a Gaussian oracle end to end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import Denoised
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers.ancestral import ancestral_table
from ddpm_jax.diffusion.samplers.ddim import ddim_table
from ddpm_jax.diffusion.samplers.sampling_loop import p_sample_loop
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.runtime.errors import UserError

LINEAR, COSINE = make_schedule("linear"), make_schedule("cosine", num_steps=4000)
SCHEDULES = pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine4000"])
COLUMNS = ("c_x_0", "c_x_t", "sigma")
# The columns are formed in float64, where they agree to some 1e-12, and rounded once: 1 ulp at most.
ONE_ULP = 2.0**-23


def assert_same_table(one, other, rtol=ONE_ULP):
    for name in ("row", "t", "s"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in COLUMNS:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=rtol, err_msg=name)


@SCHEDULES
@pytest.mark.parametrize("num_sampler_steps", [None, 1, 2, 37, 250])
def test_ddim_with_eta_1_is_ancestral_with_beta_tilde(schedule, num_sampler_steps):
    steps = num_sampler_steps and spaced_steps(schedule.num_steps, num_sampler_steps)
    small = ancestral_table(Process(schedule, variance="fixed_small"), steps=steps)
    assert_same_table(ddim_table(schedule, steps=steps, eta=1.0), small)


@SCHEDULES
def test_all_steps_as_a_list_is_the_full_table(schedule):
    steps = spaced_steps(schedule.num_steps, schedule.num_steps)
    for variance in ("fixed_small", "fixed_large"):
        full = ancestral_table(Process(schedule, variance=variance))
        assert_same_table(ancestral_table(Process(schedule, variance=variance), steps=steps), full, rtol=0)
    assert_same_table(ddim_table(schedule, steps=steps, eta=0.3), ddim_table(schedule, eta=0.3), rtol=0)


@SCHEDULES
def test_ancestral_rows_are_the_schedules_posterior(schedule):
    for variance in ("fixed_small", "fixed_large"):
        table = ancestral_table(Process(schedule, variance=variance))
        t = np.arange(schedule.num_steps)[::-1]
        np.testing.assert_array_equal(table.t, t)
        np.testing.assert_array_equal(table.s, t - 1)
        np.testing.assert_array_equal(table.row, np.arange(len(t)))
        np.testing.assert_allclose(table.c_x_0, schedule.posterior_mean_coef_x_0[t], rtol=ONE_ULP)
        np.testing.assert_allclose(table.c_x_t, schedule.posterior_mean_coef_x_t[t], rtol=ONE_ULP)
        var = schedule.posterior_var if variance == "fixed_small" else schedule.betas
        np.testing.assert_allclose(table.sigma[:-1] ** 2, var[t][:-1], rtol=4 * ONE_ULP)


@pytest.mark.parametrize("name", ["linear", "cosine", "jsd", "sigmoid", "geometric"])
@pytest.mark.parametrize("num_sampler_steps", [1, 2, 50])
def test_the_last_row_lands_on_x_0_without_noise(name, num_sampler_steps):
    schedule = make_schedule(name, num_steps=50)
    steps = spaced_steps(50, num_sampler_steps)
    tables = [ddim_table(schedule, steps=steps, eta=eta) for eta in (0.0, 0.5, 1.0)]
    processes = [Process(schedule, prediction="v", variance=variance) for variance in ("fixed_small", "fixed_large")]
    tables += [ancestral_table(process, steps=steps) for process in processes]
    for table in tables:
        assert table.num_calls == num_sampler_steps
        assert table.s[-1] == -1 and table.t[0] == 49
        np.testing.assert_array_equal(table.s[:-1], table.t[1:])
        assert [float(getattr(table, name)[-1]) for name in COLUMNS] == [1.0, 0.0, 0.0]
        assert all(np.isfinite(getattr(table, name)).all() for name in COLUMNS)


@SCHEDULES
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_rows_keep_the_marginals(schedule, eta):
    """With x_0_hat = x_0, a row carries q(x_t | x_0) to q(x_s | x_0)."""
    table = ddim_table(schedule, steps=spaced_steps(schedule.num_steps, 100), eta=eta)
    bar = np.append(schedule.host_alphas_bar, 1.0)
    bar_t, bar_s = bar[table.t], bar[table.s]
    c_x_0, c_x_t, sigma = (np.asarray(getattr(table, name), np.float64) for name in COLUMNS)
    np.testing.assert_allclose(c_x_0 + c_x_t * np.sqrt(bar_t), np.sqrt(bar_s), rtol=2 * ONE_ULP, atol=1e-12)
    np.testing.assert_allclose(c_x_t**2 * (1 - bar_t) + sigma**2, 1 - bar_s, rtol=4 * ONE_ULP, atol=1e-14)
    if eta == 0:
        assert np.all(sigma == 0)


@SCHEDULES
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_strided_ancestral_rows_are_the_process_of_the_kept_steps(schedule, variance):
    from ddpm_jax.diffusion.schedules import schedule_from_betas

    steps = spaced_steps(schedule.num_steps, 40)
    bar = schedule.host_alphas_bar[steps[::-1]]
    kept = schedule_from_betas(1 - bar / np.append(1.0, bar[:-1]))
    strided = ancestral_table(Process(schedule, variance=variance), steps=steps)
    own = ancestral_table(Process(kept, variance=variance))
    for name in COLUMNS:
        np.testing.assert_allclose(getattr(strided, name), getattr(own, name), rtol=ONE_ULP)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 50, 1000])
def test_spaced_steps_hold_both_ends_and_fall(num_steps):
    for num_sampler_steps in range(1, num_steps + 1):
        steps = spaced_steps(num_steps, num_sampler_steps)
        assert len(steps) == num_sampler_steps and steps[0] == num_steps - 1
        assert np.all(np.diff(steps) < 0)
        if num_sampler_steps > 1:
            assert steps[-1] == 0
            # Even: each within half a step of its place.
            even = np.arange(num_sampler_steps)[::-1] * (num_steps - 1) / (num_sampler_steps - 1)
            assert np.max(np.abs(steps - even)) <= 0.5 + 1e-9


def test_quadratic_steps():
    steps = spaced_steps(1000, 10, "quadratic")
    assert steps[0] == 999 and steps[-1] == 0
    np.testing.assert_allclose(np.sqrt(steps), np.linspace(np.sqrt(999), 0, 10), atol=0.2)
    assert np.all(np.diff(steps[::-1], 2) > 0)


@pytest.mark.parametrize(
    "arguments,parts",
    [
        ((100, 0), ["num_sampler_steps", "1..100", "got 0"]),
        ((100, 101), ["num_sampler_steps", "1..100", "got 101"]),
        ((100, 10, "cubic"), ["spacing", "'quadratic', 'trailing', 'uniform']", "got 'cubic'"]),
        ((100, 90, "quadratic"), ["spacing='quadratic'", "90 of 100", "'uniform'"]),
    ],
)
def test_spaced_steps_refuse(arguments, parts):
    with pytest.raises(UserError) as error:
        spaced_steps(*arguments)
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize("steps", [[], [5, 5], [1, 2], [1000], [3, -1], [[3, 2]]])
def test_tables_refuse_steps_that_do_not_fall_in_range(steps):
    for make_table, made_of in ((ancestral_table, Process(LINEAR)), (ddim_table, LINEAR)):
        with pytest.raises(UserError, match=r"sampler's steps must be decreasing whole numbers in 0\.\.999"):
            make_table(made_of, steps=np.array(steps))


def test_tables_refuse_settings():
    with pytest.raises(UserError, match="^variance"):
        ancestral_table(Process(LINEAR, variance="large"))
    for eta in (-0.1, 30.0):
        with pytest.raises(UserError, match=f"^eta .* got {eta}: try 0 to 1"):
            ddim_table(LINEAR, eta=eta)


# The Gaussian oracle: data N(M, S^2), the exact denoiser E[x_0 | x_t] in closed form.
M, S = 0.4, 0.3


def exact_denoiser(schedule):
    def denoise_fn(x_t, t):
        bar, noise = (a[t][:, None] for a in (schedule.alphas_bar, schedule.one_minus_alphas_bar))
        return Denoised(x_0_hat=M + jnp.sqrt(bar) * S**2 / (bar * S**2 + noise) * (x_t - jnp.sqrt(bar) * M))

    return denoise_fn


def moments_of_walk(schedule, table):
    """Mean and deviation of x_0, from N(0, 1), in float64: each row is an affine map of a Gaussian."""
    mean, var = 0.0, 1.0
    bars = schedule.host_alphas_bar[table.t]
    columns = (np.asarray(getattr(table, name), np.float64) for name in COLUMNS)
    for bar, c_x_0, c_x_t, sigma in zip(bars, *columns, strict=True):
        gain = np.sqrt(bar) * S**2 / (bar * S**2 + 1 - bar)
        slope = c_x_0 * gain + c_x_t
        mean = slope * mean + c_x_0 * M * (1 - gain * np.sqrt(bar))
        var = slope**2 * var + sigma**2
    return mean, np.sqrt(var)


ORACLE_TABLES = {
    "ancestral small": lambda s: ancestral_table(Process(s, variance="fixed_small")),
    "ancestral large": lambda s: ancestral_table(Process(s, variance="fixed_large")),
    "strided": lambda s: ancestral_table(Process(s, variance="fixed_small"), steps=spaced_steps(s.num_steps, 100)),
    "ddim": lambda s: ddim_table(s, steps=spaced_steps(s.num_steps, 100)),
    "ddim 0.5": lambda s: ddim_table(s, steps=spaced_steps(s.num_steps, 100), eta=0.5),
    "ddim 1": lambda s: ddim_table(s, eta=1.0),
    "quadratic": lambda s: ddim_table(s, steps=spaced_steps(s.num_steps, 15, "quadratic")),
}


@pytest.mark.parametrize("name", ORACLE_TABLES)
def test_gaussian_data_is_sampled_with_its_mean_and_deviation(name):
    """40,000 samples: the scatter of a mean is S/200, of a deviation S/283; five of them are allowed."""
    schedule = make_schedule("linear", num_steps=300)
    table, num_samples = ORACLE_TABLES[name](schedule), 40_000
    x_0 = jax.jit(
        lambda table: p_sample_loop(
            exact_denoiser(schedule), table, key=jax.random.key(1), num_samples=num_samples // 8, shape=(8,)
        )
    )(table)
    assert x_0.shape == (num_samples // 8, 8) and x_0.dtype == jnp.float32
    mean, deviation = moments_of_walk(schedule, table)
    x_0 = np.asarray(x_0, np.float64)
    assert abs(x_0.mean() - mean) < 5 * S / np.sqrt(num_samples)
    assert abs(x_0.std() - deviation) < 5 * S / np.sqrt(2 * num_samples)
    # ... and the walk itself is near the data, up to a bias of order 1/steps (measured below).
    assert abs(mean - M) < 0.02 * S and abs(deviation / S - 1) < 0.15


def test_ddim_is_of_first_order_in_the_number_of_steps():
    """The probability flow carries N(0, 1) to N(M, S^2); DDIM's error halves with the step."""
    T = 4096
    schedule = make_schedule("cosine", num_steps=T)
    errors = []
    for num_sampler_steps in (16, 32, 64, 128, 256):
        table = ddim_table(schedule, steps=spaced_steps(T, num_sampler_steps))
        mean, deviation = moments_of_walk(schedule, table)
        errors.append(abs(deviation - S))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders[1:], 1, atol=0.2)
    assert errors[-1] < 0.02 * S


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_sampling_is_of_first_order_in_the_number_of_steps(variance):
    """Between them the two variances are right for data of any spread; both converge to the reverse SDE."""
    errors = []
    for num_steps in (500, 1000, 2000, 4000):
        schedule = make_schedule("linear", num_steps=num_steps)
        mean, deviation = moments_of_walk(schedule, ancestral_table(Process(schedule, variance=variance)))
        errors.append(deviation - S)
        assert abs(mean - M) < 1e-2 * S
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, 1, atol=0.2)
    assert (errors[0] < 0) == (variance == "fixed_small") and abs(errors[-1]) < 0.01 * S
