"""Noise schedules: from a name to beta_t to a `Schedule`, the [T] tables of the forward process.

Everywhere in this package the step t is an int32 in 0..T-1: the papers' t minus 1. t=0 is the least
noisy step and t=T-1 the noisiest; the clean image x_0 has no index (it is "s=-1" in a sampler's table).
"""

from collections.abc import Callable
from typing import no_type_check

import flax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.runtime.errors import UserError, arg, check_one_of, whole_number

Float64Table = np.ndarray  # [T], float64


def _linear(num_steps: int, beta_start: float, beta_end: float) -> Float64Table:
    """beta from `beta_start` to `beta_end`, times 1000/T (Ho et al. 2020 section 4; the factor: Nichol and
    Dhariwal 2021, so that alphas_bar at the last step hardly depends on T)."""
    return np.linspace(beta_start, beta_end, num_steps) * (1000 / num_steps)


def _quadratic(num_steps: int, beta_start: float, beta_end: float) -> Float64Table:
    """sqrt(beta) linear (Ho et al. 2020, code; also the schedule of latent diffusion)."""
    return np.linspace(beta_start**0.5, beta_end**0.5, num_steps) ** 2


def _constant(num_steps: int, beta_start: float, beta_end: float) -> Float64Table:
    """beta = `beta_end` at every step (Ho et al. 2020, code)."""
    return np.full(num_steps, beta_end)


def _warmup(num_steps: int, beta_start: float, beta_end: float, fraction: float) -> Float64Table:
    """Linear over the first `fraction` of the steps, then constant (Ho et al. 2020, code)."""
    betas = np.full(num_steps, beta_end)
    num_warmup = int(num_steps * fraction)
    betas[:num_warmup] = np.linspace(beta_start, beta_end, num_warmup)
    return betas


def _jsd(num_steps: int, beta_start: float, beta_end: float) -> Float64Table:
    """beta_t = 1/(T-t) for t = 0..T-1 (Sohl-Dickstein et al. 2015); the last one is 1."""
    return 1 / np.linspace(num_steps, 1, num_steps)


def _geometric(num_steps: int, beta_start: float, beta_end: float) -> Float64Table:
    """log(beta) linear from `beta_start` to `beta_end`."""
    return np.geomspace(beta_start, beta_end, num_steps)


def _betas_of(alphas_bar_fn: Callable[[np.ndarray], np.ndarray], num_steps: int) -> Float64Table:
    """beta_t = min(1 - alpha-bar((t+1)/T) / alpha-bar(t/T), 0.999) (Nichol and Dhariwal 2021, sec. 3.2)."""
    alphas_bar = alphas_bar_fn(np.arange(num_steps + 1) / num_steps)
    return np.minimum(1 - alphas_bar[1:] / alphas_bar[:-1], 0.999)


def _cosine(num_steps: int, beta_start: float, beta_end: float) -> Float64Table:
    """alpha-bar(u) = cos^2((u + s)/(1 + s) * pi/2), s = 0.008 (Nichol and Dhariwal 2021, equation 17)."""
    return _betas_of(lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2, num_steps)


def _sigmoid(num_steps: int, beta_start: float, beta_end: float) -> Float64Table:
    """alpha-bar(u) = (sigma(3) - sigma(6u - 3)) / (sigma(3) - sigma(-3)) (Jabri et al. 2022, tau = 1)."""

    def alphas_bar(u: np.ndarray) -> np.ndarray:
        low, high, at = (1 / (1 + np.exp(-v)) for v in (-3.0, 3.0, 6 * u - 3))
        return (high - at) / (high - low)

    return _betas_of(alphas_bar, num_steps)


SCHEDULES: dict[str, Callable[[int, float, float], Float64Table]] = {
    "linear": _linear,
    "quadratic": _quadratic,
    "constant": _constant,
    "warmup10": lambda num_steps, start, end: _warmup(num_steps, start, end, 0.1),
    "warmup50": lambda num_steps, start, end: _warmup(num_steps, start, end, 0.5),
    "jsd": _jsd,
    "cosine": _cosine,
    "sigmoid": _sigmoid,
    "geometric": _geometric,
}
_ENDS = ("beta_start", "beta_end")
UNREAD = {"jsd": _ENDS, "cosine": _ENDS, "sigmoid": _ENDS, "constant": _ENDS[:1]}  # arguments without effect, by name


