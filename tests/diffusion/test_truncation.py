"""Where a sampler stops for truncated conditioning augmentation, and the noise that is missing there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import Denoised
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys
from ddpm_jax.diffusion.samplers import ancestral_table, ddim_table, dpmpp_table, heun_table
from ddpm_jax.diffusion.samplers.sampling_loop import initial_noise, sample_loop
from ddpm_jax.diffusion.samplers.truncation import stop_at
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.runtime.errors import UserError

PROCESS = Process(make_schedule("cosine", num_steps=100))
ALPHAS_BAR = PROCESS.schedule.host_alphas_bar


def process_signal(steps):
    return float(PROCESS.levels(jnp.asarray(steps), ndim=1)[0][0])


@pytest.mark.parametrize("level", (1, 2, 40, 99))
def test_stages_of_one_schedule_match_exactly(level):
    """Level i has the noise of step i - 1, which all steps visit."""
    stop = stop_at(ancestral_table(PROCESS), PROCESS, ALPHAS_BAR[level - 1])
    assert stop == (100 - level, 1.0, 0.0)  # of the 100 rows, the one from t to t - 1 is number 99 - t


@pytest.mark.parametrize("num_steps", (7, 50, 100))
def test_the_noisiest_step_that_is_clean_enough_and_the_noise_that_is_missing(num_steps):
    table = ddim_table(PROCESS.schedule, steps=spaced_steps(100, num_steps))
    ends = [*ALPHAS_BAR[np.asarray(table.s)[:-1]], 1.0]
    other = make_schedule("linear", num_steps=400).host_alphas_bar
    for alpha_bar in other[other < ends[-2]][::13]:
        num_rows, keep, add = stop_at(table, PROCESS, alpha_bar)
        assert keep**2 * ends[num_rows - 1] == pytest.approx(alpha_bar, rel=1e-12)
        assert keep**2 + add**2 == pytest.approx(1, rel=1e-12) and 0 < keep <= 1
        assert num_rows == 1 or ends[num_rows - 2] < alpha_bar  # one row less would be too noisy


def test_the_level_after_a_row_is_that_of_whole_steps_and_with_the_noise_of_churn():
    steps = spaced_steps(100, 10)
    table = heun_table(PROCESS.schedule, steps=steps)
    alpha_bar = ALPHAS_BAR[steps[4]]
    stop = stop_at(table, PROCESS, alpha_bar)
    # After both rows of a step: the next row calls the network there, and goes on down.
    assert table.t[stop.num_rows] == table.s[stop.num_rows - 1] == steps[4] > table.s[stop.num_rows]
    churned = heun_table(PROCESS.schedule, steps=steps, churn=4.0)
    num_rows, keep, add = stop_at(churned, PROCESS, alpha_bar)
    at = np.asarray(churned.s)[num_rows - 1 : num_rows]  # with the noise that was added
    assert at[0] == churned.t[num_rows] > churned.s[num_rows] and add > 0 and at[0] < steps[4]
    assert (keep * process_signal(at)) ** 2 == pytest.approx(alpha_bar, rel=1e-5)
    fractional = dpmpp_table(PROCESS.schedule, steps=spaced_steps(100, 9, "log_snr", schedule=PROCESS.schedule))
    assert fractional.t.dtype == jnp.float32 and 0 <= stop_at(fractional, PROCESS, 0.4).add < 1


def test_a_level_that_only_x_0_reaches_is_refused():
    table = ddim_table(PROCESS.schedule, steps=np.array([99, 50, 10]))
    with pytest.raises(UserError, match="take more steps, or a higher level"):
        stop_at(table, PROCESS, ALPHAS_BAR[5])
    assert stop_at(table, PROCESS, ALPHAS_BAR[10]).num_rows == 2


@pytest.mark.parametrize("stops", (True, False), ids=("truncated", "re-noised"))
def test_a_cascade_of_exact_denoisers_draws_the_data(stops):
    """x in R^2 is Gaussian and z its mean. z_s of either kind has the law q(z_s), so that x ~ p(x | z_s) has the law of
    the data: no error compounds."""
    cov = np.array([[1.0, 0.5], [0.5, 0.6]])
    half = np.full(2, 0.5)
    var_z = half @ cov @ half
    other = Process(make_schedule("linear", num_steps=200))
    alpha_bar = float(other.schedule.host_alphas_bar[60])
    num, keys = 20_000, sample_keys(jax.random.key(0), jnp.arange(20_000))

    def denoiser(process, posterior_mean):
        def denoise(x_t, t):
            return Denoised(posterior_mean(x_t, *process.levels(t, ndim=x_t.ndim)))

        return denoise

    of_z = denoiser(PROCESS, lambda x, a, b: a * var_z / (a**2 * var_z + b**2) * x)
    table = ddim_table(PROCESS.schedule)
    stop = stop_at(table, PROCESS, alpha_bar) if stops else None
    walked = table.rows(0, stop.num_rows) if stops else table
    z = sample_loop(of_z, walked, initial_noise(keys, (1,)), keys)
    keep, add = (stop.keep, stop.add) if stops else (alpha_bar**0.5, (1 - alpha_bar) ** 0.5)
    z_s = keep * z + add * jax.random.normal(jax.random.key(1), z.shape)

    # p(x | z_s): z_s = sqrt(alpha-bar) half.x + noise of variance 1 - alpha-bar.
    gain = np.sqrt(alpha_bar) * cov @ half / (alpha_bar * var_z + 1 - alpha_bar)
    rest = cov - np.outer(gain, np.sqrt(alpha_bar) * half @ cov)

    def given_z_s(x, a, b):
        mean = z_s @ gain.astype(np.float32)[None]
        precision = jnp.linalg.inv(a[0, 0] ** 2 * rest + b[0, 0] ** 2 * jnp.eye(2))
        return mean + (x - a * mean) @ (a[0, 0] * rest @ precision).T

    others = sample_keys(jax.random.key(2), jnp.arange(num))
    x = sample_loop(denoiser(PROCESS, given_z_s), table, initial_noise(others, (2,)), others)
    # Of 20,000 samples the standard error of a covariance of about 1 is 0.01; DDIM of 100 steps adds less.
    np.testing.assert_allclose(np.cov(np.asarray(x).T), cov, atol=0.045)
    assert abs(np.var(z_s) - (alpha_bar * var_z + 1 - alpha_bar)) < 0.03
