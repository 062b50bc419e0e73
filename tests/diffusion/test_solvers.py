"""The solvers of higher order: exact where x_0_hat stands still, of their order on a Gaussian, back and forth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import Denoised
from ddpm_jax.diffusion.forward_process import signal_and_noise
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys, sample_noise
from ddpm_jax.diffusion.samplers import ddim as ddim_module
from ddpm_jax.diffusion.samplers import (
    ddim_inversion_table,
    dpmpp_table,
    heun_table,
    plms_table,
    solver_coefficients,
    unipc_table,
)
from ddpm_jax.diffusion.samplers.ancestral import ancestral_table
from ddpm_jax.diffusion.samplers.ddim import ddim_table
from ddpm_jax.diffusion.samplers.sampling_loop import init_sampler_state, p_sample_loop, sample_loop, scan_rows
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import host_half_log_snr, spaced_steps
from ddpm_jax.runtime.errors import UserError

LINEAR = make_schedule("linear")
FLOWS = {  # the deterministic ones
    "ddim": ddim_table,
    "dpmpp_1": lambda q, steps: dpmpp_table(q, steps=steps, order=1),
    "dpmpp_2m": lambda q, steps: dpmpp_table(q, steps=steps, order=2),
    "dpmpp_3m": lambda q, steps: dpmpp_table(q, steps=steps, order=3),
    "dpmpp_3m_full": lambda q, steps: dpmpp_table(q, steps=steps, order=3, full_order=True),
    "heun": heun_table,
    "plms": plms_table,
    "unipc_1": lambda q, steps: unipc_table(q, steps=steps, order=1),
    "unipc_2": lambda q, steps: unipc_table(q, steps=steps, order=2),
    "unipc_3": lambda q, steps: unipc_table(q, steps=steps, order=3),
}
NOISY = {
    "ancestral": lambda q, steps: ancestral_table(Process(q, variance="fixed_small"), steps=steps),
    "ddim eta=0.6": lambda q, steps: ddim_table(q, steps=steps, eta=0.6),
    "dpmpp_sde": lambda q, steps: dpmpp_table(q, steps=steps, order=1, sde=True),
    "dpmpp_2m_sde": lambda q, steps: dpmpp_table(q, steps=steps, order=2, sde=True),
    "heun churn": lambda q, steps: heun_table(q, steps=steps, churn=10.0),
    "heun some churn": lambda q, steps: heun_table(q, steps=steps, churn=10.0, churn_min=0.1, churn_max=5.0),
}
GRIDS = {
    "all": lambda q: None,
    "uniform": lambda q: spaced_steps(q.num_steps, 20),
    "few": lambda q: spaced_steps(q.num_steps, 4),
    "one": lambda q: spaced_steps(q.num_steps, 1),
    "karras": lambda q: spaced_steps(q.num_steps, 18, "karras", schedule=q),
}
SHORT = make_schedule("linear", num_steps=60)


def alpha_and_sigma(schedule, t):
    half_log_snr = np.interp(np.asarray(t, np.float64), np.arange(schedule.num_steps), host_half_log_snr(schedule))
    clean = np.asarray(t) < 0
    return (np.where(clean, end, (1 + np.exp(sign * 2 * half_log_snr)) ** -0.5) for sign, end in ((-1, 1.0), (1, 0.0)))


def in_numpy(table):
    """The table with NumPy columns: each slice of a JAX array would be a program to compile."""
    return jax.tree.map(np.asarray, table)


def walk_in_float64(table, denoise, x, past=None, noise=None):
    """[R+1] states: x, then after every row, with the noise [R, ...]; `denoise(x, t)` -> x_0_hat, all NumPy."""
    names = ("c_x_0", "c_x_t", *(("c_history", "r_x_0", "r_x_t") if table.num_remembered else ()))
    columns = {name: np.asarray(getattr(table, name), np.float64) for name in names}
    history, states = past or [0 * x] * table.num_remembered, [x]
    for i, t in enumerate(np.asarray(table.t, np.float64)):
        x_0 = denoise(x, t)
        x_s = columns["c_x_0"][i] * x_0 + columns["c_x_t"][i] * x
        for k, past in enumerate(history):
            x_s = x_s + columns["c_history"][i, k] * past
        if noise is not None:
            x_s = x_s + noise[i]
        if history:
            history = [columns["r_x_0"][i] * x_0 + columns["r_x_t"][i] * x, *history[:-1]]
        x = x_s
        states.append(x)
    return np.stack(states)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", FLOWS | NOISY)
def test_a_network_that_knows_x_0_is_followed_exactly(name, grid):
    """With x_0_hat = c everywhere the flow is alpha c + sigma eps, for every solver and any steps."""
    steps = GRIDS[grid](SHORT)
    table = (FLOWS | NOISY)[name](SHORT, steps=steps)
    alphas, sigmas = alpha_and_sigma(SHORT, np.append(table.t[:1], table.s))
    c = 0.7
    states = walk_in_float64(table, lambda x, t: c + 0 * x, alphas[0] * c + sigmas[0] * np.array([-1.0, 0.0, 2.0]))
    if name in FLOWS:
        expected = alphas[:, None] * c + sigmas[:, None] * np.array([-1.0, 0.0, 2.0])
    else:  # the middle one has no noise at the start, the mean of what follows
        states, expected = states[:, 1], alphas * c
    # Coefficients are rounded once: an ulp of each term, of which eps = (x - alpha x_0)/sigma may be large.
    np.testing.assert_allclose(states, expected, atol=2e-5)
    assert np.all(np.isfinite(states))


@pytest.mark.parametrize("name", ["heun churn", "heun some churn"])
def test_a_single_step_has_no_churn(name):
    """It starts with the most noise there is, and ends without any."""
    steps = GRIDS["one"](SHORT)
    jax.tree.map(np.testing.assert_array_equal, NOISY[name](SHORT, steps=steps), heun_table(SHORT, steps=steps))


@pytest.mark.parametrize("name", NOISY)
def test_noise_keeps_the_deviation_of_every_point(name):
    """x_s - alpha_s c then has the deviation sigma_s: what the formulas for sigma are made for."""
    table = in_numpy(NOISY[name](SHORT, steps=spaced_steps(60, 20)))
    assert np.any(table.sigma > 0)  # the flow without noise would keep it too
    _, sigmas = alpha_and_sigma(SHORT, np.append(table.t[:1], table.s))
    # By its linearity: the response to x_T and, a column each, to the noise of each row, with x_0_hat = 0.
    noises = np.diag(np.append(sigmas[0], table.sigma))
    gains = walk_in_float64(table, lambda x, t: 0 * x, noises[0], noise=noises[1:])
    deviation = np.sqrt(np.sum(gains**2, axis=1))
    np.testing.assert_allclose(deviation, sigmas, atol=1e-5)


# The Gaussian oracle: data N(M, S^2). The flow keeps xi = (x_t - alpha M)/sqrt(alpha^2 S^2 + sigma^2).
M, S = 0.4, 0.5


def exact(schedule):
    def denoise(x, t):
        alpha, sigma = alpha_and_sigma(schedule, t)
        return M + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x - alpha * M)

    return denoise


def error_before_the_last_step(name, num_steps, steps_of):
    """|x - exact| at t = 0 from one x_T: the last step, to sigma = 0, is of first order in all of them."""
    table = FLOWS[name](LINEAR, steps=steps_of(num_steps))
    (alpha_1, alpha_0), (sigma_1, sigma_0) = alpha_and_sigma(LINEAR, np.array([999, 0]))
    deviation = [np.sqrt(a**2 * S**2 + s**2) for a, s in ((alpha_1, sigma_1), (alpha_0, sigma_0))]
    states = walk_in_float64(table, exact(LINEAR), np.array([1.0]))
    return abs(states[-2, 0] - (alpha_0 * M + deviation[1] * (1.0 - alpha_1 * M) / deviation[0]))


# Of all rows, in h = the step in lambda. DPM-Solver++ of order 3 is of order 2 as the authors' code has it; in
# full it starts with one step of order 1, where there is hardly any signal. PLMS takes the coefficients of equal
# steps for steps that are not (Liu et al. 2022: order 2). UniPC of order p has order p + 1 by its corrector, and
# starts with order 2.
ORDERS = {"ddim": 1, "dpmpp_1": 1, "dpmpp_2m": 2, "heun": 2, "dpmpp_3m": 2, "dpmpp_3m_full": 3, "plms": 2,
          "unipc_1": 2, "unipc_2": 3, "unipc_3": 3}  # fmt: skip


@pytest.mark.parametrize("name", FLOWS)
def test_order_of_convergence(name):
    steps_of = lambda n: spaced_steps(1000, n, "log_snr", schedule=LINEAR)  # noqa: E731
    errors = np.array([error_before_the_last_step(name, n, steps_of) for n in (16, 32, 64)])
    orders = np.log2(errors[:-1] / errors[1:])
    # The mean of two halvings: a coefficient that changes its sign makes one of them too good.
    assert orders.mean() > ORDERS[name] - 0.3, (errors, orders)
    if ORDERS[name] == 1:
        np.testing.assert_allclose(orders, 1, atol=0.2)


@pytest.mark.parametrize(
    "name,order",
    [("ddim", 1), ("dpmpp_2m", 2), ("heun", 2), ("plms", 2), ("dpmpp_3m", 2), ("dpmpp_3m_full", 3)],
)
def test_order_of_one_step_with_an_exact_past(name, order, monkeypatch):
    """From the middle of the flow on, one step has an error of h^(order + 1); columns not rounded to float32."""
    real, exact_columns = solver_coefficients.make_table, {}

    def make_table(t, s, **columns):
        exact_columns.update(columns)
        return real(t, s, **columns)

    for module in (ddim_module, solver_coefficients):
        monkeypatch.setattr(module, "make_table", make_table)
    errors = []
    for num_steps in (33, 65, 129, 257):
        steps = spaced_steps(1000, num_steps, "log_snr", schedule=LINEAR)
        table = FLOWS[name](LINEAR, steps=steps).replace(**exact_columns)
        denoise, middle = exact(LINEAR), num_steps // 2
        here = {"heun": (2 * middle, 2 * middle + 2), "plms": (middle + 1, middle + 2)}.get(name, (middle, middle + 1))

        def flow(t):
            alpha, sigma = alpha_and_sigma(LINEAR, t)
            return alpha * M + 1.5 * np.sqrt(alpha**2 * S**2 + sigma**2)

        x, past = flow(steps[middle]), []
        for i in range(here[0] - table.num_remembered, here[0]):
            t = np.float64(table.t[i])
            past.insert(0, float(table.r_x_0[i]) * denoise(flow(t), t) + float(table.r_x_t[i]) * flow(t))
        states = walk_in_float64(table.rows(*here), denoise, np.array([x]), [np.array([p]) for p in past])
        errors.append(abs(states[-1, 0] - flow(steps[middle + 1])))
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders[-1], order + 1, atol=0.25, err_msg=str(errors))


@pytest.mark.parametrize("name", FLOWS)
def test_the_start_of_a_cosine_schedule(name):
    """sigma/alpha falls from 20,000 to 30 in its first step: no solver may take a slope over it, the less since a
    network knows nothing of x_0 there (here: the sign of the noise), which costs alpha at the next point, no more."""
    cosine, known = make_schedule("cosine"), exact(make_schedule("cosine"))
    table = FLOWS[name](cosine, steps=spaced_steps(1000, 50))
    alphas, sigmas = alpha_and_sigma(cosine, np.array([999.0, 0.0]))
    deviations = np.sqrt(alphas**2 * S**2 + sigmas**2)
    x_T = np.array([-2.0, 0.5, 2.0])
    states = walk_in_float64(table, lambda x, t: np.sign(x) if t > 998 else known(x, t), x_T)
    expected = alphas[1] * M + deviations[1] * (x_T - alphas[0] * M) / deviations[0]
    np.testing.assert_allclose(states[-2], expected, atol=0.1 if ORDERS[name] == 1 else 0.05)


def test_ddim_is_dpmpp_of_order_1_and_eulers_method():
    for steps in (None, spaced_steps(1000, 20), spaced_steps(1000, 20, "karras", schedule=LINEAR)):
        ddim, dpm = ddim_table(LINEAR, steps=steps), dpmpp_table(LINEAR, steps=steps, order=1)
        for column in ("t", "s", "c_x_0", "c_x_t", "sigma"):
            np.testing.assert_allclose(getattr(ddim, column), getattr(dpm, column), rtol=3e-7, atol=1e-9)
        assert not np.any(dpm.c_history)


def test_the_stochastic_dpmpp_of_order_1_is_ancestral_sampling_with_beta_tilde():
    steps = spaced_steps(1000, 20)
    one, other = dpmpp_table(LINEAR, steps=steps, order=1, sde=True), ddim_table(LINEAR, steps=steps, eta=1.0)
    for column in ("t", "s", "c_x_0", "c_x_t", "sigma"):
        np.testing.assert_allclose(getattr(one, column), getattr(other, column), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_2m_sde", "heun churn"])
def test_noisy_solvers_reach_the_data(name):
    """Mean and deviation of x_0 for Gaussian data, from the exact propagation of both through the rows."""
    errors, denoise = [], exact(LINEAR)
    slope = lambda x, t: denoise(x, t) - denoise(0 * x, t)  # noqa: E731
    for num_steps in (50, 100, 200):
        steps = spaced_steps(1000, num_steps, "log_snr", schedule=LINEAR)
        table = in_numpy(NOISY[name](LINEAR, steps=steps))
        states = walk_in_float64(table, denoise, np.array([1.0, 0.0]))[-1]
        mean, variance = states[1], (states[0] - states[1]) ** 2
        # What becomes of the noise that enters after each row, a column each.
        responses = walk_in_float64(table, slope, np.zeros(table.num_calls), noise=np.diag(table.sigma))[-1]
        variance += np.sum(responses**2)
        errors.append((abs(mean - M), abs(np.sqrt(variance) - S)))
    means, deviations = np.array(errors).T
    assert np.all(means < 1e-4)
    # At least of first order, and on the way to S.
    assert np.all(np.log2(deviations[:-1] / deviations[1:]) > 0.8) and deviations[-1] < 0.03 * S


@pytest.mark.parametrize("num_fixed_point", [0, 40])
def test_ddim_and_its_inversion(num_fixed_point):
    errors = []
    for num_steps in (10, 20, 40):
        steps = spaced_steps(1000, num_steps, "log_snr", schedule=LINEAR)
        x_0 = np.array([-0.9, 0.1, 1.3])
        there = ddim_inversion_table(LINEAR, steps=steps, num_fixed_point=num_fixed_point)
        assert there.num_calls == num_steps * (num_fixed_point + 1) and int(there.s[-1]) == 999
        latent = walk_in_float64(there, exact(LINEAR), x_0)[-1]
        back = walk_in_float64(ddim_table(LINEAR, steps=steps), exact(LINEAR), latent)[-1]
        errors.append(np.max(np.abs(back - x_0)))
    if num_fixed_point:
        # The iteration has converged: what is left is rounding, of eps = (x - alpha x_0)/sigma at sigma = 0.01 too.
        assert max(errors) < 20 * 2.0**-23 / 0.01, errors
    else:
        assert np.all(np.log2(np.divide(errors[:-1], errors[1:])) > 0.7), errors


def test_inversion_with_eps_at_the_source():
    """The step of guided-diffusion's `ddim_reverse_sample`, in NumPy: eps at t, from alpha-bar_t to the next one."""
    steps, x = spaced_steps(1000, 12), np.array([-0.9, 0.1, 1.3])
    table = ddim_inversion_table(LINEAR, steps=steps, eps_at="source")
    assert table.t.tolist() == steps[:0:-1].tolist() and table.s.tolist() == steps[-2::-1].tolist()
    alphas_bar, denoise = LINEAR.host_alphas_bar, lambda x, t: np.tanh(1.3 * x + 0.01 * t)
    walked = walk_in_float64(table, denoise, x)[-1]
    for t, t_next in zip(steps[:0:-1], steps[-2::-1], strict=True):
        x_0_hat = denoise(x, t)
        eps = (np.sqrt(1 / alphas_bar[t]) * x - x_0_hat) / np.sqrt(1 / alphas_bar[t] - 1)
        x = np.sqrt(alphas_bar[t_next]) * x_0_hat + np.sqrt(1 - alphas_bar[t_next]) * eps
    np.testing.assert_allclose(walked, x, rtol=1e-4)


