"""log p of an image under the probability flow ODE: exact for the given network, up to the integrator's error.

Song et al. 2021 ("Score-Based Generative Modeling through Stochastic Differential Equations"), section 4.3 and
appendix D.2. With y = x_t/a, a = sqrt(alpha-bar), n = sqrt(1 - alpha-bar) and sigma = n/a the flow is

    dy/dsigma = eps_hat,        d log p(y)/dsigma = -div_y eps_hat        (DDIM: Song et al. 2021, equation 14).

The same flow in x_t itself and lambda = log(sigma), with v = a eps - n x_0 (Salimans and Ho 2022, appendix D), is

    dx_t/dlambda = a n v_hat = a (a x_t - x_0_hat),        d log p(x_t)/dlambda = -div of that,

whose right sides vanish at both ends: an even grid in lambda serves from the lowest noise to the highest. The
last x_T ~ N(0, I), which in y reads N(0, (1 + sigma^2) I), since 1/a^2 = 1 + sigma^2. The image is y at the
lowest noise level, so that log p(image) = log N(x_T; 0, I) + (the integral of div) + D log a.
"""

import math
from collections.abc import Callable
from typing import no_type_check

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.diffusion.denoiser import DenoiseFn
from ddpm_jax.diffusion.forward_process import signal_and_noise
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.timestep_spacing import host_half_log_snr, step_at_half_log_snr
from ddpm_jax.diffusion.variational_bound import PIXEL_BIN
from ddpm_jax.runtime.errors import UserError, arg

_DIRECTIONS_AT_ONCE = 8  # per divergence; determines the memory use

DirectionFn = Callable[[Int[Array, ""]], Float[Array, "B *D"]]


def check_fractional(process: Process) -> None:
    """Raises UserError if the network is not defined between two steps, where the flow evaluates it."""
    if not process.parameterisation.fractional:
        raise UserError(
            f"the probability flow needs a network that predicts eps, x_0 or v at any noise level; "
            f"{arg('prediction')}={process.parameterisation.name!r} needs whole steps: {arg('leave out the flow')}"
        )


def ode_grid(schedule: Schedule, num_ode_steps: int) -> np.ndarray:
    """The t at which the integration evaluates the flow, ends and middles of the steps: float64 [2 num_ode_steps + 1].

    Increasing from 0 to T-1, or to the last step with alpha-bar > 0; evenly spaced in the log SNR.

    Raises:
      UserError: fewer than 1 step.
    """
    if num_ode_steps < 1:
        raise UserError(f"ode_steps must be at least 1; got {num_ode_steps}")
    levels = host_half_log_snr(schedule)
    levels = levels[np.isfinite(levels)]
    return step_at_half_log_snr(schedule, np.linspace(levels[0], levels[-1], 2 * num_ode_steps + 1))


def basis_directions(shape: tuple[int, ...]) -> DirectionFn:
    """k -> the k-th unit vector, [1, *shape]; all D of them together give the exact divergence."""
    size = math.prod(shape)
    return lambda k: jax.nn.one_hot(k, size, dtype=jnp.float32).reshape(1, *shape)


def random_directions(keys: Key[Array, "B"], shape: tuple[int, ...], num_probes: int) -> DirectionFn:
    """k -> signs +-1/sqrt(num_probes) from fold_in(fold_in(key, 1), k), [B, *shape]; together they give Hutchinson's
    estimate of the divergence, unbiased (Hutchinson 1990; Song et al. 2021, appendix D.2).
    """

    def signs_of(key: Key[Array, ""], k: Int[Array, ""]) -> Float[Array, "*D"]:
        # As jax.random.rademacher, whose draw depends on JAX_ENABLE_X64.
        up = jax.random.bernoulli(jax.random.fold_in(jax.random.fold_in(key, 1), k), jnp.float32(0.5), shape)
        return jnp.where(up, jnp.float32(1), jnp.float32(-1))

    def direction_fn(k: Int[Array, ""]) -> Float[Array, "B *D"]:
        return jax.vmap(lambda key: signs_of(key, k))(keys) / math.sqrt(num_probes)

    return direction_fn


