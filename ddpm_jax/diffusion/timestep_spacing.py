"""The steps that a sampler visits: lists of t by rule or by name, and the resulting grid of noise levels."""

from dataclasses import dataclass

import numpy as np

from ddpm_jax.diffusion.schedules import Schedule, schedule_from_betas
from ddpm_jax.runtime.errors import UserError, arg, check_one_of

SPACINGS = ("uniform", "dpm_uniform", "quadratic", "ddim_quadratic", "leading", "trailing", "log_snr", "karras")


def spaced_steps(
    num_steps: int, num_sampler_steps: int, spacing: str = "uniform", *, schedule: Schedule | None = None
) -> np.ndarray:
    """The steps t that a sampler visits, decreasing, exactly `num_sampler_steps` of them, int64 or float64 [S].

    "uniform": evenly spaced, T-1 and 0 among them ("linspace" of diffusers). "dpm_uniform": evenly spaced from T-1, of
    S + 1 such steps all but 0 (the default of diffusers for DPM-Solver++ and UniPC). "quadratic": the same for sqrt(t),
    denser near 0 (Song et al. 2021, appendix D.2). "ddim_quadratic": floor of that up to t = 0.8 T alone, as the
    DDIM code has it. "leading": multiples of floor(T/S), from 0. "trailing": multiples of T/S counted down from T,
    minus 1 (both: Lin et al. 2024, table 2). "log_snr": evenly spaced in the log SNR (Lu et al. 2022). "karras":
    sigma = sqrt(1 - abar)/sqrt(abar) evenly spaced in sigma^(1/7) (Karras et al. 2022, equation 5). The last two
    run from T-1 to 0 and give fractional steps.

    Args:
      num_steps: T.
      num_sampler_steps: S in 1..T; 1 gives [T-1] where the spacing ends at T-1.
      schedule: for "log_snr" and "karras".

    Raises:
      UserError: S outside 1..T, an unknown spacing, or one that would visit a step twice.

    Example:
      >>> spaced_steps(1000, 5)
      array([999, 749, 500, 250,   0])
    """
    check_one_of("spacing", spacing, SPACINGS)
    if not 1 <= num_sampler_steps <= num_steps:
        raise UserError(f"{arg('num_sampler_steps')} must be in 1..{num_steps} (T); got {num_sampler_steps}")
    fractions = np.linspace(1, 0, num_sampler_steps) if num_sampler_steps > 1 else np.ones(1)
    if spacing in ("log_snr", "karras"):
        return _by_noise_level(schedule, fractions, spacing)
    if spacing == "leading":
        steps = np.arange(num_sampler_steps)[::-1] * (num_steps // num_sampler_steps)
    elif spacing == "trailing":
        steps = np.rint(num_steps - np.arange(num_sampler_steps) * (num_steps / num_sampler_steps)) - 1
    elif spacing == "dpm_uniform":
        steps = np.rint(np.linspace(0, num_steps - 1, num_sampler_steps + 1))[:0:-1]
    elif spacing == "ddim_quadratic":
        steps = np.floor((fractions * np.sqrt(0.8 * num_steps)) ** 2)
    elif spacing == "quadratic":
        steps = np.rint((num_steps - 1) * fractions**2)
    else:  # from below, so that ties are rounded as in np.linspace
        first = 0 if num_sampler_steps > 1 else num_steps - 1
        steps = np.rint(np.linspace(first, num_steps - 1, num_sampler_steps))[::-1]
    if np.any(np.diff(steps) >= 0):
        raise UserError(
            f"{arg('spacing')}={spacing!r} with {num_sampler_steps} of {num_steps} steps would visit a step "
            f"twice: take fewer {arg('num_sampler_steps')} or 'uniform'"
        )
    return steps.astype(np.int64)


def _by_noise_level(schedule: Schedule | None, fractions: np.ndarray, spacing: str) -> np.ndarray:
    if schedule is None:
        raise ValueError(f"spacing {spacing!r} needs the schedule")
    levels = host_half_log_snr(schedule)
    if not np.isfinite(levels[-1]):
        raise UserError(
            f"{arg('spacing')}={spacing!r} has no grid if alpha-bar falls to 0: take 'uniform' or 'trailing'"
        )
    if spacing == "log_snr":
        wanted = levels[0] + fractions * (levels[-1] - levels[0])
    else:
        roots = np.exp(-levels[[0, -1]] / 7)  # sigma^(1/rho), rho = 7
        wanted = -7 * np.log(roots[0] + fractions * (roots[1] - roots[0]))
    return step_at_half_log_snr(schedule, wanted)


def named_steps(num_steps: int, name: str) -> np.ndarray:
    """The steps of a `timestep_respacing` text of the improved-DDPM code, falling int64 [S].

    "250": that many steps; "10,15,20": the number in each of the equal sections of 0..T-1, each from the section's
    first step to its last. "ddim50": 0, k, 2k, ... for the whole number k that gives exactly 50 steps; the
    noisiest steps are then left out (t = 980 is the last of "ddim50" at T = 1000). "t=999,500,0": these.

    Raises:
      UserError: text of another form, more steps than a section has, or a count that no k gives.
    """
    form = f"{arg('name')} must be such as '250', '10,15,20' (steps per section), 'ddim50' or 't=999,500,0'"
    text = name.strip()
    if text.startswith("t="):
        steps = np.array([_whole(part, f"{form}; got {name!r}") for part in text.removeprefix("t=").split(",")])
        _check_whole(steps, num_steps)
        return steps
    if text.startswith("ddim"):
        count = _whole(text.removeprefix("ddim"), f"{form}; got {name!r}")
        counts = {len(range(0, num_steps, k)): k for k in range(max(num_steps - 1, 1), 0, -1)}
        if count not in counts:
            near = sorted(sorted(counts), key=lambda n: abs(n - count))[:2]
            raise UserError(
                f"{arg('name')}={name!r}: no whole stride visits exactly {count} of {num_steps} steps; the nearest are "
                f"{' and '.join(f'ddim{n}' for n in sorted(near))}; {arg('num_sampler_steps')} takes any number"
            )
        return np.arange(0, num_steps, counts[count])[::-1]
    section_counts = [_whole(part, f"{form}; got {name!r}") for part in text.split(",")]
    size, extra = divmod(num_steps, len(section_counts))
    first, steps = 0, []
    for i, count in enumerate(section_counts):
        length = size + (1 if i < extra else 0)
        if not 1 <= count <= length:
            raise UserError(
                f"{arg('name')}={name!r}: section {i + 1} has {length} of the {num_steps} steps, of which "
                f"{count} cannot be taken; give 1 to {length}"
            )
        stride, at = ((length - 1) / (count - 1) if count > 1 else 1.0), 0.0
        for _ in range(count):
            steps.append(first + round(at))
            at += stride  # summed, not multiplied, so that ties round as in the original code
        first += length
    return np.array(steps)[::-1]


def _whole(text: str, message: str) -> int:
    if not text.strip().isdecimal():
        raise UserError(message)
    return int(text)


def respaced(schedule: Schedule, steps: np.ndarray) -> Schedule:
    """The schedule of only the kept steps: its step i has the alpha-bar of the i-th kept step, counted from 0.

    beta_i = 1 - alpha-bar_(S_i) / alpha-bar_(S_(i-1)) (Nichol and Dhariwal 2021, equation 19). The network is still
    called with the t that it was trained on, the i-th of the sorted steps.

    Args:
      steps: the t to keep, distinct whole numbers in 0..T-1, in any order.

    Raises:
      UserError: the steps are not of this kind.
    """
    kept = schedule.host_alphas_bar[kept_steps(schedule.num_steps, steps)]
    return schedule_from_betas(1 - kept / np.append(1.0, kept[:-1]))


def kept_steps(num_steps: int, steps: np.ndarray) -> np.ndarray:
    """Distinct whole numbers in 0..T-1, sorted, int64; see `respaced`."""
    given = np.asarray(steps)
    if given.ndim == 1 and given.size and given.dtype.kind in "iuf":
        kept = np.unique(given)
        if kept.size == given.size and np.all(kept == np.rint(kept)) and 0 <= kept[0] and kept[-1] < num_steps:
            return kept.astype(np.int64)
    raise UserError(f"the steps to keep must be distinct whole numbers in 0..{num_steps - 1}; got {given.tolist()}")


def host_half_log_snr(schedule: Schedule) -> np.ndarray:
    """log(sqrt(alpha-bar) / sqrt(1 - alpha-bar)) in float64, [T], decreasing; -inf where alpha-bar is 0."""
    with np.errstate(divide="ignore"):
        return 0.5 * np.log(schedule.host_alphas_bar / schedule.host_one_minus_alphas_bar)


def step_at_half_log_snr(schedule: Schedule, half_log_snr: np.ndarray) -> np.ndarray:
    """The fractional t in 0..T-1 with that log SNR, which is linear between two whole steps; float64."""
    return np.interp(-half_log_snr, -host_half_log_snr(schedule), np.arange(schedule.num_steps))


@dataclass(frozen=True)
class TimeGrid:
    """The points of a sampler's path, noisiest first, x_0 last: float64 [S+1] on the host.

    x at point i is alphas[i] x_0 + sigmas[i] eps; alphas^2 = alpha-bar, sigmas^2 = 1 - alpha-bar.
    """

    t: np.ndarray  # the last is -1: the clean image
    alphas: np.ndarray
    sigmas: np.ndarray

    @property
    def num_steps(self) -> int:
        """S, the number of steps between points."""
        return len(self.t) - 1

    def transitions(self) -> tuple[np.ndarray, ...]:
        """alpha-bar_t, alpha-bar_s, and alpha and beta of the step between, [S] each."""
        abar = self.alphas**2
        alpha = abar[:-1] / abar[1:]
        return abar[:-1], abar[1:], alpha, 1 - alpha


def time_grid(schedule: Schedule, steps: np.ndarray | None = None) -> TimeGrid:
    """The grid of the steps t, decreasing in 0..T-1, whole or fractional; all T if `steps` is None.

    Raises:
      UserError: the steps do not decrease, or are outside 0..T-1.
    """
    t = np.arange(schedule.num_steps)[::-1] if steps is None else np.asarray(steps)
    if np.issubdtype(t.dtype, np.floating) and not np.all(t == np.rint(t)):
        last = schedule.num_steps - 1
        if t.ndim != 1 or not np.all(np.isfinite(t)) or np.any(np.diff(t) >= 0) or t[0] > last or t[-1] < 0:
            raise UserError(f"the sampler's steps must be decreasing numbers in 0..{last}; got {t.tolist()}")
        half_log_snr = np.interp(t, np.arange(schedule.num_steps), host_half_log_snr(schedule))
        alphas, sigmas = ((1 + np.exp(sign * 2 * half_log_snr)) ** -0.5 for sign in (-1, 1))
    else:
        _check_whole(t, schedule.num_steps)
        t = t.astype(np.int64)
        alphas, sigmas = np.sqrt(schedule.host_alphas_bar[t]), np.sqrt(schedule.host_one_minus_alphas_bar[t])
    return TimeGrid(np.append(t, -1), np.append(alphas, 1.0), np.append(sigmas, 0.0))


def _check_whole(steps: np.ndarray, num_steps: int) -> None:
    whole = steps.ndim == 1 and steps.size >= 1 and steps.dtype.kind in "iuf" and np.all(steps == np.rint(steps))
    if not whole or np.any(steps[1:] >= steps[:-1]) or steps[0] >= num_steps or steps[-1] < 0:
        raise UserError(
            f"the sampler's steps must be decreasing whole numbers in 0..{num_steps - 1}; got {steps.tolist()}"
        )