def test_both_inversions_have_the_flow_as_limit():
    """Of first order: twice the steps, half the difference."""
    differences = []
    for num_steps in (100, 200, 400):
        steps = spaced_steps(1000, num_steps, "log_snr", schedule=LINEAR)
        ends = [
            walk_in_float64(ddim_inversion_table(LINEAR, steps=steps, eps_at=at), exact(LINEAR), np.array([1.3]))[-1]
            for at in ("target", "source")
        ]
        differences.append(abs(float(ends[0][0] - ends[1][0])))
    assert np.all(np.log2(np.divide(differences[:-1], differences[1:])) > 0.8), differences


def test_given_noises_take_the_place_of_drawn_ones():
    table = ddim_table(LINEAR, steps=spaced_steps(1000, 6), eta=1.0)
    keys = sample_keys(jax.random.key(2), jnp.arange(3))
    x_T = jax.random.normal(jax.random.key(3), (3, 5))
    drawn = jnp.stack([sample_noise(keys, row + 1, (5,)) for row in range(6)])
    # Another program: sums may round otherwise.
    given = sample_loop(wavy, table, x_T, keys, noises=drawn)
    np.testing.assert_allclose(given, sample_loop(wavy, table, x_T, keys), rtol=1e-5, atol=1e-6)
    silent = sample_loop(wavy, table, x_T, keys, noises=jnp.zeros_like(drawn))
    without = sample_loop(wavy, table.replace(sigma=jnp.zeros(6)), x_T, keys)
    np.testing.assert_allclose(silent, without, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r"noises must be \[6, 3, 5\]; got \[6, 1, 5\]"):
        sample_loop(wavy, table, x_T, keys, noises=drawn[:, :1])
    assert float(jnp.max(jnp.abs(silent - given))) > 1e-3