# A pytree's leaves may be shardings, shapes or scalars of a scan, so its fields are not checked in tests.
@no_type_check
@flax.struct.dataclass
class Schedule:
    """The tables of q(x_t | x_0) and q(x_(t-1) | x_t, x_0), each float32 [T] (Ho et al. 2020, eq. 4 to 7).

    A pytree: pass it through jit, or close over it. Made by `schedule_from_betas` or `make_schedule`.
    """

    betas: Float[Array, "T"]
    alphas: Float[Array, "T"]
    alphas_bar: Float[Array, "T"]
    alphas_bar_prev: Float[Array, "T"]  # alpha-bar_(t-1), with alpha-bar of x_0 = 1 in front
    sqrt_alphas_bar: Float[Array, "T"]
    one_minus_alphas_bar: Float[Array, "T"]
    sqrt_one_minus_alphas_bar: Float[Array, "T"]
    log_one_minus_alphas_bar: Float[Array, "T"]
    sqrt_recip_alphas_bar: Float[Array, "T"]  # inf where alpha-bar is 0 (the last step of "jsd")
    sqrt_recipm1_alphas_bar: Float[Array, "T"]  # sqrt(1/alpha-bar - 1)
    posterior_mean_coef_x_0: Float[Array, "T"]
    posterior_mean_coef_x_t: Float[Array, "T"]
    posterior_var: Float[Array, "T"]  # beta-tilde; 0 at t=0
    log_var_fixed_small: Float[Array, "T"]  # log beta-tilde, with the t=0 repair
    log_var_fixed_large: Float[Array, "T"]  # log beta, with the t=0 repair
    log_betas: Float[Array, "T"]  # log beta without the repair: the upper end of a learned range
    half_log_snr: Float[Array, "T"]  # log(sqrt(alpha-bar) / sqrt(1 - alpha-bar)); -inf where alpha-bar is 0
    # The float64 betas, for sampler tables that are built later on the host; static, so that jit never sees them.
    betas_float64: tuple[float, ...] = flax.struct.field(pytree_node=False, repr=False)

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.betas_float64)

    @property
    def host_alphas_bar(self) -> Float64Table:
        """alpha-bar in float64 on the host, [T]."""
        return np.cumprod(1 - np.asarray(self.betas_float64))

    @property
    def host_one_minus_alphas_bar(self) -> Float64Table:
        """1 - alpha-bar in float64 on the host, [T], accurate even if the betas are tiny."""
        return _one_minus_alphas_bar(np.asarray(self.betas_float64))


def _one_minus_alphas_bar(betas: Float64Table) -> Float64Table:
    """Not computed as 1 - alphas_bar, which loses float32 precision below beta = 1e-9, and all digits below 1e-16."""
    with np.errstate(divide="ignore"):  # log(0) where the last beta is 1
        return -np.expm1(np.cumsum(np.log1p(-betas)))


def schedule_from_betas(betas: np.ndarray) -> Schedule:
    """Computes all tables of the forward process and its posterior from beta_t.

    Ho et al. 2020, equations 4 and 7. The log variances at t=0, where beta-tilde is 0, take the value of
    beta-tilde at t=1 for both fixed variances (Ho et al., code for CIFAR-10).

    Args:
      betas: [T], T >= 1, each in (0, 1]; 1 is allowed only at the last step.

    Raises:
      UserError: the shape or range of the betas is wrong.

    Example:
      >>> schedule_from_betas(np.array([0.1, 0.2])).alphas_bar
      Array([0.9 , 0.72], dtype=float32)
    """
    # Computed in float64 and cast once: in float32, 1 - alphas_bar would be off by 1.7e-4 at t=0 (linear).
    betas = np.asarray(betas, np.float64)
    _check_betas(betas)
    alphas = 1 - betas
    alphas_bar = np.cumprod(alphas)
    alphas_bar_prev = np.append(1.0, alphas_bar[:-1])
    one_minus = _one_minus_alphas_bar(betas)
    one_minus_prev = np.append(0.0, one_minus[:-1])
    posterior_var = betas * one_minus_prev / one_minus
    # With T=1 there is no t=1 to copy from: beta_0 is the only variance.
    var_at_0 = posterior_var[1] if betas.size > 1 else betas[0]
    with np.errstate(divide="ignore", over="ignore"):  # an alpha-bar of 0, or below the range of 1/x
        tables = dict(
            betas=betas,
            alphas=alphas,
            alphas_bar=alphas_bar,
            alphas_bar_prev=alphas_bar_prev,
            sqrt_alphas_bar=np.sqrt(alphas_bar),
            one_minus_alphas_bar=one_minus,
            sqrt_one_minus_alphas_bar=np.sqrt(one_minus),
            log_one_minus_alphas_bar=np.log(one_minus),
            sqrt_recip_alphas_bar=np.sqrt(1 / alphas_bar),
            sqrt_recipm1_alphas_bar=np.sqrt(one_minus / alphas_bar),
            posterior_mean_coef_x_0=betas * np.sqrt(alphas_bar_prev) / one_minus,
            posterior_mean_coef_x_t=one_minus_prev * np.sqrt(alphas) / one_minus,
            posterior_var=posterior_var,
            log_var_fixed_small=np.log(np.append(var_at_0, posterior_var[1:])),
            log_var_fixed_large=np.log(np.append(var_at_0, betas[1:])),
            log_betas=np.log(betas),
            half_log_snr=0.5 * np.log(alphas_bar / one_minus),
        )
    with np.errstate(over="ignore"):  # 1/sqrt(alpha-bar) may overflow float32 to inf, as for alpha-bar = 0
        tables = {name: table.astype(np.float32) for name, table in tables.items()}
    return Schedule(
        **{name: jnp.asarray(table) for name, table in tables.items()},
        betas_float64=tuple(betas.tolist()),
    )


