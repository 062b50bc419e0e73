"""The average of any length, as a sum of stored averages (post-hoc EMA; Karras et al. 2024, section 3.2, appendix C).

Least squares: the profile of the wanted average is approximated by a sum of the profiles of the stored ones, and the
parameters are combined with the same weights.
"""

from collections.abc import Sequence

import numpy as np

from ddpm_jax.runtime.errors import UserError, arg
from ddpm_jax.training.power_averages import gamma_of_std

Numbers = np.ndarray | np.generic | float

# The largest error that is accepted, a share of the length (L2 norm) of the wanted profile; docs/post_hoc_ema.md.
MAX_PROFILE_ERROR = 0.05
# The largest `rounding_error` that is accepted. Products of GPUs and TPUs round the parameters by 2^-11 (TF32) or 2^-9
# (bfloat16) of themselves; this is a fifth of the smaller one.
MAX_ROUNDING_ERROR = 1e-4


def profile_products(t_a: Numbers, gamma_a: Numbers, t_b: Numbers, gamma_b: Numbers) -> Numbers:
    """int p_a(tau) p_b(tau) dtau of profiles p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t], broadcast.

    Karras et al. 2024, equation 151: (gamma_a + 1)(gamma_b + 1)/(gamma_a + gamma_b + 1) * r^gamma / max(t_a, t_b),
    where r = min(t_a, t_b)/max(t_a, t_b), and gamma is that of the later profile. r <= 1, so nothing overflows.
    """
    latest = np.maximum(t_a, t_b)
    ratio, gamma = np.minimum(t_a, t_b) / latest, np.where(t_a < t_b, gamma_b, gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * ratio**gamma / latest


def post_hoc_weights(steps: Sequence[int], stds: Sequence[float], *, step: int, std: float) -> tuple[np.ndarray, float]:
    """The weights X with which stored averages give that of length `std` at `step`, and the error of its profile.

    X minimises |sum_i X_i p_i - p| (L2 norm; Karras et al. 2024, algorithm 3) and is then divided by its sum, as in the
    authors' code, so that a constant parameter stays what it is. The error is |sum_i X_i p_i - p|/|p| after that.

    Differs: A X = B is solved for profiles that are divided by their L2 norm. A then has ones on its diagonal and a
    condition number of 6e4 for 50 equally spaced steps and 1e6 for 100, with stds of 0.05 and 0.1.

    Args:
      steps: of the stored averages, from 1 on, none after `step`; one entry for each average.
      stds: their lengths, as many; no pair may be there twice.

    Raises:
      UserError: a length outside [0.001, 12^-0.5), or stored profiles that float64 cannot tell apart.
      ValueError: steps and lengths that do not fit together.

    Example:
      >>> X, error = post_hoc_weights([500, 1000, 500, 1000], [0.05, 0.05, 0.1, 0.1], step=1000, std=0.1)
      >>> X.round(6).tolist(), error < 1e-6
      ([0.0, 0.0, 0.0, 1.0], True)
    """
    pairs = list(zip(steps, stds, strict=True))
    if not pairs or len(set(pairs)) < len(pairs) or not 1 <= min(steps) <= max(steps) <= step:
        raise ValueError(f"steps must be in 1..{step}, and no pair of step and std twice; got {pairs}")
    t, gammas = np.asarray(steps, np.float64), np.array([gamma_of_std(one) for one in stds])
    gamma = gamma_of_std(std)
    norms = np.sqrt(profile_products(t, gammas, t, gammas))
    norm = np.sqrt(profile_products(np.float64(step), gamma, np.float64(step), gamma))
    gram = profile_products(t[:, None], gammas[:, None], t, gammas) / (norms[:, None] * norms)
    target = profile_products(t, gammas, np.float64(step), gamma) / (norms * norm)
    try:
        scaled = np.linalg.solve(gram, target)  # X_i norms_i/norm
    except np.linalg.LinAlgError:
        raise UserError(
            f"{arg('stds')} must be lengths whose averages can be told apart; got {sorted(set(stds))}"
        ) from None
    weights = scaled / norms * norm
    total = weights.sum()
    weights, scaled = weights / total, scaled / total
    squared = scaled @ gram @ scaled - 2 * scaled @ target + 1
    return weights, float(np.sqrt(max(squared, 0.0)))


def rounding_error(weights: Numbers) -> float:
    """2^-24 sum_i |X_i|: the most by which a sum of float32 averages is off, as a share of the largest |average_i|.

    It counts one rounding of each stored average. Their own updates round as well, more in longer runs.

    Example:
      >>> rounding_error(np.array([3.0, -2.0])) == 5 * 2**-24
      True
    """
    return float(np.abs(weights).sum() * 2.0**-24)