def test_rows_by_their_t():
    steps = spaced_steps(1000, 4)
    assert ddim_table(LINEAR, steps=steps).rows_at(333).s.tolist() == [0]
    assert heun_table(LINEAR, steps=steps).rows_at(666).num_calls == 2
    steps = spaced_steps(1000, 4, "karras", schedule=LINEAR)
    assert ddim_table(LINEAR, steps=steps).rows_at(steps[1]).num_calls == 1  # float32 in the table
    with pytest.raises(UserError, match=r"t must be a step that the sampler visits, of \[999, 666, 333, 0\]; got 5"):
        ddim_table(LINEAR, steps=spaced_steps(1000, 4)).rows_at(5)


def wavy(x_t, t):
    return Denoised(x_0_hat=jnp.tanh(1.3 * x_t + 0.01 * jnp.reshape(t, (-1,) + (1,) * (x_t.ndim - 1))))


@pytest.mark.parametrize("name", ["dpmpp_3m", "plms", "unipc_3", "heun", "dpmpp_2m_sde", "heun churn"])
def test_the_scan_is_the_loop_and_can_be_walked_in_parts(name):
    table = (FLOWS | NOISY)[name](LINEAR, steps=spaced_steps(1000, 7))
    keys = sample_keys(jax.random.key(2), jnp.arange(3))
    x_T = jax.random.normal(jax.random.key(3), (3, 5))
    go = jax.jit(lambda table, state: scan_rows(wavy, table, state, keys))
    whole = go(table, init_sampler_state(table, x_T)).x_t
    np.testing.assert_array_equal(whole, jax.jit(lambda x: sample_loop(wavy, table, x, keys))(x_T))
    state = init_sampler_state(table, x_T)
    for start, stop in ((0, 2), (2, 3), (3, table.num_calls)):
        state = go(table.rows(start, stop), state)
    np.testing.assert_allclose(state.x_t, whole, rtol=1e-5, atol=1e-6)
    if name in FLOWS:
        loop = walk_in_float64(table, lambda x, t: np.tanh(1.3 * x + 0.01 * t), np.asarray(x_T, np.float64))[-1]
        np.testing.assert_allclose(whole, loop, atol=2e-4)


