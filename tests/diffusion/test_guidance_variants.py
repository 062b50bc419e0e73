"""Adaptive projected guidance, CFG++ and autoguidance against NumPy loops and the exact network of a mixture."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_guidance import NONE, SCHEDULE, X_T, D, T, exact_x_0, guided, levels, make_model_fn

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.gradient_guidance import gradient_guidance
from ddpm_jax.diffusion.guidance import autoguidance, classifier_free_guidance, make_guidance
from ddpm_jax.diffusion.parameterisations import PREDICTIONS
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.projected_guidance import make_projection, projected
from ddpm_jax.diffusion.rng import sample_keys
from ddpm_jax.diffusion.samplers import ancestral_table, ddim_table, dpmpp_table, heun_table, sample_loop
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.runtime.errors import UserError

NO_GUIDANCE = (90.0, 99.0)  # an interval that no step meets
STEPS = spaced_steps(T, 12)


def projected_in_numpy(difference, x_0, eta, norm_limit):
    """One image after another, float64."""
    kept = []
    for d, direction in zip(difference.astype(np.float64), x_0.astype(np.float64), strict=True):
        if 0 < norm_limit < np.linalg.norm(d):
            d = d * norm_limit / np.linalg.norm(d)
        direction = direction / np.linalg.norm(direction)
        along = (d * direction).sum() * direction
        kept.append((d - along) + eta * along)
    return np.array(kept)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("norm_limit", [0.0, 0.4])
def test_the_projection_is_the_papers(eta, norm_limit):
    rng = np.random.default_rng(1)
    difference, x_0 = rng.standard_normal((2, 5, 3, 4)).astype(np.float32)
    difference[0] *= 1e-3  # below the limit
    got = projected(jnp.asarray(difference), jnp.asarray(x_0), make_projection(eta=eta, norm_limit=norm_limit))
    np.testing.assert_allclose(got, projected_in_numpy(difference, x_0, eta, norm_limit), atol=1e-6)
    if eta == 0:
        assert np.abs(np.sum(np.asarray(got) * x_0, axis=(1, 2))).max() < 1e-5


def test_extreme_differences_stay_finite():
    projection = make_projection(eta=0.0, norm_limit=2.0)
    huge = jnp.array([[1e30, -1e30], [0.0, 0.0]])
    got = projected(huge, jnp.array([[0.0, 0.0], [1.0, 0.0]]), projection)
    np.testing.assert_allclose(got, [[math.sqrt(2), -math.sqrt(2)], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_guided_x_0_hat_does_not_depend_on_the_prediction(prediction):
    """The projection is in x_0; so is the closed form."""
    for t in (5, 30, 50):
        denoise_fn = guided(
            Process(SCHEDULE, prediction), 1, 3.0, projection=make_projection(eta=0.25, norm_limit=0.1)
        )
        got = denoise_fn(jnp.asarray(X_T, jnp.float32), jnp.full(64, t)).x_0_hat
        of_class, of_all = exact_x_0(X_T, t, 1), exact_x_0(X_T, t, NONE)
        expected = of_class + 2 * projected_in_numpy(of_class - of_all, of_class, 0.25, 0.1)
        np.testing.assert_allclose(got, expected, atol=6e-3)  # as for classifier-free guidance: 2e-3 times the scale


def test_neutral_settings_are_classifier_free_guidance():
    for t in (1, 30, 55):
        plain, neutral = (
            guided(Process(SCHEDULE), 1, 3.0, **settings)(jnp.asarray(X_T, jnp.float32), jnp.full(64, t)).x_0_hat
            for settings in ({}, {"projection": make_projection(eta=1.0)})
        )
        signal, noise = levels(t)
        # eps of order 1 has an error of some 1e-7, which x_0_hat = (x_t - noise eps) / signal multiplies.
        np.testing.assert_allclose(plain, neutral, atol=1e-6 * max(1.0, noise / signal))


def cfg_pp_in_numpy(scale, eta, label=1, interval=range(T)):
    """DDIM of Song et al., with x_0_hat guided and eps of the reference, in float64; Chung et al., algorithm 2."""
    x, keys = X_T.copy(), sample_keys(jax.random.key(0), jnp.arange(64))
    for row, (t, s) in enumerate(zip(STEPS, [*STEPS[1:], -1], strict=True)):
        a_t, n_t = levels(t)
        a_s, n_s = levels(s) if s >= 0 else (1.0, 0.0)
        of_class, of_all = exact_x_0(x, t, label), exact_x_0(x, t, NONE)
        inside = t in interval
        x_0 = of_all + scale * (of_class - of_all) if inside else of_class
        eps = (x - a_t * (of_all if inside else of_class)) / n_t
        sigma = eta * np.sqrt(n_s**2 / n_t**2 * (1 - (a_t / a_s) ** 2))
        z = jax.vmap(lambda key, row=row: jax.random.normal(jax.random.fold_in(key, row + 1), (D,)))(keys)
        x = a_s * x_0 + np.sqrt(n_s**2 - sigma**2) * eps + sigma * np.asarray(z, np.float64)
    return x


@functools.partial(jax.jit, static_argnames=("renoises", "scale", "interval"))
def drawn(table, renoises, scale, interval=(-math.inf, math.inf)):
    denoise_fn = guided(Process(SCHEDULE), 1, scale, renoises=renoises, interval=interval)
    return sample_loop(denoise_fn, table, jnp.asarray(X_T, jnp.float32), sample_keys(jax.random.key(0), jnp.arange(64)))


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_cfg_plus_plus_is_the_papers_loop(eta):
    table = ddim_table(SCHEDULE, steps=STEPS, eta=eta)
    np.testing.assert_allclose(drawn(table, True, 0.6), cfg_pp_in_numpy(0.6, eta), atol=2e-4)
    log_snr = 2 * np.log(levels(np.arange(T))[0] / levels(np.arange(T))[1])
    part = (float(log_snr[40]) - 1e-3, float(log_snr[20]) + 1e-3)
    expected = cfg_pp_in_numpy(0.6, eta, interval=range(20, 41))
    np.testing.assert_allclose(drawn(table, True, 0.6, part), expected, atol=2e-4)


@pytest.mark.parametrize("table", [ddim_table(SCHEDULE, steps=STEPS), ancestral_table(Process(SCHEDULE), steps=STEPS)])
def test_the_ends_of_cfg_plus_plus(table):
    """lambda = 0 draws from the reference; outside of the interval there is no guidance; 1 is guidance."""
    of_reference, unguided = drawn(table, False, 0.0), drawn(table, False, 1.0)
    # Two programs round differently, and the first rows multiply that by 1/sqrt(alpha-bar).
    np.testing.assert_allclose(drawn(table, True, 0.0), of_reference, atol=2e-5)
    np.testing.assert_allclose(drawn(table, True, 0.6, NO_GUIDANCE), unguided, atol=2e-5)
    assert np.abs(drawn(table, True, 1.0) - unguided).max() > 0.01


def test_a_classifier_guides_both_parts_of_cfg_plus_plus():
    """Outside of the interval CFG++ is no guidance, so that the classifier guides as without it."""
    process, table = Process(SCHEDULE), ddim_table(SCHEDULE, steps=STEPS)
    by_gradient = gradient_guidance(process, lambda x_t, t: -0.5 * jnp.sum((x_t - 0.3) ** 2, axis=-1), scale=2.0)

    def samples(guide):
        denoise_fn = make_denoiser(
            process, make_model_fn(process), condition={"label": jnp.full(64, 1)}, guide=guide, x_0_limit=None
        )
        keys = sample_keys(jax.random.key(0), jnp.arange(64))
        return jax.jit(lambda x_T: sample_loop(denoise_fn, table, x_T, keys))(jnp.asarray(X_T, jnp.float32))

    guidance = make_guidance({"label": jnp.full(64, NONE)}, scale=0.6, interval=NO_GUIDANCE, renoises=True)
    free = classifier_free_guidance(process, guidance)
    both = samples(lambda predict_fn: by_gradient(free(predict_fn)))
    np.testing.assert_allclose(both, samples(by_gradient), atol=5e-5)
    assert np.abs(both - samples(None)).max() > 0.05


def test_ancestral_sampling_and_ddim_agree_with_cfg_plus_plus():
    of_ancestral, of_ddim = (
        drawn(table, True, 0.8)
        for table in (
            ancestral_table(Process(SCHEDULE, variance="fixed_small"), steps=STEPS),
            ddim_table(SCHEDULE, steps=STEPS, eta=1.0),
        )
    )
    np.testing.assert_allclose(of_ancestral, of_ddim, atol=1e-5)


@pytest.mark.parametrize("table", [heun_table(SCHEDULE, steps=STEPS), dpmpp_table(SCHEDULE, steps=STEPS)])
def test_a_table_that_cannot_renoise_is_refused(table):
    with pytest.raises(UserError, match="^only `ancestral_table` and `ddim_table` can renoise"):
        drawn(table, True, 0.6)
    with pytest.raises(ValueError, match="the table has no c_x_0_reference"):
        table.padded(100, learns_variance=False, renoises=True)


def test_autoguidance_moves_away_from_the_weaker_network():
    """The weaker one takes class 2 for class 1; the interval and the projection are those of any reference."""
    process, x_t = Process(SCHEDULE), jnp.asarray(X_T, jnp.float32)
    model_fn = make_model_fn(process)

    def weak_predict_fn(x_t, t, condition):
        return process.predict(lambda x_t, t: model_fn(x_t, t, {"label": condition["label"] + 1}), x_t, t)

    def x_0_hat(weak_predict_fn, t, **settings):
        guide = autoguidance(process, make_guidance({}, **settings), weak_predict_fn)
        condition = {"label": jnp.full(64, 1)}
        denoise_fn = make_denoiser(process, model_fn, condition=condition, guide=guide, x_0_limit=None)
        return denoise_fn(x_t, jnp.full(64, t)).x_0_hat

    good, bad = exact_x_0(X_T, 30, 1), exact_x_0(X_T, 30, 2)
    np.testing.assert_allclose(x_0_hat(weak_predict_fn, 30, scale=2.5), bad + 2.5 * (good - bad), atol=1e-4)
    np.testing.assert_allclose(x_0_hat(weak_predict_fn, 30, scale=2.5, interval=NO_GUIDANCE), good, atol=1e-5)
    expected = good + 1.5 * projected_in_numpy(good - bad, good, 0.0, 0.0)
    projection = make_projection(eta=0.0)
    np.testing.assert_allclose(x_0_hat(weak_predict_fn, 30, scale=2.5, projection=projection), expected, atol=1e-4)
    # A network that is not weaker: no guidance, to the last bit.
    own = lambda x_t, t, condition: process.predict(lambda x_t, t: model_fn(x_t, t, condition), x_t, t)  # noqa: E731
    plain = make_denoiser(process, model_fn, condition={"label": jnp.full(64, 1)}, x_0_limit=None)
    np.testing.assert_array_equal(x_0_hat(own, 30, scale=2.5), plain(x_t, jnp.full(64, 30)).x_0_hat)


def test_the_variance_is_that_of_the_main_network():
    process = Process(SCHEDULE, "eps", "learned_range")
    model_fn = make_model_fn(process)
    weak = lambda x_t, t, condition: process.predict(  # noqa: E731
        lambda x_t, t: model_fn(x_t, t, {"label": condition["label"] + 1}), x_t, t
    )
    for guide in (
        autoguidance(process, make_guidance({}, scale=2.0), weak),
        classifier_free_guidance(process, make_guidance({"label": jnp.full(64, 2)}, scale=0.5, renoises=True)),
    ):
        denoise_fn = make_denoiser(process, model_fn, condition={"label": jnp.full(64, 1)}, guide=guide)
        denoised = denoise_fn(jnp.asarray(X_T, jnp.float32), jnp.full(64, 30))
        np.testing.assert_array_equal(denoised.var_values, np.full((64, D), 1.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_projection(eta=1.5), r"^apg_eta must be in \[0, 1\], 1 for classifier-free guidance; got 1.5"),
        (lambda: make_projection(eta=math.nan), "^apg_eta must be in"),
        (lambda: make_projection(norm_limit=-1.0), "^apg_norm must be finite and at least 0, 0 for no limit; got -1"),
        (lambda: make_projection(norm_limit=math.inf), "^apg_norm must be finite"),
        (
            lambda: make_guidance({}, scale=0.5, renoises=True, projection=make_projection()),
            "^apg_eta must be 1 with cfg_plus_plus",
        ),
        (
            lambda: make_guidance({}, scale=0.5, renoises=True, projection=make_projection(eta=1.0, norm_limit=2.0)),
            "^apg_norm must be 0 with cfg_plus_plus",
        ),
        (lambda: make_guidance({}, scale=2.0, renoises=True), r"^guidance_scale must be in \[0, 1\] with cfg_plus"),
    ],
)
def test_numbers_out_of_range(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_guidance(None, scale=2.0), "reference"),
        (lambda: make_guidance({}, scale="3"), "scale"),
        (lambda: make_guidance({}, scale=2.0, interval=("a", "b")), "interval"),
        (lambda: autoguidance(None, make_guidance({}, scale=2.0), None), "process"),
        (lambda: autoguidance(Process(SCHEDULE), None, None), "guidance"),
        (lambda: autoguidance(Process(SCHEDULE), make_guidance({}, scale=2.0), None), "weak_predict_fn"),
        (lambda: classifier_free_guidance(Process(SCHEDULE), {}), "guidance"),
    ],
)
def test_other_types(make, message):
    """A TypeError where the tests check types."""
    with pytest.raises((UserError, TypeError), match=message) as error:
        make()
    assert isinstance(error.value, TypeError) or "\n" not in str(error.value)
