"""Guidance by gradients, on mixtures whose scores and classifier are known, and against loops written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.exact import exact_class_log_probs_fn, exact_model_fn, make_mixture
from ddpm_jax.diffusion.gradient_guidance import class_log_prob, gradient_guidance, gradient_shift, x_0_hat_guidance
from ddpm_jax.diffusion.guidance import classifier_free_guidance, make_guidance
from ddpm_jax.diffusion.parameterisations import PREDICTIONS
from ddpm_jax.diffusion.process import VARIANCES, Process
from ddpm_jax.diffusion.rng import sample_keys
from ddpm_jax.diffusion.samplers import ancestral_table, ddim_table, sample_loop
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.runtime.errors import UserError

T, NUM, NO_CLASS = 60, 8, 3
SCHEDULE = make_schedule("cosine", num_steps=T)
LAW = make_mixture(
    np.array([[0.6, 0.0], [-0.4, 0.5], [-0.3, -0.5]]), std=np.array([0.3, 0.2, 0.4]), weights=np.array([0.5, 0.3, 0.2])
)
X_T = np.random.default_rng(0).standard_normal((NUM, 2)).astype(np.float32)
LABELS = np.arange(NUM) % 3


def told(labels):
    return {"label": jnp.asarray(labels)}


def log_prob_of(process, labels=LABELS):
    return class_log_prob(exact_class_log_probs_fn(process, LAW), jnp.asarray(labels))


def x_0_of(process, t, labels, guide=None, x_t=X_T):
    denoise_fn = make_denoiser(
        process, exact_model_fn(process, LAW), condition=told(labels), guide=guide, x_0_limit=None
    )
    return denoise_fn(jnp.asarray(x_t), jnp.full(len(x_t), t)).x_0_hat


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_best_classifier_at_scale_1_makes_the_score_that_of_the_class(prediction):
    """grad log p(x_t) + grad log p(y | x_t) = grad log p(x_t | y), whatever the network predicts."""
    process = Process(SCHEDULE, prediction)
    guide = gradient_guidance(process, log_prob_of(process))
    for t in (2, 30, 55):
        a = float(process.levels(jnp.array([t]), ndim=1)[0][0])
        # float32, with 1/a for eps and 1/(the coefficient of x_0) for the mean.
        atol = 1e-5 / a if prediction != "mean" else 2e-3
        got = x_0_of(process, t, np.full(NUM, NO_CLASS), guide)
        np.testing.assert_allclose(got, x_0_of(process, t, LABELS), atol=atol)
        assert np.max(np.abs(got - x_0_of(process, t, np.full(NUM, NO_CLASS)))) > 20 * atol or t == 55


def test_it_adds_to_classifier_free_guidance():
    """Scale s from two predictions and w from the classifier are together the scale s + w."""
    process = Process(SCHEDULE, "v")
    free = classifier_free_guidance(process, make_guidance(told(np.full(NUM, NO_CLASS)), scale=1.5))
    gradient = gradient_guidance(process, log_prob_of(process), scale=jnp.float32(0.7))
    both = x_0_of(process, 25, LABELS, lambda predict_fn: gradient(free(predict_fn)))
    alone = classifier_free_guidance(process, make_guidance(told(np.full(NUM, NO_CLASS)), scale=2.2))
    np.testing.assert_allclose(both, x_0_of(process, 25, LABELS, alone), atol=2e-5)


def test_the_scale_is_of_each_image_and_images_do_not_mix():
    process = Process(SCHEDULE)
    scales = np.linspace(0, 3, NUM)
    together = x_0_of(
        process, 30, np.full(NUM, NO_CLASS), gradient_guidance(process, log_prob_of(process), scale=jnp.asarray(scales))
    )
    for i in range(NUM):
        guide = gradient_guidance(process, log_prob_of(process, LABELS[i : i + 1]), scale=float(scales[i]))
        alone = x_0_of(process, 30, [NO_CLASS], guide, X_T[i : i + 1])
        np.testing.assert_allclose(together[i], alone[0], atol=2e-6)
    np.testing.assert_array_equal(together[0], x_0_of(process, 30, np.full(NUM, NO_CLASS))[0])


def gradient_by_hand(x, a, n, labels):
    """grad log p(label | x_t) in float64, from the responsibilities of the three Gaussians."""
    var = (a * np.sqrt(LAW.variances[:, 0])) ** 2 + n**2
    scores = -(x[:, None] - a * LAW.means) / var[:, None]  # [B, K, D]
    r = np.exp(LAW.log_joint(x, signal=a, noise=n) - LAW.log_prob(x, signal=a, noise=n)[:, None])
    return scores[np.arange(len(x)), labels] - (r[:, :, None] * scores).sum(1)


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_shifted_mean_of_ancestral_sampling(variance):
    """Algorithm 1 of Dhariwal and Nichol 2021 in NumPy: mean + Sigma s g + Sigma^(1/2) z; no noise in the last row."""
    process, scale = Process(SCHEDULE, "x_0", variance), 1.7
    steps = None if variance == "learned" else spaced_steps(T, 10)
    table = ancestral_table(process, steps=steps)
    exact = exact_model_fn(process, LAW)
    shift_fn = gradient_shift(process, log_prob_of(process), scale=scale)
    denoise_fn = make_denoiser(
        process, exact, condition=told(np.full(NUM, NO_CLASS)), x_0_limit=None, mean_shift_fn=shift_fn
    )
    noises = np.random.default_rng(1).standard_normal((table.num_calls, NUM, 2)).astype(np.float32)
    keys = sample_keys(jax.random.key(0), jnp.arange(NUM))
    got = jax.jit(lambda x: sample_loop(denoise_fn, table, x, keys, noises=jnp.asarray(noises)))(jnp.asarray(X_T))

    times = [*np.asarray(table.t), -1]
    abar = lambda t: SCHEDULE.host_alphas_bar[t] if t >= 0 else 1.0  # noqa: E731
    smalls = [(1 - abar(t) / abar(s)) * (1 - abar(s)) / (1 - abar(t)) for t, s in zip(times, times[1:], strict=False)]
    smalls[-1] = smalls[-2]  # the original's clipped posterior variance
    x = X_T.astype(np.float64)
    model = jax.jit(lambda x, t: process.predict(lambda x, t: exact(x, t, told(np.full(NUM, NO_CLASS))), x, t))
    for (t, s), small, z in zip(zip(times, times[1:], strict=False), smalls, noises, strict=True):
        predicted = model(jnp.asarray(x, jnp.float32), jnp.full(NUM, int(t)))
        beta = 1 - abar(t) / abar(s)
        mean = (np.sqrt(abar(s)) * beta * np.asarray(predicted.value, np.float64)
                + np.sqrt(1 - beta) * (1 - abar(s)) * x) / (1 - abar(t))  # fmt: skip
        if variance == "learned":
            sigma_2 = np.exp(np.asarray(predicted.var_values, np.float64))
        elif variance == "learned_range":
            u = (np.asarray(predicted.var_values, np.float64) + 1) / 2
            sigma_2 = np.exp(u * np.log(beta) + (1 - u) * np.log(small))
        else:
            sigma_2 = small if variance == "fixed_small" or s < 0 else beta
        gradient = gradient_by_hand(x, np.sqrt(abar(t)), np.sqrt(1 - abar(t)), LABELS)
        x = mean + sigma_2 * scale * gradient + (s >= 0) * np.sqrt(sigma_2) * z
    # float32 over 10 or 60 rows; differences grow where classes part.
    np.testing.assert_allclose(got, x, atol=5e-4)


def test_at_scale_0_the_shift_changes_nothing():
    process = Process(SCHEDULE, variance="learned_range")
    keys, table = sample_keys(jax.random.key(0), jnp.arange(NUM)), ancestral_table(process, steps=spaced_steps(T, 6))
    draw = lambda **settings: jax.jit(  # noqa: E731
        lambda x: sample_loop(
            make_denoiser(process, exact_model_fn(process, LAW), condition=told(LABELS), x_0_limit=None, **settings),
            table, x, keys,
        )
    )(jnp.asarray(X_T))  # fmt: skip
    shift_fn = gradient_shift(process, log_prob_of(process), scale=0.0)
    # Another program: a few roundings.
    np.testing.assert_allclose(draw(mean_shift_fn=shift_fn), draw(), atol=1e-6)


def test_a_sampler_without_a_mean_refuses_a_shift():
    process = Process(SCHEDULE)
    shift_fn = gradient_shift(process, log_prob_of(process))
    denoise_fn = make_denoiser(process, exact_model_fn(process, LAW), condition=told(LABELS), mean_shift_fn=shift_fn)
    table, keys = ddim_table(SCHEDULE, steps=spaced_steps(T, 3)), sample_keys(jax.random.key(0), jnp.arange(NUM))
    with pytest.raises(UserError, match="only `ancestral_table` can apply a mean_shift_fn; for other samplers give"):
        sample_loop(denoise_fn, table, jnp.asarray(X_T), keys)
    with pytest.raises(ValueError, match="no c_shift"):
        table.padded(5, learns_variance=False, shifts_mean=True)
    # Without a shift every table has the same columns, so that one program serves all.
    plain = [one.padded(80, learns_variance=False) for one in (table, ancestral_table(process))]
    assert jax.tree.structure(plain[0]) == jax.tree.structure(plain[1])
    shifted = ancestral_table(process, steps=spaced_steps(T, 4)).padded(6, learns_variance=False, shifts_mean=True)
    np.testing.assert_array_equal(shifted.c_shift[4:], 0)
    assert np.all(shifted.c_shift[:4] > 0)


def test_a_respaced_process_asks_the_classifier_at_the_step_of_its_training():
    whole = Process(SCHEDULE)
    kept = np.array([3, 17, 40])
    seen = []

    def log_prob(x_t, t):
        seen.append(np.asarray(t))
        return jnp.sum(x_t, axis=1)

    gradient_shift(whole.respaced(kept), log_prob)(jnp.asarray(X_T[:2]), jnp.array([1, 2]))
    np.testing.assert_array_equal(seen[0], [17, 40])


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
def test_a_function_of_x_0_hat_is_followed_through_the_network(prediction):
    """With x_0_hat = m + K (x_t - a m), the gradient of -|y - x_0_hat|^2 / (2 s^2) is K (y - x_0_hat) / s^2."""
    process, mean, std, t = Process(SCHEDULE, prediction), np.array([0.3, -0.2]), np.array([0.2, 0.6]), 30
    law, y, s = make_mixture(mean[None], std=std[None]), np.array([0.5, 0.5]), 0.4
    guide = x_0_hat_guidance(
        process, lambda x_0: -jnp.sum((jnp.asarray(y, jnp.float32)[None] - x_0) ** 2, 1) / (2 * s**2), scale=0.8
    )
    denoise_fn = make_denoiser(process, exact_model_fn(process, law), guide=guide, x_0_limit=None)
    got = denoise_fn(jnp.asarray(X_T), jnp.full(NUM, t)).x_0_hat
    abar = SCHEDULE.host_alphas_bar[t]
    a, n_2 = np.sqrt(abar), 1 - abar
    gain = a * std**2 / (abar * std**2 + n_2)
    x_0_hat = mean + gain * (X_T - a * mean)
    np.testing.assert_allclose(got, x_0_hat + n_2 / a * 0.8 * gain * (y - x_0_hat) / s**2, atol=2e-5)


def test_at_zero_terminal_snr_nothing_changes():
    """x_T is noise alone, and a gradient, which is no number over alpha-bar = 0, is left out."""
    process = Process(make_schedule("cosine", num_steps=T, zero_terminal_snr=True), "v")
    plain = make_denoiser(process, exact_model_fn(process, LAW), x_0_limit=None)
    guide = gradient_guidance(process, lambda x_t, t: jnp.sum(x_t, axis=1), scale=3.0)
    guided = make_denoiser(process, exact_model_fn(process, LAW), guide=guide, x_0_limit=None)
    shift_fn = gradient_shift(process, lambda x_t, t: jnp.sum(x_t, axis=1), scale=3.0)
    np.testing.assert_array_equal(shift_fn(jnp.asarray(X_T), jnp.full(NUM, T - 1)), 0)
    np.testing.assert_array_equal(shift_fn(jnp.asarray(X_T), jnp.full(NUM, T - 2)), 3)
    for t, same in ((T - 1, True), (T - 2, False)):
        results = [fn(jnp.asarray(X_T), jnp.full(NUM, t)).x_0_hat for fn in (plain, guided)]
        assert np.all(np.isfinite(results[1])) and np.array_equal(*results) == same


def test_a_label_out_of_range_is_nan():
    log_prob = class_log_prob(lambda x_t, t: jnp.zeros((len(x_t), 3)), jnp.array([0, 2, 3, -1]))
    got = log_prob(jnp.zeros((4, 2)), jnp.zeros(4, jnp.int32))
    np.testing.assert_allclose(got, [-np.log(3), -np.log(3), np.nan, np.nan], rtol=1e-6)
    # Also of the gradient, which is all that guidance sees.
    by_x = class_log_prob(lambda x_t, t: x_t, jnp.array([0, 2]))
    gradient = gradient_shift(Process(SCHEDULE), by_x)(jnp.zeros((2, 2)), jnp.array([5, 5]))
    assert np.all(np.isfinite(gradient[0])) and np.all(np.isnan(gradient[1]))