def test_the_round_trip_of_a_walk():
    """As in docs/editing.md, in float32 and jitted: a network that is no Gaussian's, with and without iterations."""
    # Even steps in the log SNR: an iteration contracts by 1 - exp(-h) there, and hardly at all over one huge step.
    steps = spaced_steps(1000, 20, "log_snr", schedule=LINEAR)
    x_0 = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 6)), jnp.float32)
    keys = sample_keys(jax.random.key(0), jnp.arange(4))

    def soft(x_t, t):
        signal, noise = signal_and_noise(LINEAR, t, 2)
        gaussian = M + signal * S**2 / (signal**2 * S**2 + noise**2) * (x_t - signal * M)
        return Denoised(x_0_hat=gaussian + 0.3 * noise**2 * jnp.sin(3 * x_t))

    errors = []
    for num_fixed_point in (0, 30):
        there = ddim_inversion_table(LINEAR, steps=steps, num_fixed_point=num_fixed_point)
        noise = jax.jit(lambda x: sample_loop(soft, there, x, keys))(x_0)  # noqa: B023
        back = jax.jit(lambda x: sample_loop(soft, ddim_table(LINEAR, steps=steps), x, keys))(noise)
        errors.append(float(jnp.max(jnp.abs(back - x_0))))
    assert errors[0] > 0.02 and errors[1] < 2e-3, errors


