"""Classifier-free guidance against a Gaussian mixture with classes, whose guided score is known in closed form."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.guidance import (
    Guidance,
    classifier_free_guidance,
    interleave,
    make_guidance,
    separate,
)
from ddpm_jax.diffusion.parameterisations import PREDICTIONS
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers.ancestral import ancestral_table
from ddpm_jax.diffusion.samplers.ddim import ddim_table
from ddpm_jax.diffusion.samplers.sampling_loop import p_sample_loop
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.runtime.errors import UserError

T, D = 60, 2
SCHEDULE = make_schedule("cosine", num_steps=T)
# p(x_0 | class c) = N(MEANS[c], STD^2 I), classes in the proportions WEIGHTS; label 3 is none.
MEANS = np.array([[0.6, 0.0], [-0.4, 0.5], [-0.3, -0.5]])
WEIGHTS, STD, NONE = np.array([0.5, 0.3, 0.2]), 0.25, 3


def levels(t):
    return np.sqrt(SCHEDULE.host_alphas_bar[t]), np.sqrt(SCHEDULE.host_one_minus_alphas_bar[t])


def exact_x_0(x_t, t, label):
    """E[x_0 | x_t, label] in NumPy float64: of a class, or of the mixture."""
    a, n = levels(t)
    var = (a * STD) ** 2 + n**2
    of_class = MEANS + (a * STD**2 / var) * (x_t[:, None] - a * MEANS)  # [B, 3, D]
    if label != NONE:
        return of_class[:, label]
    log_p = np.log(WEIGHTS) - ((x_t[:, None] - a * MEANS) ** 2).sum(-1) / (2 * var)
    p = np.exp(log_p - log_p.max(1, keepdims=True))
    return ((p / p.sum(1, keepdims=True))[..., None] * of_class).sum(1)


def make_model_fn(process):
    """The exact network, in what the process predicts, with a learned variance that says the label."""
    a_of, n_of = (jnp.asarray(levels(np.arange(T))[i], jnp.float32) for i in (0, 1))

    def model_fn(x_t, t, condition):
        label = condition["label"]
        a, n = a_of[t][:, None, None], n_of[t][:, None, None]
        var = (a * STD) ** 2 + n**2
        means = jnp.asarray(MEANS, jnp.float32)[None]
        of_class = means + a * STD**2 / var * (x_t[:, None] - a * means)
        log_p = jnp.log(jnp.asarray(WEIGHTS, jnp.float32))[None, :, None] - jnp.sum(
            (x_t[:, None] - a * means) ** 2, -1, keepdims=True
        ) / (2 * var)
        mixed = jnp.sum(jax.nn.softmax(log_p, axis=1) * of_class, axis=1)
        chosen = jnp.take_along_axis(of_class, jnp.minimum(label, 2)[:, None, None], axis=1)[:, 0]
        x_0 = jnp.where((label == NONE)[:, None], mixed, chosen)
        eps = (x_t - a[:, 0] * x_0) / n[:, 0]
        value = process.target(x_0=x_0, x_t=x_t, t=t, eps=eps)
        if process.learns_variance:
            return jnp.concatenate([value, jnp.broadcast_to(label[:, None], value.shape).astype(jnp.float32)], -1)
        return value

    return model_fn


def guided(process, label, scale, num=64, reference=NONE, **settings):
    """(x_t, t, condition) -> Denoised of the exact network under guidance, and the condition."""
    condition = {"label": jnp.full(num, label)}
    guidance = make_guidance({"label": jnp.full(num, reference)}, scale=scale, **settings)
    guide = classifier_free_guidance(process, guidance)
    return make_denoiser(process, make_model_fn(process), condition=condition, guide=guide, x_0_limit=None)


X_T = np.random.default_rng(0).standard_normal((64, D))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_the_guided_score_is_the_closed_form(prediction, scale):
    """The same x_0 whatever the network predicts: grad log p(x) + s (grad log p(x | c) - grad log p(x))."""
    for t in (5, 30, 50):
        denoise_fn = guided(Process(SCHEDULE, prediction), 1, scale)
        got = denoise_fn(jnp.asarray(X_T, jnp.float32), jnp.full(64, t)).x_0_hat
        of_class, of_all = exact_x_0(X_T, t, 1), exact_x_0(X_T, t, NONE)
        # float32: 1/a or 1/(coefficient of x_0) times some roundings of the guided prediction.
        np.testing.assert_allclose(got, of_all + scale * (of_class - of_all), atol=2e-3 * max(1.0, scale))


def test_another_class_may_be_the_reference():
    denoise_fn = guided(Process(SCHEDULE), 1, 2.0, reference=2)
    got = denoise_fn(jnp.asarray(X_T, jnp.float32), jnp.full(64, 30)).x_0_hat
    np.testing.assert_allclose(got, 2 * exact_x_0(X_T, 30, 1) - exact_x_0(X_T, 30, 2), atol=1e-4)


def test_what_the_reference_lacks_is_the_same_for_both():
    seen = []

    def predict_fn(x_t, t, condition):
        seen.append(condition)
        return Process(SCHEDULE).split(x_t, num_channels=D)

    guidance = make_guidance({"label": np.full(2, NONE)}, scale=2.0)
    condition = {"label": jnp.array([0, 1]), "shown": jnp.array([[0.1], [0.2]])}
    guided = classifier_free_guidance(Process(SCHEDULE), guidance)(predict_fn)
    guided(jnp.ones((2, D)), jnp.full(2, 5), condition)
    inside = next(condition for condition in seen if condition["label"].shape == (4,))
    assert inside["shown"].shape == (4, 1)
    with jax.disable_jit():
        guided(jnp.ones((2, D)), jnp.full(2, 5), condition)
    np.testing.assert_array_equal(seen[-1]["label"], [0, NONE, 1, NONE])
    np.testing.assert_array_equal(seen[-1]["shown"], np.float32([[0.1], [0.1], [0.2], [0.2]]))


def test_both_conventions_of_the_scale():
    """The paper's (1 + w) eps_c - w eps_none is ours at s = 1 + w."""
    eps = {label: (X_T - levels(30)[0] * exact_x_0(X_T, 30, label)) / levels(30)[1] for label in (1, NONE)}
    x_0 = guided(Process(SCHEDULE), 1, 1 + 0.7)(jnp.asarray(X_T, jnp.float32), jnp.full(64, 30)).x_0_hat
    got = (X_T - levels(30)[0] * np.asarray(x_0)) / levels(30)[1]
    np.testing.assert_allclose(got, (1 + 0.7) * eps[1] - 0.7 * eps[NONE], atol=1e-4)


