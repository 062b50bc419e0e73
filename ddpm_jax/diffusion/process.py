"""The process: a noise schedule, what the network predicts, and the variance of p, as one object."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax.diffusion.forward_process import at_step, signal_and_noise, unsigned
from ddpm_jax.diffusion.parameterisations import PARAMETERISATIONS, PREDICTIONS, Parameterisation, Steps
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.timestep_spacing import kept_steps, respaced
from ddpm_jax.runtime.errors import UserError, check_one_of

FIXED_VARIANCES = ("fixed_small", "fixed_large")
LEARNED_VARIANCES = ("learned", "learned_range")
VARIANCES = FIXED_VARIANCES + LEARNED_VARIANCES
NETWORK_INPUTS = ("t", "alpha_bar")

ModelFn = Callable[[Float[Array, "B *D C"], Steps], Float[Array, "B *D C_out"]]


class Prediction(NamedTuple):
    """The output of a network, split."""

    value: Float[Array, "B *D"]  # interpreted by the parameterisation
    var_values: Float[Array, "B *D"] | None = None  # if the variance is learned: interpreted by `Process.log_var`
    reference: Float[Array, "B *D"] | None = None  # of CFG++: the value of the guide's reference


@dataclass(frozen=True)
class Process:
    """q and p of a diffusion model, except for the network (Ho et al. 2020, section 2).

    Attributes:
      schedule: the noise levels of the T steps.
      prediction: what the network predicts, one of `PREDICTIONS`: "eps", "x_0", "v" or "mean" (the mean of x_(t-1),
        only whole steps); or your own `Parameterisation`.
      variance: of p(x_(t-1) | x_t), one of `VARIANCES`; see `log_var`. If it is learned, the network outputs twice as
        many channels as x_t has, the prediction first.
      network_steps: [T] the t that the network is called with at each step; None: the step itself. See `respaced`.
      network_input: what the network is told of the noise, one of `NETWORK_INPUTS`: "t", the step, or "alpha_bar",
        alpha-bar_t in [0, 1], so that a trained network also fits a schedule of other steps (Chen et al. 2021,
        "WaveGrad", section 2.2; Saharia et al. 2022, "Palette", section 3). Differs: alpha-bar is that of a whole step
        in training; they draw it between those of two steps.

    Raises:
      UserError: an unknown prediction, variance or network input; "eps" if alpha-bar falls to 0, as with "jsd".

    Example:
      >>> from ddpm_jax.diffusion.schedules import make_schedule
      >>> process = Process(make_schedule("cosine", num_steps=10), prediction="v")
      >>> process.num_steps, process.respaced(np.array([0, 4, 9])).num_steps
      (10, 3)
    """

    schedule: Schedule
    prediction: str | Parameterisation = "eps"
    variance: str = "fixed_large"
    network_steps: np.ndarray | None = None
    network_input: str = "t"

    def __post_init__(self) -> None:
        if not isinstance(self.prediction, Parameterisation):
            check_one_of("prediction", self.prediction, PREDICTIONS)
        check_one_of("variance", self.variance, VARIANCES)
        check_one_of("network_input", self.network_input, NETWORK_INPUTS)
        self.parameterisation.check(self.schedule)

    @functools.cached_property
    def parameterisation(self) -> Parameterisation:
        """How the network's output is interpreted."""
        given = self.prediction
        return given if isinstance(given, Parameterisation) else PARAMETERISATIONS[given]

    @property
    def num_steps(self) -> int:
        """T."""
        return self.schedule.num_steps

    @property
    def learns_variance(self) -> bool:
        """Whether the network predicts the variance."""
        return self.variance in LEARNED_VARIANCES

    def levels(self, t: Steps, *, ndim: int) -> tuple[Float[Array, "B ..."], Float[Array, "B ..."]]:
        """sqrt(alpha-bar_t) and sqrt(1 - alpha-bar_t), each [B, 1, ..., 1]; t = -1 is the clean image: 1 and 0."""
        signal, noise = signal_and_noise(self.schedule, jnp.maximum(t, 0), ndim)
        clean = (t < 0).reshape(signal.shape)
        return jnp.where(clean, 1.0, signal), jnp.where(clean, 0.0, noise)

    def respaced(self, steps: np.ndarray) -> "Process":
        """The process of some of the steps, in any order: its step i is the i-th smallest of them, and the network is
        called with that; see `timestep_spacing.respaced`.

        Raises:
          UserError: a prediction that refers to the previous one of all T steps.
        """
        if not self.parameterisation.fractional:
            raise UserError(
                f"prediction={self.parameterisation.name!r} refers to the previous of all T steps; a process of fewer "
                "steps has other steps: leave the respacing out"
            )
        steps = kept_steps(self.num_steps, steps)
        of_network = steps if self.network_steps is None else self.network_steps[steps]
        schedule = respaced(self.schedule, steps)
        return dataclasses.replace(self, schedule=schedule, network_steps=np.asarray(of_network, np.int32))

    def network_t(self, t: Steps) -> Steps:
        """What a network is called with at step t; see `network_steps` and `network_input`."""
        if self.network_input == "alpha_bar":
            return signal_and_noise(self.schedule, t, 1)[0] ** 2
        return t if self.network_steps is None else jnp.take(jnp.asarray(self.network_steps), unsigned(t))

    def predict(self, model_fn: ModelFn, x_t: Float[Array, "B *D C"], t: Steps) -> Prediction:
        """The network's output at x_t and t: int32 [B], or float32 [B] for fractional steps.

        Raises:
          ValueError: the number of output channels does not fit the variance.
        """
        inputs = self.parameterisation.inputs(self.schedule, x_t=x_t, t=t, network_t=self.network_t(t))
        return self.split(model_fn(*inputs), num_channels=x_t.shape[-1])

    def split(self, output: Float[Array, "B *D C_out"], *, num_channels: int) -> Prediction:
        """The parts of an output; with a learned variance the last axis contains both.

        Raises:
          ValueError: the number of channels does not fit.
        """
        wanted = num_channels * (2 if self.learns_variance else 1)
        if output.shape[-1] != wanted:
            raise ValueError(
                f"with {num_channels} channels and variance={self.variance!r} the network must give {wanted} channels; "
                f"got {output.shape[-1]}"
            )
        if self.learns_variance:
            return Prediction(output[..., :num_channels], output[..., num_channels:])
        return Prediction(output)

    def target(
        self,
        *,
        x_0: Float[Array, "B *D"],
        x_t: Float[Array, "B *D"],
        t: Steps,
        eps: Float[Array, "B *D"],
    ) -> Float[Array, "B *D"]:
        """The correct prediction, that is, the training target."""
        return self.parameterisation.target(self.schedule, x_0=x_0, x_t=x_t, t=t, eps=eps)

    def change_of_value(
        self, *, x_0: Float[Array, "B *D"], eps: Float[Array, "B *D"], t: Steps
    ) -> Float[Array, "B *D"]:
        """By how much the prediction changes if x_0 and eps change by this much, and x_t does not."""
        return self.target(x_0=x_0, x_t=jnp.zeros_like(x_0), t=t, eps=eps)  # it is linear in all three

    def x_0_hat(self, value: Float[Array, "B *D"], *, x_t: Float[Array, "B *D"], t: Steps) -> Float[Array, "B *D"]:
        """The x_0 that a prediction implies, without clipping."""
        return self.parameterisation.x_0_hat(self.schedule, x_t=x_t, t=t, output=value)

    def log_var(
        self, t: Int[Array, "B"], *, ndim: int, var_values: Float[Array, "B *D"] | None = None
    ) -> Float[Array, "B ..."]:
        """log sigma_t^2 of p(x_(t-1) | x_t), [B, 1, ..., 1] if fixed (Ho et al. 2020, section 3.2), else [B, *D].

        "fixed_small" is beta-tilde_t, "fixed_large" beta_t, both repaired at t=0. "learned": `var_values` is the log
        variance itself. "learned_range": with u = (var_values + 1)/2, u log beta_t + (1 - u) log beta-tilde_t,
        beta-tilde repaired at t=0 (Nichol and Dhariwal 2021, equation 15); u is not limited to [0, 1].

        Args:
          var_values: those of the `Prediction`, for learned variances.
        """
        schedule = self.schedule
        if self.variance == "learned":
            return var_values
        if self.variance == "learned_range":
            shift, scale = learned_range(schedule.log_var_fixed_small, schedule.log_betas)
            return at_step(shift, t, ndim) + at_step(scale, t, ndim) * var_values
        table = schedule.log_var_fixed_small if self.variance == "fixed_small" else schedule.log_var_fixed_large
        return at_step(table, t, ndim)


def learned_range(log_small: Array | np.ndarray, log_large: Array | np.ndarray) -> tuple:
    """(shift, scale) with shift + scale * v = log_small at v = -1 and log_large at v = 1."""
    return (log_large + log_small) / 2, (log_large - log_small) / 2