@pytest.mark.parametrize("name", ["dpmpp_3m", "dpmpp_2m_sde", "unipc_2", "plms"])
def test_sample_n_does_not_depend_on_how_many_there_are(name):
    table = (FLOWS | NOISY)[name](LINEAR, steps=spaced_steps(1000, 8))
    draw = lambda n: p_sample_loop(wavy, table, key=jax.random.key(2), num_samples=n, shape=(3, 2))  # noqa: E731
    np.testing.assert_array_equal(draw(5), draw(16)[:5])


def test_a_start_from_pure_noise():
    """alpha-bar = 0 at the last step: lambda is -infinity there."""
    schedule = make_schedule("linear", num_steps=100, zero_terminal_snr=True)
    steps = spaced_steps(100, 10)
    for table in (
        ddim_table(schedule, steps=steps),
        ancestral_table(Process(schedule, prediction="v"), steps=steps),
        *(dpmpp_table(schedule, steps=steps, order=order) for order in (1, 2, 3)),
        *(dpmpp_table(schedule, steps=steps, order=order, sde=True) for order in (1, 2)),
    ):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(table))
    for make in (heun_table, plms_table, unipc_table, ddim_inversion_table):
        with pytest.raises(UserError, match="cannot start where alpha-bar is 0: take 'ancestral', 'ddim' or"):
            make(schedule, steps=steps)


def test_refusals():
    for make in (
        lambda: dpmpp_table(LINEAR, order=4),
        lambda: dpmpp_table(LINEAR, order=3, sde=True),
        lambda: unipc_table(LINEAR, order=0),
    ):
        with pytest.raises(UserError, match="the order of .* must be 1, 2 or"):
            make()
    with pytest.raises(UserError, match="^churn and churn_noise must be at least 0; got -1.0"):
        heun_table(LINEAR, churn=-1.0)
    with pytest.raises(UserError, match="num_fixed_point must be at least 0; got -2"):
        ddim_inversion_table(LINEAR, num_fixed_point=-2)
    with pytest.raises(UserError, match="num_fixed_point must leave at most 1,000,000 network calls; got 1000000000"):
        ddim_inversion_table(LINEAR, num_fixed_point=10**9)
    with pytest.raises(UserError, match="num_fixed_point iterates towards eps_at='target'; got 3"):
        ddim_inversion_table(LINEAR, num_fixed_point=3, eps_at="source")
    with pytest.raises(UserError, match="eps_at='source' needs at least two steps; got 1"):
        ddim_inversion_table(LINEAR, steps=np.array([999]), eps_at="source")
