"""A process is typed once; a parameterisation is one object, and one of a user's own is a class in one file."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.forward_process import at_step, q_sample
from ddpm_jax.diffusion.loss_weights import loss_weights
from ddpm_jax.diffusion.losses import make_loss_fn
from ddpm_jax.diffusion.parameterisations import PARAMETERISATIONS, PREDICTIONS, Parameterisation
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers.ddim import ddim_table
from ddpm_jax.diffusion.samplers.sampling_loop import p_sample_loop
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_samplers import make_timestep_sampler
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.training.diffusion_objective import DiffusionObjective

T = 50
SCHEDULE = make_schedule("cosine", num_steps=T)
MEAN, STD = 0.3, 0.5  # of the Gaussian data


class Preconditioned(Parameterisation):
    """EDM's: x_0_hat = c_skip x + c_out F(c_in x, c_noise) with x = x_t / sqrt(alpha-bar_t) = x_0 + sigma eps
    (Karras et al. 2022, equation 7 and table 1, column "Ours")."""

    name = "edm"

    def __init__(self, sigma_data):
        self.sigma_data = sigma_data

    def _levels(self, schedule, t, ndim):
        a = at_step(schedule.sqrt_alphas_bar, t, ndim)
        sigma = at_step(schedule.sqrt_one_minus_alphas_bar, t, ndim) / a
        total = sigma**2 + self.sigma_data**2
        c_skip, c_out = self.sigma_data**2 / total, sigma * self.sigma_data / jnp.sqrt(total)
        return a, sigma, c_skip, c_out, 1 / jnp.sqrt(total)

    def inputs(self, schedule, *, x_t, t, network_t):
        a, sigma, _, _, c_in = self._levels(schedule, t, x_t.ndim)
        return c_in * x_t / a, jnp.log(sigma).reshape(-1) / 4

    def target(self, schedule, *, x_0, x_t, t, eps):
        a, _, c_skip, c_out, _ = self._levels(schedule, t, x_t.ndim)
        return (x_0 - c_skip * x_t / a) / c_out

    def x_0_hat(self, schedule, *, x_t, t, output):
        a, _, c_skip, c_out, _ = self._levels(schedule, t, x_t.ndim)
        return c_skip * x_t / a + c_out * output

    def error_of_x_0(self, schedule):
        sigma2 = schedule.host_one_minus_alphas_bar / schedule.host_alphas_bar
        return (sigma2 + self.sigma_data**2) / (sigma2 * self.sigma_data**2)


EVERY = [*PARAMETERISATIONS.values(), Preconditioned(0.5)]
KINDS = pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.name)


def posterior_mean(x_t, t):
    """E[x_0 | x_t] of data N(MEAN, STD^2)."""
    a, n = (at_step(table, t, x_t.ndim) for table in (SCHEDULE.sqrt_alphas_bar, SCHEDULE.sqrt_one_minus_alphas_bar))
    return MEAN + a * STD**2 / (a**2 * STD**2 + n**2) * (x_t - a * MEAN)


def exact_network(kind):
    """Of the Gaussian data, in the words of a parameterisation: its target is linear in (x_0, eps) given x_t."""

    def model_fn(x_in, t_in):
        if isinstance(kind, Preconditioned):  # from what it is given alone, as a network
            sigma = jnp.exp(4 * t_in)[:, None]
            levels = SCHEDULE.sqrt_one_minus_alphas_bar / SCHEDULE.sqrt_alphas_bar
            x = x_in * jnp.sqrt(sigma**2 + kind.sigma_data**2)
            t = jnp.argmin(jnp.abs(sigma - levels[None]), axis=1)
            x_t = x * at_step(SCHEDULE.sqrt_alphas_bar, t, 2)
        else:
            x_t, t = x_in, t_in
        x_0 = posterior_mean(x_t, t)
        a, n = (at_step(c, t, 2) for c in (SCHEDULE.sqrt_alphas_bar, SCHEDULE.sqrt_one_minus_alphas_bar))
        return kind.target(SCHEDULE, x_0=x_0, x_t=x_t, t=t, eps=(x_t - a * x_0) / n)

    return model_fn


def case():
    rng = np.random.default_rng(0)
    x_0 = jnp.asarray(MEAN + STD * rng.standard_normal((T, 3)), jnp.float32)
    eps, t = jnp.asarray(rng.standard_normal((T, 3)), jnp.float32), jnp.arange(T)
    return x_0, eps, t, q_sample(SCHEDULE, x_0=x_0, t=t, eps=eps)


@KINDS
def test_x_0_of_the_target_is_x_0(kind):
    x_0, eps, t, x_t = case()
    got = kind.x_0_hat(SCHEDULE, x_t=x_t, t=t, output=kind.target(SCHEDULE, x_0=x_0, x_t=x_t, t=t, eps=eps))
    # 1/sqrt(alpha-bar) at the last step, over float32's rounding.
    scale = 1 / np.asarray(SCHEDULE.sqrt_alphas_bar)[:, None]
    assert np.all(np.abs(got - x_0) < 8 * 2**-23 * scale * 4)


@KINDS
def test_the_error_of_x_0_is_carried_over(kind):
    """A changed output changes x_0 by what `error_of_x_0` says."""
    _, _, t, x_t = case()
    one, other = (kind.x_0_hat(SCHEDULE, x_t=0 * x_t, t=t, output=jnp.full_like(x_t, value)) for value in (0.0, 1.0))
    np.testing.assert_allclose(
        1 / np.asarray(other - one, np.float64)[:, 0] ** 2, kind.error_of_x_0(SCHEDULE), rtol=2e-3
    )


@KINDS
def test_the_exact_network_has_the_exact_denoiser_and_the_least_loss(kind):
    x_0, eps, t, x_t = case()
    process = Process(SCHEDULE, kind)
    denoised = make_denoiser(process, exact_network(kind), x_0_limit=None)(x_t, t)
    np.testing.assert_allclose(denoised.x_0_hat, posterior_mean(x_t, t), rtol=1e-3, atol=2e-3)
    weights = loss_weights(process, "min_snr")
    losses = make_loss_fn(process, weights=weights)(exact_network(kind), x_0=x_0, t=t, eps=eps)["loss"]
    by_eps = Process(SCHEDULE, "eps")
    same = make_loss_fn(by_eps, weights=loss_weights(by_eps, "min_snr"))
    np.testing.assert_allclose(losses, same(exact_network(EVERY[0]), x_0=x_0, t=t, eps=eps)["loss"], rtol=5e-3)


@KINDS
def test_samples_are_the_same_whatever_is_predicted(kind):
    def draw(kind):
        denoise_fn = make_denoiser(Process(SCHEDULE, kind), exact_network(kind), x_0_limit=None)
        return p_sample_loop(denoise_fn, ddim_table(SCHEDULE), key=jax.random.key(0), num_samples=4, shape=(3,))

    np.testing.assert_allclose(jax.jit(lambda: draw(kind))(), jax.jit(lambda: draw(EVERY[0]))(), atol=2e-3)


def test_the_names_are_those_of_the_objects():
    assert [kind.name for kind in EVERY[:-1]] == list(PREDICTIONS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(prediction="score"), "prediction must be one of"),
        (dict(variance="learnt"), "variance must be one of"),
        (dict(schedule=make_schedule("jsd", num_steps=T)), "prediction='eps' says nothing about x_0 where alpha-bar"),
    ],
)
def test_what_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Process(**{"schedule": SCHEDULE} | fields)


def test_a_network_that_is_told_alpha_bar_need_not_know_the_steps():
    told = []

    def model_fn(x_t, level):
        told.append(level)
        return x_t

    process = Process(SCHEDULE, "v", network_input="alpha_bar")
    steps = np.array([3, 20, 49])
    x_t = jnp.ones((3, 2))
    process.predict(model_fn, x_t, jnp.asarray(steps))
    process.respaced(steps).predict(model_fn, x_t, jnp.arange(3))
    process.predict(model_fn, x_t, jnp.asarray(steps, jnp.float32))
    for levels in told:  # sqrt(alpha-bar) has a relative error of an ulp, its square of two
        np.testing.assert_allclose(levels, SCHEDULE.host_alphas_bar[steps], rtol=5e-7)
    between = process.network_t(jnp.array([20.5]))
    assert SCHEDULE.host_alphas_bar[21] < between[0] < SCHEDULE.host_alphas_bar[20]
    with pytest.raises(UserError, match="network_input must be one of .*got 'log_snr'"):
        Process(SCHEDULE, network_input="log_snr")


def test_a_respaced_process_calls_the_network_with_the_steps_that_it_knows():
    seen = []

    def model_fn(x_t, t):
        seen.append(np.asarray(t).tolist())
        return x_t

    steps = np.array([0, 10, 49])
    process = Process(SCHEDULE, "v").respaced(steps)
    process.predict(model_fn, jnp.zeros((3, 2)), jnp.arange(3))
    assert seen == [[0, 10, 49]] and process.num_steps == 3
    np.testing.assert_allclose(process.schedule.sqrt_alphas_bar, SCHEDULE.sqrt_alphas_bar[steps], rtol=1e-6)
    process.respaced(np.array([0, 2])).predict(model_fn, jnp.zeros((2, 2)), jnp.arange(2))
    assert seen[-1] == [0, 49]
    unsigned = Process(SCHEDULE, "v").respaced(steps.astype(np.uint8)).network_steps
    np.testing.assert_array_equal(unsigned, process.network_steps)
    for bad in ([0, 10, 10], [0.5, 3], [-1, 3], [50], [], "3", None):
        with pytest.raises(UserError, match="the steps to keep must be distinct whole numbers in 0..49; got"):
            Process(SCHEDULE, "v").respaced(np.array(bad))
    falling = Process(SCHEDULE, "v").respaced(steps[::-1])  # as `named_steps` gives them
    np.testing.assert_array_equal(falling.network_steps, process.network_steps)
    np.testing.assert_array_equal(falling.schedule.betas, process.schedule.betas)
    with pytest.raises(UserError, match="prediction='mean' refers to the previous of all T"):
        Process(SCHEDULE, "mean").respaced(steps)


def test_a_train_step_takes_no_time_sampler_of_another_T():
    with pytest.raises(UserError, match=f"time_sampler must be of the {T} steps of the loss's process; got one of 20"):
        DiffusionObjective(nn.Dense(1), make_loss_fn(Process(SCHEDULE)), make_timestep_sampler("uniform", 20))
