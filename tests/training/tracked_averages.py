"""Averages of a trajectory by `update_averages`, for tests."""

import jax
import jax.numpy as jnp

from ddpm_jax.training.optimizer import update_averages

ROUNDING = 2.0**-24  # of float32


def history(decays, trajectory):
    """The averages after each of theta(1), theta(2), ..., from a start that they must forget; all are [T, ...]."""

    def update(ema, n_and_theta):
        n, theta = n_and_theta
        ema = update_averages(ema, theta, n, decays)
        return ema, ema

    trajectory = jnp.asarray(trajectory, jnp.float32)
    start = {name: jnp.full(trajectory.shape[1:], 100.0) for name in decays}
    return jax.device_get(jax.jit(lambda x: jax.lax.scan(update, start, (jnp.arange(len(x)), x))[1])(trajectory))


def tracked(decays, trajectory):
    """The averages after the last step, [...]."""
    return {name: average[-1] for name, average in history(decays, trajectory).items()}