def test_the_variance_is_the_conditional_one():
    denoised = guided(Process(SCHEDULE, "eps", "learned_range"), 2, 4.0)(
        jnp.asarray(X_T, jnp.float32), jnp.full(64, 30)
    )
    np.testing.assert_array_equal(denoised.var_values, np.full((64, D), 2.0))


def test_outside_the_interval_the_network_is_called_once():
    rows = []
    process = Process(SCHEDULE)
    real = make_model_fn(process)

    def model_fn(x_t, t, condition):
        jax.debug.callback(lambda x_t: rows.append(len(x_t)), x_t)
        return real(x_t, t, condition)

    log_snr = 2 * np.log(levels(np.arange(T))[0] / levels(np.arange(T))[1])
    interval = (float(log_snr[40]) - 1e-3, float(log_snr[20]) + 1e-3)
    guide = classifier_free_guidance(
        process, make_guidance({"label": jnp.full(64, NONE)}, scale=3.0, interval=interval)
    )
    condition = {"label": jnp.full(64, 1)}
    denoise_fn = jax.jit(make_denoiser(process, model_fn, condition=condition, guide=guide, x_0_limit=None))
    for t in (19, 20, 30, 40, 41):
        x_0 = denoise_fn(jnp.asarray(X_T, jnp.float32), jnp.full(64, t)).x_0_hat
        of_class, of_all = exact_x_0(X_T, t, 1), exact_x_0(X_T, t, NONE)
        expected = of_all + 3 * (of_class - of_all) if 20 <= t <= 40 else of_class
        np.testing.assert_allclose(x_0, expected, atol=1e-3)
    jax.effects_barrier()
    assert rows == [64, 128, 128, 128, 64]


