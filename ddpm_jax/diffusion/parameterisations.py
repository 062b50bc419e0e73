"""What a network predicts: eps, x_0, v, or the previous mean. To add one, add a class and list it in PARAMETERISATIONS.

Conversions and notation: Ho et al. 2020, sections 3.2 and 3.3; v: Salimans and Ho 2022, section 4.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax.diffusion.forward_process import (
    q_posterior_mean,
    signal_and_noise,
    v_from_x_0,
    x_0_from_eps,
    x_0_from_mean,
    x_0_from_v,
)
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.runtime.errors import UserError, arg

Steps = Int[Array, "B"] | Float[Array, "B"]


class Parameterisation:
    """How a network's output is interpreted. Subclasses define `name`, `target`, `x_0_hat` and `error_of_x_0`."""

    name: str
    fractional = True  # whether the output is defined between two steps

    def check(self, schedule: Schedule) -> None:
        """Raises UserError if the output does not determine x_0 at every step of the schedule."""

    def inputs(
        self, schedule: Schedule, *, x_t: Float[Array, "B *D"], t: Steps, network_t: Steps
    ) -> tuple[Array, Array]:
        """The inputs of the network for x_t and t; `network_t` is the corresponding step of its training."""
        del schedule, t
        return x_t, network_t

    def target(
        self,
        schedule: Schedule,
        *,
        x_0: Float[Array, "B *D"],
        x_t: Float[Array, "B *D"],
        t: Steps,
        eps: Float[Array, "B *D"],
    ) -> Float[Array, "B *D"]:
        """The correct output, that is, the training target."""
        raise NotImplementedError

    def x_0_hat(
        self, schedule: Schedule, *, x_t: Float[Array, "B *D"], t: Steps, output: Float[Array, "B *D"]
    ) -> Float[Array, "B *D"]:
        """The x_0 that an output implies."""
        raise NotImplementedError

    def error_of_x_0(self, schedule: Schedule) -> np.ndarray:
        """[T], float64: squared error of the output divided by the resulting squared error of x_0."""
        raise NotImplementedError


class Eps(Parameterisation):
    """The noise (Ho et al. 2020, equation 11)."""

    name = "eps"

    def check(self, schedule: Schedule) -> None:
        """Raises UserError if alpha-bar falls to 0."""
        # 1/sqrt(alpha-bar) of float32 would be inf, and x_0_hat = inf - inf.
        if schedule.host_alphas_bar[-1] < float(jnp.finfo(jnp.float32).max) ** -2:
            raise UserError(
                f"{arg('prediction')}='eps' says nothing about x_0 where alpha-bar falls to 0, as at this "
                "schedule's last step: predict 'x_0' or 'v', or take another schedule"
            )

    def target(self, schedule: Schedule, *, x_0: Array, x_t: Array, t: Array, eps: Array) -> Array:
        """eps."""
        return eps

    def x_0_hat(self, schedule: Schedule, *, x_t: Array, t: Array, output: Array) -> Array:
        """(x_t - sqrt(1 - alpha-bar_t) eps) / sqrt(alpha-bar_t)."""
        if jnp.issubdtype(t.dtype, jnp.integer):
            return x_0_from_eps(schedule, x_t=x_t, t=t, eps=output)
        signal, noise = signal_and_noise(schedule, t, x_t.ndim)
        return (x_t - noise * output) / signal

    def error_of_x_0(self, schedule: Schedule) -> np.ndarray:
        """The signal-to-noise ratio."""
        return _snr(schedule)


class CleanImage(Parameterisation):
    """x_0 itself."""

    name = "x_0"

    def target(self, schedule: Schedule, *, x_0: Array, x_t: Array, t: Array, eps: Array) -> Array:
        """x_0."""
        return x_0

    def x_0_hat(self, schedule: Schedule, *, x_t: Array, t: Array, output: Array) -> Array:
        """The output itself."""
        return output

    def error_of_x_0(self, schedule: Schedule) -> np.ndarray:
        """1."""
        return np.ones_like(schedule.host_alphas_bar)


class Velocity(Parameterisation):
    """v = sqrt(alpha-bar_t) eps - sqrt(1 - alpha-bar_t) x_0 (Salimans and Ho 2022, section 4)."""

    name = "v"

    def target(self, schedule: Schedule, *, x_0: Array, x_t: Array, t: Array, eps: Array) -> Array:
        """v."""
        if jnp.issubdtype(t.dtype, jnp.integer):
            return v_from_x_0(schedule, x_0=x_0, t=t, eps=eps)
        signal, noise = signal_and_noise(schedule, t, x_0.ndim)
        return signal * eps - noise * x_0

    def x_0_hat(self, schedule: Schedule, *, x_t: Array, t: Array, output: Array) -> Array:
        """sqrt(alpha-bar_t) x_t - sqrt(1 - alpha-bar_t) v."""
        if jnp.issubdtype(t.dtype, jnp.integer):
            return x_0_from_v(schedule, x_t=x_t, t=t, v=output)
        signal, noise = signal_and_noise(schedule, t, x_t.ndim)
        return signal * x_t - noise * output

    def error_of_x_0(self, schedule: Schedule) -> np.ndarray:
        """The signal-to-noise ratio + 1."""
        return _snr(schedule) + 1


class PreviousMean(Parameterisation):
    """mu-tilde(x_t, x_0), the mean of x_(t-1) (Ho et al. 2020, equation 7); only at whole steps."""

    name = "mean"
    fractional = False

    def target(self, schedule: Schedule, *, x_0: Array, x_t: Array, t: Array, eps: Array) -> Array:
        """mu-tilde(x_t, x_0)."""
        return q_posterior_mean(schedule, x_0=x_0, x_t=x_t, t=t)

    def x_0_hat(self, schedule: Schedule, *, x_t: Array, t: Array, output: Array) -> Array:
        """The x_0 whose mu-tilde is the output."""
        if not jnp.issubdtype(t.dtype, jnp.integer):
            raise ValueError("the previous mean is only defined at whole steps t; got fractional steps")
        return x_0_from_mean(schedule, x_t=x_t, t=t, mean=output)

    def error_of_x_0(self, schedule: Schedule) -> np.ndarray:
        """The square of the coefficient of x_0 in mu-tilde."""
        return np.asarray(schedule.posterior_mean_coef_x_0, np.float64) ** 2


def _snr(schedule: Schedule) -> np.ndarray:
    """alpha-bar_t / (1 - alpha-bar_t)."""
    return schedule.host_alphas_bar / schedule.host_one_minus_alphas_bar


PARAMETERISATIONS = {kind.name: kind() for kind in (Eps, CleanImage, Velocity, PreviousMean)}
PREDICTIONS = tuple(PARAMETERISATIONS)
