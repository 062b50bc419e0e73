"""Averages of the parameters with the profile of a power function (Karras et al. 2024, section 3.1).

theta_hat(t) = int_0^t p(tau) theta(tau) dtau, where p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) is the profile. The
length of an average is `std`, the paper's sigma_rel: the standard deviation of p as a share of t. t counts updates from
1.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax.runtime.errors import UserError, arg

MIN_STD = 0.001
MAX_STD = 12**-0.5  # that of gamma = 0, the plain mean of all updates
# Of the lengths of two averages. Nearer ones are almost the same average (at 0.1 the profiles differ by less than 4.5%
# in the L2 norm), and other lengths would be made of large multiples of their difference, in which rounding is large.
MIN_RATIO = 1.05


def std_of_gamma(gamma: float) -> float:
    """sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2), the standard deviation of p as a share of t.

    Karras et al. 2024, section 3.1.

    Example:
      >>> round(std_of_gamma(6.94), 4)
      0.1
    """
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of_std(std: float) -> float:
    """The largest real root of gamma^3 + 7 gamma^2 + (16 - std^-2) gamma + 12 - std^-2.

    Karras et al. 2024, algorithm 2: the inverse of `std_of_gamma`.

    Raises:
      UserError: std outside [0.001, 12^-0.5), where gamma is from above 0 to about 1000.

    Example:
      >>> round(gamma_of_std(0.05), 2)
      16.97
    """
    if not isinstance(std, numbers.Real) or not MIN_STD <= std < MAX_STD:
        raise UserError(
            f"{arg('std')} must be in [{MIN_STD}, {MAX_STD:.4f}), the standard deviation of an average's profile as a "
            f"share of the run; got {std!r}"
        )
    inverse = std**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    # All three are real. Where two of them are close, rounding may make these a conjugate pair; both are below -1.
    return float(roots.real.max())


@dataclass(frozen=True)
class PowerDecay:
    """Update number (from 0) -> the decay beta(t) = (1 - 1/t)^(gamma + 1), where t is that number plus 1.

    Karras et al. 2024, section 3.1. With it the recursion gives update k the weight (k/t)^(gamma + 1) -
    ((k - 1)/t)^(gamma + 1): exactly the integral of p over (k - 1, k], also for small t.
    """

    gamma: float

    def share_of_new(self, n: Int[Array, ""] | int) -> Float[Array, ""]:
        """1 - beta(t), to all digits of float32: 1/t is below them where t is in the millions."""
        t = jnp.asarray(n, jnp.float32) + 1.0
        return -jnp.expm1((self.gamma + 1.0) * jnp.log1p(-1.0 / t))

    def __call__(self, n: Int[Array, ""] | int) -> Float[Array, ""]:
        """beta(t), rounded to float32."""
        return 1.0 - self.share_of_new(n)


def std_name(std: float) -> str:
    """The name of the average of this length: "std_" and the shortest text that reads back as it, "std_0.05"."""
    return f"std_{float(std)!r}"


def make_power_averages(stds: Sequence[float]) -> dict[str, PowerDecay]:
    """Name of each average -> its decay, one average per length in `stds`; for `make_train_step` and `init_state`.

    Raises:
      UserError: a length outside [0.001, 12^-0.5), a duplicate, or two that differ by less than a factor of 1.05.

    Example:
      >>> list(make_power_averages([0.05, 0.1]))
      ['std_0.05', 'std_0.1']
    """
    decays = [PowerDecay(gamma_of_std(std)) for std in stds]
    by_name = dict(zip(map(std_name, stds), decays, strict=True))
    if len(by_name) < len(stds):
        raise UserError(f"{arg('stds')} must be different lengths; got {tuple(stds)}")
    ordered = sorted(stds)
    for shorter, longer in zip(ordered, ordered[1:], strict=False):
        if longer < MIN_RATIO * shorter * (1 - 1e-12):  # 1.05 itself may round to either side
            raise UserError(
                f"{arg('stds')} must differ by a factor of at least {MIN_RATIO}, so that other lengths can be made of "
                f"them; got {shorter} and {longer}"
            )
    return by_name