def test_rescaling_brings_the_deviation_back():
    process, t = Process(SCHEDULE), jnp.full(64, 30)
    x_t = jnp.asarray(X_T, jnp.float32)

    def eps(**settings):
        x_0 = guided(process, 1, 5.0, **settings)(x_t, t).x_0_hat
        return (X_T - levels(30)[0] * np.asarray(x_0, np.float64)) / levels(30)[1]

    plain, whole, part = eps(), eps(rescale=1.0), eps(rescale=0.7)
    conditional = (X_T - levels(30)[0] * exact_x_0(X_T, 30, 1)) / levels(30)[1]
    np.testing.assert_allclose(whole.std(1), conditional.std(1), rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(part, 0.7 * whole + 0.3 * plain, atol=1e-3)


def test_samples_of_a_class_at_scale_1_are_those_of_the_class():
    """At s = 1 the samples have the mean and the variance of the class; at 3 they lie further from the others."""

    def draw(scale):
        process = Process(SCHEDULE)
        denoise_fn = guided(process, 1, scale, num=4000)
        table = ancestral_table(process)
        return np.asarray(
            jax.jit(
                lambda key: p_sample_loop(denoise_fn, table, key=key, num_samples=4000, shape=(D,))
            )(jax.random.key(0))
        )  # fmt: skip

    plain, strong = draw(1.0), draw(3.0)
    # Four deviations of a mean and of a variance of 4,000 draws, and the error of T = 60 steps.
    assert np.abs(plain.mean(0) - MEANS[1]).max() < 4 * STD / np.sqrt(4000) + 0.01
    assert np.abs(plain.std(0) - STD).max() < 4 * STD / np.sqrt(8000) + 0.02
    away = MEANS[1] - WEIGHTS @ MEANS
    assert (strong.mean(0) - plain.mean(0)) @ away > 0.05 * np.linalg.norm(away)


def test_one_program_serves_every_value():
    process = Process(SCHEDULE)
    model_fn, condition = make_model_fn(process), {"label": jnp.full(64, 1)}

    @jax.jit
    def step(guidance, x_t, t):
        guide = classifier_free_guidance(process, guidance)
        return make_denoiser(process, model_fn, condition=condition, guide=guide)(x_t, t).x_0_hat

    null = {"label": jnp.full(64, NONE)}
    everywhere = (-math.inf, math.inf)
    for scale, interval, rescale in ((3.0, everywhere, 0.0), (7.5, (-2.0, 4.0), 0.7), (1.0, (0.0, 1.0), 1.0)):
        step(make_guidance(null, scale=scale, interval=interval, rescale=rescale), jnp.asarray(X_T, jnp.float32),
             jnp.full(64, 10))  # fmt: skip
    assert step._cache_size() == 1


def test_devices_do_not_speak_to_each_other():
    """The rows of an image stand on its device: a walk of DDIM over eight devices has no communication."""
    process = Process(SCHEDULE)
    model_fn, table = make_model_fn(process), ddim_table(SCHEDULE)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    batch, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    def walk(condition, guidance, x_t):
        def one_row(x_t, row):
            guide = classifier_free_guidance(process, guidance)
            denoise_fn = make_denoiser(process, model_fn, condition=condition, guide=guide)
            x_0 = denoise_fn(x_t, jnp.full(x_t.shape[:1], row.t)).x_0_hat
            return row.c_x_0 * x_0 + row.c_x_t * x_t, None

        return jax.lax.scan(one_row, x_t, table)[0]

    guidance = make_guidance({"label": np.full(64, NONE)}, scale=3.0)
    shardings = ({"label": batch}, Guidance(batch, whole, whole, whole, whole), batch)
    arguments = ({"label": np.full(64, 1)}, guidance, X_T.astype(np.float32))
    compiled = jax.jit(walk, in_shardings=shardings, out_shardings=batch).lower(*arguments).compile()
    assert not re.findall(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter", compiled.as_text())
    np.testing.assert_allclose(compiled(*jax.device_put(arguments, shardings)), jax.jit(walk)(*arguments), atol=1e-5)


def test_rows_are_interleaved():
    one, other = np.arange(6).reshape(3, 2), 10 + np.arange(6).reshape(3, 2)
    rows = interleave(jnp.asarray(one), jnp.asarray(other))
    np.testing.assert_array_equal(rows[::2], one)
    np.testing.assert_array_equal(rows[1::2], other)
    for part, wanted in zip(separate(rows), (one, other), strict=True):
        np.testing.assert_array_equal(part, wanted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(scale=-1.0), r"guidance_scale must be in 0..1e\+06; got -1"),
        (dict(scale=math.nan), r"guidance_scale must be in 0..1e\+06; got nan"),
        (dict(scale=2.0, interval=(1.0,)), "guidance_interval must be LOW,HIGH of the log SNR, "),
        (dict(scale=2.0, interval=(3.0, 1.0)), "guidance_interval must be LOW,HIGH of the log SNR, LOW below HIGH"),
        (dict(scale=2.0, rescale=1.5), r"guidance_rescale must be in \[0, 1\], 0 for none; got 1.5"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make_guidance({}, **settings)


def test_a_constant_prediction_has_nothing_to_rescale():
    guidance = make_guidance({"told": np.zeros(2)}, scale=3.0, rescale=0.5)
    guide = classifier_free_guidance(Process(SCHEDULE, "v"), guidance)
    told = {"told": jnp.ones(2)}
    denoise_fn = make_denoiser(
        Process(SCHEDULE, "v"), lambda x_t, t, condition: 0 * x_t + condition["told"][:, None],
        condition=told, guide=guide,
    )  # fmt: skip
    assert np.isfinite(denoise_fn(jnp.ones((2, 4)), jnp.array([5, 5])).x_0_hat).all()