def dequantise(
    x_0: Float[Array, "B *D"], keys: Key[Array, "B"], bin_width: float | None = PIXEL_BIN
) -> Float[Array, "B *D"]:
    """x_0 + u, with u uniform on the bin of each value, from fold_in(key, 0); bin_width None: x_0 itself."""
    if bin_width is None:
        return x_0
    half = bin_width / 2
    shape = x_0.shape[1:]
    uniform = jax.vmap(
        lambda key: jax.random.uniform(jax.random.fold_in(key, 0), shape, jnp.float32, minval=-half, maxval=half)
    )
    return x_0 + uniform(keys)


@no_type_check
@flax.struct.dataclass
class FlowState:
    """The state of the integration at a point of its grid."""

    x_t: Float[Array, "B *D"]
    log_det: Float[Array, "B"]  # of d x_t / d x at the grid's first point: the integral of the divergence


def begin_flow(schedule: Schedule, y: Float[Array, "B *D"]) -> FlowState:
    """The state at t = 0 of a dequantised x_0: x_t = sqrt(alpha-bar) y."""
    signal, _ = signal_and_noise(schedule, jnp.zeros(y.shape[:1], jnp.int32), y.ndim)
    return FlowState(signal * y, jnp.zeros(y.shape[:1], y.dtype))


def flow_on(
    schedule: Schedule,
    denoise_fn: DenoiseFn,
    state: FlowState,
    t: Float[Array, "S"],
    *,
    num_directions: int,
    direction_fn: DirectionFn,
) -> FlowState:
    """Integrates the state over the points t of the grid by the classical Runge-Kutta method of order 4 in log(sigma),
    in one `lax.scan`.

    Args:
      denoise_fn: of a network without clipping, because a clipped x_0_hat does not correspond to the score.
      t: the point of the state, then the middle and the end of each step: an odd number of points of `ode_grid`.
      num_directions: the divergence is the sum over k < num_directions of v . J v with v = direction_fn(k).
    """

    def slope(x_t: Float[Array, "B *D"], t: Float[Array, ""]) -> tuple[Array, Array]:
        t_batch = jnp.full(x_t.shape[:1], t)
        signal, _ = signal_and_noise(schedule, t_batch, x_t.ndim)
        value, push = jax.linearize(lambda x: signal * (signal * x - denoise_fn(x, t_batch).x_0_hat), x_t)

        def along(k: Int[Array, ""]) -> Float[Array, "B"]:
            direction = jnp.broadcast_to(direction_fn(k), x_t.shape)
            return jnp.sum(direction * push(direction), tuple(range(1, x_t.ndim)))

        parts = jax.lax.map(along, jnp.arange(num_directions), batch_size=min(num_directions, _DIRECTIONS_AT_ONCE))
        return value, jnp.sum(parts, axis=0)

    def one_step(state: FlowState, points: tuple[Array, Array, Array]):
        start, middle, end = points
        signal, noise = signal_and_noise(schedule, jnp.stack([start, end]), 1)
        step = jnp.diff(jnp.log(noise) - jnp.log(signal))[0]

        def stage(carry: tuple[Array, Array, Array], at: tuple[Array, Array, Array]):
            before, total, total_div = carry
            t, reach, weight = at
            value, div = slope(state.x_t + reach * step * before, t)
            return (value, total + weight * value, total_div + weight * div), None

        # A scan over the four stages, so that the network is traced and compiled once.
        times = jnp.stack([start, middle, middle, end])
        stages = times, *(jnp.array(row, jnp.float32) for row in ((0.0, 0.5, 0.5, 1.0), (1.0, 2.0, 2.0, 1.0)))
        nothing = jnp.zeros_like(state.x_t), jnp.zeros_like(state.x_t), jnp.zeros_like(state.log_det)
        (_, total, total_div), _ = jax.lax.scan(stage, nothing, stages)
        return FlowState(state.x_t + step / 6 * total, state.log_det + step / 6 * total_div), None

    return jax.lax.scan(one_step, state, (t[:-2:2], t[1::2], t[2::2]))[0]


