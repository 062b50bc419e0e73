"""Guide, sampler, edit, limit of x_0, codec, variance and prediction in any combination, against a slow NumPy loop.

The data is Gaussian with and without its condition, so that the network is known exactly. The loop walks the columns of
the table in float64 with the same noise; the combinations are drawn so that every pair of choices comes up.
"""

import itertools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.codecs.codec import PIXELS
from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.guidance import classifier_free_guidance, make_guidance
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import sample_keys, sample_noise
from ddpm_jax.diffusion.samplers import (
    ancestral_table,
    ddim_table,
    dpmpp_table,
    edit_noise,
    heun_table,
    initial_noise,
    plms_table,
    sample_loop,
    unipc_table,
)
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import spaced_steps

T, D, NUM = 40, 6, 3
SCHEDULE = make_schedule("cosine", num_steps=T)
STEPS = spaced_steps(T, 8)
# Of the data: told nothing (0) or told its condition (1). The network's variance values say which it was told.
MEANS, STDS, VAR_VALUES = (0.0, 0.4), (0.7, 0.3), (-0.5, 0.3)
IMAGE = np.linspace(0, 255, D).astype(np.uint8)  # what is known of the result
MASK = np.arange(D) < 2

CHOICES = {
    "sampler": ("ancestral", "ddim", "ddim_noisy", "heun", "plms", "dpmpp_3m", "dpmpp_2m_sde", "unipc_3"),
    "guide": (None, (3.0, (-math.inf, math.inf), 0.0), (2.0, (-3.0, 2.0), 0.7)),
    "edit": (False, True),
    "limit": ("none", "clip", "threshold"),
    "codec": ("pixels", "scaled"),
    "variance": ("fixed_small", "fixed_large", "learned_range"),
    "prediction": ("eps", "x_0", "v", "mean"),
}


@flax.struct.dataclass
class ScaledCodec:
    """x_0 is 0.6 of what it is with pixels: another limit, another known x_0, other images of the same x_0."""

    factor: float = 0.6
    x_0_limit = 0.6

    def encode(self, images, keys):
        return self.factor * PIXELS.encode(images, keys)

    def decode(self, x_0):
        return PIXELS.decode(x_0 / self.factor)


CODECS = {"pixels": PIXELS, "scaled": ScaledCodec()}
PIXELS_OF = {"pixels": 1.0, "scaled": 0.6}  # by hand: x_0 of a pixel at 1


def covering():
    """Few combinations in which every pair of values of two choices comes up: each has the most pairs that are left."""
    names, rng = list(CHOICES), np.random.default_rng(0)
    indices = {name: range(len(CHOICES[name])) for name in names}
    left = {((a, i), (b, j)) for a, b in itertools.combinations(names, 2) for i in indices[a] for j in indices[b]}
    chosen = []
    while left:
        tries = [tuple(int(rng.integers(len(CHOICES[name]))) for name in names) for _ in range(200)]
        pairs = lambda combination: set(itertools.combinations(zip(names, combination, strict=True), 2))  # noqa: E731
        best = max(tries, key=lambda combination: len(pairs(combination) & left))
        chosen.append(best)
        left -= pairs(best)
    return [{name: CHOICES[name][i] for name, i in zip(names, one, strict=True)} for one in chosen]


def table_of(sampler, process):
    q = process.schedule
    return {
        "ancestral": lambda: ancestral_table(process, steps=STEPS),
        "ddim": lambda: ddim_table(q, steps=STEPS),
        "ddim_noisy": lambda: ddim_table(q, steps=STEPS, eta=0.8),
        "heun": lambda: heun_table(q, steps=STEPS),
        "plms": lambda: plms_table(q, steps=STEPS),
        "dpmpp_3m": lambda: dpmpp_table(q, steps=STEPS, order=3),
        "dpmpp_2m_sde": lambda: dpmpp_table(q, steps=STEPS, order=2, sde=True),
        "unipc_3": lambda: unipc_table(q, steps=STEPS, order=3),
    }[sampler]()


def exact_x_0(x_t, a, n, told, where):
    """E[x_0 | x_t] with NumPy or jax.numpy; `told` [B, 1]."""
    mean, std = (where(told == 1, values[1], values[0]) for values in (MEANS, STDS))
    return mean + a * std**2 / (a**2 * std**2 + n**2) * (x_t - a * mean)


def ours(choice, process, table, keys):
    codec = CODECS[choice["codec"]]

    def model_fn(x_t, t, condition):
        a, n = process.levels(t, ndim=2)
        told = condition["told"][:, None]
        x_0 = exact_x_0(x_t, a, n, told, jnp.where)
        value = process.target(x_0=x_0, x_t=x_t, t=t, eps=(x_t - a * x_0) / n)
        if not process.learns_variance:
            return value
        said = jnp.broadcast_to(jnp.where(told == 1, VAR_VALUES[1], VAR_VALUES[0]), value.shape)
        return jnp.concatenate([value, said], axis=-1)

    def edit_fn(x_s, denoised, row, keys):
        signal, noise = process.levels(row.s[None], ndim=2)
        known = signal * codec.encode(jnp.asarray(IMAGE)[None], keys[:1]) + noise * edit_noise(keys, row, (D,))
        return jnp.where(jnp.asarray(MASK)[None], known, x_s)

    guide = None
    if choice["guide"]:
        scale, interval, rescale = choice["guide"]
        settings = make_guidance({"told": np.zeros(NUM)}, scale=scale, interval=interval, rescale=rescale)
        guide = classifier_free_guidance(process, settings)
    denoise_fn = make_denoiser(
        process, model_fn, condition={"told": jnp.ones(NUM)}, guide=guide,
        x_0_limit=None if choice["limit"] == "none" else codec.x_0_limit,
        dynamic_threshold=0.9 if choice["limit"] == "threshold" else 0.0,
    )  # fmt: skip
    x_T = initial_noise(keys, (D,))
    x_0 = sample_loop(denoise_fn, table, x_T, keys, edit_fn=edit_fn if choice["edit"] else None)
    return x_0, codec.decode(x_0)