def _check_betas(betas: Float64Table, remedy: str = "") -> None:
    if betas.ndim != 1 or betas.size < 1:
        raise UserError(f"{arg('betas')} must be a [T] array with T >= 1; got shape {betas.shape}")
    if not (np.all(betas > 0) and np.all(betas[:-1] < 1) and betas[-1] <= 1):
        raise UserError(
            "each beta must be in (0, 1), the last one at most 1; "
            f"got {betas.min():.6g} to {betas.max():.6g}{remedy}"
        )


def rescale_zero_terminal_snr(betas: np.ndarray) -> Float64Table:
    """beta_t, shifted and scaled so that alpha-bar is 0 at the last step and unchanged at the first.

    sqrt(alpha-bar_t) <- (sqrt(alpha-bar_t) - sqrt(alpha-bar_T)) sqrt(alpha-bar_1) / (sqrt(alpha-bar_1) -
    sqrt(alpha-bar_T)) (Lin et al. 2024, algorithm 1). Training then includes pure noise, from which sampling starts.

    Raises:
      UserError: fewer than 2 steps, of which one must keep its noise.
    """
    betas = np.asarray(betas, np.float64)
    _check_betas(betas)
    if betas.size < 2:
        raise UserError(f"{arg('betas')} must be at least 2, of which the first keeps its noise; got 1")
    roots = np.sqrt(np.cumprod(1 - betas))
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return np.append(betas[0], 1 - (roots[1:] / roots[:-1]) ** 2)


def make_schedule(
    name: str = "linear",
    *,
    num_steps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    zero_terminal_snr: bool = False,
) -> Schedule:
    """The named noise schedule with T = `num_steps`.

    Args:
      name: one of `SCHEDULES`.
      num_steps: T >= 1.
      beta_start, beta_end: the ends of linear, quadratic, constant (only beta_end), warmup10/50 and geometric.
        Those of "linear" are meant for T=1000 and are scaled by 1000/T.
      zero_terminal_snr: rescale so that alpha-bar is 0 at the last step (Lin et al. 2024); only for x_0 and v.

    Raises:
      UserError: an unknown name, T < 1, or betas outside (0, 1].

    Example:
      >>> make_schedule("linear", num_steps=1000).num_steps
      1000
    """
    check_one_of("name", name, SCHEDULES)
    num_steps = whole_number("num_steps", num_steps)
    if num_steps < 1:
        raise UserError(f"{arg('num_steps')} must be at least 1; got {num_steps}")
    if not 0 < beta_start <= beta_end:
        raise UserError(
            f"{arg('beta_start')} and beta_end must satisfy 0 < start <= end; got {beta_start} and {beta_end}"
        )
    if zero_terminal_snr and num_steps < 2:
        raise UserError(f"{arg('zero_terminal_snr')}=True needs {arg('num_steps')} of at least 2; got {num_steps}")
    betas = SCHEDULES[name](num_steps, beta_start, beta_end)
    _check_betas(betas, f": take more steps or a smaller {arg('beta_end')}")
    return schedule_from_betas(rescale_zero_terminal_snr(betas) if zero_terminal_snr else betas)
