"""Weights by step: one objective whatever the network predicts, and the papers' formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.forward_process import q_posterior_mean, q_sample, v_from_x_0
from ddpm_jax.diffusion.loss_weights import loss_weights
from ddpm_jax.diffusion.losses import make_loss_fn
from ddpm_jax.diffusion.parameterisations import Eps
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.runtime.errors import UserError

SCHEDULE = make_schedule("cosine", num_steps=50)
SNR = SCHEDULE.host_alphas_bar / (1 - SCHEDULE.host_alphas_bar)


def test_formulas():
    np.testing.assert_allclose(
        loss_weights(Process(SCHEDULE, prediction="eps"), "min_snr"), np.minimum(SNR, 5) / SNR, rtol=1e-6
    )
    np.testing.assert_allclose(
        loss_weights(Process(SCHEDULE, prediction="v"), "min_snr", min_snr_gamma=2.0),
        np.minimum(SNR, 2) / (SNR + 1),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        loss_weights(Process(SCHEDULE, prediction="eps"), "p2", p2_gamma=0.5, p2_k=2.0), (2 + SNR) ** -0.5, rtol=1e-6
    )
    np.testing.assert_allclose(loss_weights(Process(SCHEDULE), "p2", p2_gamma=0.0), 1, rtol=1e-6)
    assert loss_weights(Process(SCHEDULE), "none") is None


@pytest.mark.parametrize("weighting", ["min_snr", "p2"])
def test_the_weighted_loss_does_not_depend_on_what_is_predicted(weighting):
    """An x_0_hat, told as x_0, eps, v or previous mean, costs the same."""
    rng = np.random.default_rng(0)
    t = jnp.array([1, 10, 30, 48])
    x_0, eps, off = (jnp.asarray(rng.standard_normal((4, 6)), jnp.float32) for _ in range(3))
    x_t, x_0_hat = q_sample(SCHEDULE, x_0=x_0, t=t, eps=eps), x_0 + 0.5 * off
    bar = jnp.asarray(SCHEDULE.alphas_bar)[t][:, None]
    eps_hat = (x_t - jnp.sqrt(bar) * x_0_hat) / jnp.sqrt(1 - bar)
    told = {
        "x_0": x_0_hat,
        "eps": eps_hat,
        "v": v_from_x_0(SCHEDULE, x_0=x_0_hat, t=t, eps=eps_hat),
        "mean": q_posterior_mean(SCHEDULE, x_0=x_0_hat, x_t=x_t, t=t),
    }
    losses = []
    for prediction, output in told.items():
        weights = loss_weights(Process(SCHEDULE, prediction=prediction), weighting)
        loss_fn = make_loss_fn(Process(SCHEDULE, prediction=prediction), weights=weights)
        losses.append(loss_fn(lambda x_t, t: output, x_0=x_0, t=t, eps=eps)["loss"])  # noqa: B023
    # The error of the previous mean is a small difference of numbers of order 1 at t = 1 and 48.
    for loss in losses[1:]:
        np.testing.assert_allclose(loss, losses[0], rtol=2e-3)


def test_refusals():
    for settings, message in (
        (dict(weighting="snr"), "weighting must be one of"),
        (dict(weighting="min_snr", min_snr_gamma=0.0), "min_snr_gamma must be above 0; got 0.0"),
        (dict(weighting="p2", p2_k=0.0), "p2_k must be above 0; got 0.0"),
        (dict(weighting="p2", p2_gamma=-1.0), "p2_gamma must be at least 0; got -1.0"),
    ):
        with pytest.raises(UserError, match=message):
            loss_weights(Process(SCHEDULE), **settings)
    noisy = make_schedule("linear", num_steps=100, zero_terminal_snr=True)

    class OneOfOnesOwn(Eps):
        def check(self, schedule):
            pass

    with pytest.raises(UserError, match="infinite where alpha-bar falls to 0: predict 'x_0' or 'v'"):
        loss_weights(Process(noisy, prediction=OneOfOnesOwn()), "min_snr")
    assert np.all(np.isfinite(loss_weights(Process(noisy, prediction="v"), "min_snr")))