def levels(t):
    """float64; between two steps the log SNR is linear."""
    if t < 0:
        return 1.0, 0.0
    half = 0.5 * np.log(SCHEDULE.host_alphas_bar / SCHEDULE.host_one_minus_alphas_bar)
    at = np.interp(t, np.arange(T), half)
    return 1 / np.sqrt(1 + np.exp(-2 * at)), 1 / np.sqrt(1 + np.exp(2 * at))


def by_hand(choice, process, table, keys):
    table = jax.tree.map(lambda column: np.asarray(column, np.float64), table)
    noise_of = lambda i: np.asarray(sample_noise(keys, i, (D,)), np.float64)  # noqa: E731
    x, history = np.asarray(initial_noise(keys, (D,)), np.float64), [np.zeros((NUM, D))] * table.num_remembered
    unit = PIXELS_OF[choice["codec"]]
    known = unit * (IMAGE / 127.5 - 1)
    for i in range(table.num_calls):
        a, n = levels(table.t[i])
        x_0 = exact_x_0(x, a, n, np.ones((NUM, 1)), np.where)
        scale, (low, high), rescale = choice["guide"] or (1.0, (math.inf, math.inf), 0.0)
        if low <= 2 * np.log(a / n) <= high:
            reference = exact_x_0(x, a, n, np.zeros((NUM, 1)), np.where)
            guided = reference + scale * (x_0 - reference)
            if rescale:  # of what the network predicts
                value, moved = (predicted(process, x, u, a, n, int(table.t[i])) for u in (x_0, guided))
                ratio = value.std(1, keepdims=True) / moved.std(1, keepdims=True)
                moved = moved * (rescale * ratio + 1 - rescale)
                guided = x_0_of(process, x, moved, a, n, int(table.t[i]))
            x_0 = guided
        if choice["limit"] == "clip":
            x_0 = np.clip(x_0, -unit, unit)
        if choice["limit"] == "threshold":
            limit = np.maximum(np.quantile(np.abs(x_0), 0.9, axis=1, keepdims=True), unit)
            x_0 = np.clip(x_0, -limit, limit) * unit / limit
        sigma = table.sigma[i]
        if table.log_var_shift is not None:
            sigma = sigma * np.exp(0.5 * (table.log_var_shift[i] + table.log_var_scale[i] * VAR_VALUES[1]))
        x_s = table.c_x_0[i] * x_0 + table.c_x_t[i] * x + sigma * noise_of(i + 1)
        for k, remembered in enumerate(history):
            x_s = x_s + table.c_history[i, k] * remembered
        if choice["edit"]:
            signal, noise = levels(table.s[i])
            row = jax.tree.map(lambda column: jnp.asarray(column)[i], table)  # noqa: B023
            drawn = np.asarray(edit_noise(keys, row.replace(row=jnp.int32(i)), (D,)), np.float64)
            x_s = np.where(MASK, signal * known + noise * drawn, x_s)
        if history:
            history = [table.r_x_0[i] * x_0 + table.r_x_t[i] * x, *history[:-1]]
        x = x_s
    return x, np.clip(127.5 * (x / unit + 1), 0, 255)


def mean_coefficients(t):
    """Of x_0 and x_t in the mean of x_(t-1) (Ho et al. 2020, equation 7)."""
    abar, before = SCHEDULE.host_alphas_bar[t], SCHEDULE.host_alphas_bar[t - 1] if t else 1.0
    beta = 1 - abar / before
    return np.sqrt(before) * beta / (1 - abar), np.sqrt(1 - beta) * (1 - before) / (1 - abar)


def predicted(process, x_t, x_0, a, n, t):
    eps = (x_t - a * x_0) / n
    mean = mean_coefficients(t)
    return {"eps": eps, "x_0": x_0, "v": a * eps - n * x_0, "mean": mean[0] * x_0 + mean[1] * x_t}[process.prediction]


def x_0_of(process, x_t, value, a, n, t):
    mean = mean_coefficients(t)
    return {
        "eps": (x_t - n * value) / a, "x_0": value, "v": a * x_t - n * value, "mean": (value - mean[1] * x_t) / mean[0]
    }[process.prediction]  # fmt: skip


COMBINATIONS = covering()


@pytest.mark.parametrize("choice", COMBINATIONS, ids=lambda choice: "-".join(str(v) for v in choice.values()))
def test_any_combination_is_the_loop(choice):
    process = Process(SCHEDULE, choice["prediction"], choice["variance"])
    table, keys = table_of(choice["sampler"], process), sample_keys(jax.random.key(7), jnp.arange(NUM))
    if choice["prediction"] == "mean" and not jnp.issubdtype(table.t.dtype, jnp.integer):
        pytest.skip("the previous mean belongs to whole steps")
    got, images = map(np.asarray, jax.jit(lambda keys: ours(choice, process, table, keys))(keys))
    expected, pixels = by_hand(choice, process, table, keys)
    # 1/sqrt(alpha-bar) = 60 at the first step, and solvers of order 3 with weights of some 10, over float32's 6e-8.
    tolerance = 2e-3 * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(got, expected, atol=tolerance)
    assert np.abs(images - pixels).max() <= 0.5 + 127.5 / PIXELS_OF[choice["codec"]] * tolerance