def end_flow(schedule: Schedule, state: FlowState) -> Float[Array, "B"]:
    """log p of the y that the flow started with, in nats, for a state at the last point of the grid."""
    num_dims = math.prod(state.x_t.shape[1:])
    squares = jnp.sum(state.x_t**2, tuple(range(1, state.x_t.ndim)))
    log_prior = -0.5 * squares - 0.5 * num_dims * math.log(2 * math.pi)
    return log_prior + state.log_det + num_dims * jnp.log(schedule.sqrt_alphas_bar[0])


def bits_of_density(
    log_density: Float[Array, "B"], num_dims: int, bin_width: float | None = PIXEL_BIN
) -> Float[Array, "B"]:
    """-log2 (p(y) bin_width^D) / D: bits/dim of the bin of y; None: -log2 p(y) / D."""
    return -log_density / (num_dims * math.log(2)) - math.log2(bin_width or 1.0)


def ode_bits_per_dim(
    process: Process,
    denoise_fn: DenoiseFn,
    *,
    x_0: Float[Array, "B *D"],
    keys: Key[Array, "B"],
    num_ode_steps: int = 50,
    num_probes: int = 1,
    bin_width: float | None = PIXEL_BIN,
) -> Float[Array, "B"]:
    """-log2 p(x_0 + u)/D + log2(127.5) of the probability flow, in bits/dim (Song et al. 2021, section 4.3).

    The expectation over u, uniform on the pixels' bins, is an upper bound of -log2 P(x_0)/D, where P(x_0) is the
    flow's mass on the bins (Theis et al. 2016, section 3.1): comparable with the discrete bound of `variational_bound`.

    Args:
      denoise_fn: made with x_0_limit=None; called with fractional t.
      x_0: real images on the scale [-1, 1], from uint8 values unless another bin_width is given.
      keys: one per image, for u and the probes, which do not depend on the batch.
      num_ode_steps: Runge-Kutta steps, four network calls each.
      num_probes: of Hutchinson's estimate of the divergence; 0: exact, at D Jacobian products per call.
      bin_width: of the values of x_0; None if x_0 is continuous, without u.

    Raises:
      UserError: fewer than 1 step, fewer than 0 probes, or a prediction that is only defined at whole steps.

    Example:
      >>> from ddpm_jax.diffusion.denoiser import make_denoiser
      >>> from ddpm_jax.diffusion.rng import sample_keys
      >>> from ddpm_jax.diffusion.schedules import make_schedule
      >>> process = Process(make_schedule("linear"))
      >>> model_fn = lambda x_t, t: x_t * signal_and_noise(process.schedule, t, 2)[1]  # exact for data N(0, I)
      >>> denoise_fn = make_denoiser(process, model_fn, x_0_limit=None)
      >>> keys = sample_keys(jax.random.key(0), jnp.arange(1))
      >>> bits = ode_bits_per_dim(process, denoise_fn, x_0=jnp.zeros((1, 2)), keys=keys, num_probes=0)
      >>> abs(float(bits[0]) - math.log2(math.sqrt(2 * math.pi) * 127.5)) < 1e-3  # -log2 N(0; 0, 1) and the scale
      True
    """
    check_fractional(process)
    schedule = process.schedule
    num_directions, direction_fn = directions(keys, x_0.shape[1:], num_probes)
    t = jnp.asarray(ode_grid(schedule, num_ode_steps), jnp.float32)
    state = begin_flow(schedule, dequantise(x_0, keys, bin_width))
    state = flow_on(schedule, denoise_fn, state, t, num_directions=num_directions, direction_fn=direction_fn)
    return bits_of_density(end_flow(schedule, state), math.prod(x_0.shape[1:]), bin_width)


def directions(keys: Key[Array, "B"], shape: tuple[int, ...], num_probes: int) -> tuple[int, DirectionFn]:
    """(number of directions, k -> the k-th): random signs, or with num_probes = 0 the unit vectors.

    Raises:
      UserError: fewer than 0 probes.
    """
    if num_probes < 0:
        raise UserError(f"ode_probes must be at least 0 (exact); got {num_probes}")
    if num_probes == 0:
        return math.prod(shape), basis_directions(shape)
    return num_probes, random_directions(keys, shape, num_probes)
