"""Super-resolution: what the network is shown, the law of its noise, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.exact import downsample, exact_model_fn, make_mixture, observation_matrix
from ddpm_jax.diffusion.image_conditions import SuperResolution, area_mean, enlarged, make_image_task, shrunk
from ddpm_jax.diffusion.image_conditions.blur import smoothed
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers import dpmpp_table, sample_loop
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.runtime.errors import UserError

NUM, FACTOR = 6, 3
X_0 = jnp.asarray(np.random.default_rng(0).integers(0, 256, (NUM, 12, 6, 2)) / 127.5 - 1, jnp.float32)
KEYS = jax.random.split(jax.random.key(0), NUM)
SCHEDULE = make_schedule("cosine", num_steps=20)


@functools.cache
def task(augmentation="none", **settings):
    given = {"factor": FACTOR, "augmentation": augmentation, "schedule": SCHEDULE} | settings
    return make_image_task("super_resolve", super_resolution=SuperResolution(**given))


@functools.cache
def made(augmentation):
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(task(augmentation).make))(X_0, KEYS))


@jax.jit
def clean(x_0):
    return jax.vmap(lambda x_0: enlarged(shrunk(x_0, FACTOR), FACTOR, "bilinear"))(x_0)


small = jax.jit(jax.vmap(lambda x_0: shrunk(x_0, FACTOR)))
at_level = jax.jit(jax.vmap(task("noise").at_level, (0, None, 0)))


def test_without_augmentation_it_is_the_enlarged_small_image():
    shown = made("none")
    assert shown.known is None and shown.level is None and task().at_level is None
    np.testing.assert_array_equal(shown.image, clean(X_0))
    given = jax.vmap(lambda x_0: task().of_given(x_0, None))(small(X_0))
    np.testing.assert_allclose(given.image, shown.image, atol=2e-7)  # another program
    assert task().factor == FACTOR and task().max_level == 0


def test_level_0_is_the_clean_image_bit_for_bit():
    shown = at_level(small(X_0), 0, KEYS)
    np.testing.assert_array_equal(shown.image, clean(X_0))
    assert shown.level.dtype == jnp.int32 and not shown.level.any()
    given = task("noise").of_given(small(X_0)[0], None)
    assert given.level.dtype == jnp.int32 and given.level == 0


def test_the_law_of_a_level():
    """z_s = sqrt(alpha-bar) z + sqrt(1 - alpha-bar) eps of the step s - 1, and eps is N(0, I), up to five standard
    deviations of its moments. Nearest enlargement shows z_s itself."""
    num = 4000
    nearest = task("noise", upsampling="nearest")
    draw = jax.jit(jax.vmap(lambda z, level, key: nearest.at_level(z, level, key).image, (None, None, 0)))
    z, keys, noises = small(X_0)[0], jax.random.split(KEYS[0], num), []
    for level in (1, 7, 20):
        signal, noise = np.sqrt([SCHEDULE.host_alphas_bar[level - 1], SCHEDULE.host_one_minus_alphas_bar[level - 1]])
        shown = [np.asarray(draw(given, level, keys)) for given in (z, jnp.zeros_like(z))]
        z_s, of_0 = (one[:, ::FACTOR, ::FACTOR] for one in shown)
        np.testing.assert_array_equal(np.repeat(np.repeat(z_s, FACTOR, 1), FACTOR, 2), shown[0])
        np.testing.assert_allclose(z_s - of_0, np.broadcast_to(signal * z, z_s.shape), atol=2e-6)  # eps up to 5
        noises.append(of_0 / noise)
    np.testing.assert_allclose(noises[1:], [noises[0]] * 2, rtol=1e-5)
    eps = noises[0].astype(np.float64).reshape(num, -1)
    assert np.abs(eps.mean(0)).max() < 5 / np.sqrt(num)
    assert np.abs(eps.T @ eps / num - np.eye(eps.shape[1])).max() < 5 * np.sqrt(2 / num)


def test_levels_are_uniform_and_each_image_has_its_own():
    shown = made("noise")
    assert len(set(shown.level.tolist())) > 1 and shown.level.dtype == np.int32
    narrow = task("noise", max_level=3)
    assert narrow.max_level == 3 and task("noise").max_level == 20
    x_0, num = jnp.zeros((3, 3, 1)), 2000
    levels = jax.jit(jax.vmap(lambda key: narrow.make(x_0, key).level))(jax.random.split(KEYS[0], num))
    counts = np.bincount(levels)
    assert len(counts) == 4 and np.all(np.abs(counts - num / 4) < 5 * np.sqrt(num * 3 / 16))


def test_the_levels_do_not_depend_on_how_many_are_drawn():
    few = jax.jit(jax.vmap(task("noise", max_level=7).at_level, (0, None, 0)))
    for one, other in zip(few(small(X_0), 7, KEYS), at_level(small(X_0), 7, KEYS), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isnan(few(small(X_0), 8, KEYS).image).all()  # beyond the highest


def test_an_image_depends_on_its_own_key():
    order = np.array([3, 0, 5, 1, 4, 2])
    for augmentation in ("noise", "blur"):
        again = jax.jit(jax.vmap(task(augmentation).make))(X_0[order], KEYS[order])
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[order]), again, made(augmentation))


def test_half_of_the_images_are_blurred_by_3x3_weights():
    """What is shown is one of two: the small image, or it blurred with the one standard deviation of the range."""
    fixed = task("blur", upsampling="nearest", augmentation_blur_std=(0.5, 0.5))
    num = 400
    shown = jax.jit(jax.vmap(lambda key: fixed.make(X_0[0], key).image))(jax.random.split(KEYS[0], num))
    z = np.asarray(small(X_0)[0])
    weights = np.exp(-0.5 * (np.array([-1, 0, 1]) / 0.5) ** 2)
    weights /= weights.sum()
    padded = np.pad(z, ((1, 1), (1, 1), (0, 0)), mode="symmetric")
    height, width, _ = z.shape
    blurred = sum(weights[i] * weights[j] * padded[i : i + height, j : j + width] for i in range(3) for j in range(3))
    apart = [np.abs(np.asarray(shown)[:, ::FACTOR, ::FACTOR] - one).max((1, 2, 3)) for one in (z, blurred)]
    assert np.all(np.minimum(*apart) < 1e-6) and np.all(np.maximum(*apart) > 1e-3)
    assert abs(np.mean(apart[1] < apart[0]) - 0.5) < 5 * 0.5 / np.sqrt(num)
    assert fixed.max_level == 0 and made("blur").level is None


def test_the_standard_deviation_of_the_blur_is_in_its_range():
    """The share that the middle of an impulse keeps says which it was."""
    x_0 = jnp.full((9, 9, 1), -1.0).at[3:6, 3:6].set(1.0)
    kept = jax.jit(jax.vmap(lambda key: task("blur", upsampling="nearest").make(x_0, key).image[4, 4, 0]))(
        jax.random.split(KEYS[0], 300)
    )
    kept = np.asarray(kept)
    low, high = (float(smoothed(small(x_0[None])[0], std, radius=1)[1, 1, 0]) for std in (0.6, 0.4))
    blurred = kept[kept < 0.999]
    assert low - 1e-6 <= blurred.min() < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < blurred.max() <= high + 1e-6


def test_equal_settings_give_one_task():
    other_object = make_schedule("cosine", num_steps=20)
    for augmentation in ("none", "noise", "blur"):
        given = SuperResolution(FACTOR, augmentation=augmentation, schedule=other_object)
        assert make_image_task("super_resolve", super_resolution=given) is task(augmentation)
    assert task("noise", max_level=5) is not task("noise")
    with jax.checking_leaks():  # a task that is first made inside jit keeps no tracer
        jax.jit(lambda x_0: task("noise", max_level=11).make(x_0, jax.random.key(0)).image)(X_0[0])


@pytest.mark.parametrize("settings, message", [
    ({"factor": 1}, "factor must be at least 2; got 1"), ({"factor": 2000}, "factor must be at most 1024"),
    ({"upsampling": "cubic"}, "upsampling must be one of"), ({"augmentation": "noisy"}, "augmentation must be one of"),
    ({"augmentation": "noise", "max_level": 21}, r"max_level must be in 0..20, the T of the schedule.*; got 21"),
    ({"augmentation": "noise", "max_level": -1}, r"max_level must be in 0..20"),
    ({"augmentation": "noise", "schedule": None}, "schedule must be given for augmentation='noise'"),
    ({"augmentation_blur_std": (0.6, 0.4)}, r"augmentation_blur_std must be LOW,HIGH with 0.01 <= LOW <= HIGH <= 10"),
])  # fmt: skip
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        task.__wrapped__(**settings)


def test_what_else_is_refused():
    with pytest.raises(UserError, match="factor must divide the size of the images, 12 x 6; got 4"):
        jax.eval_shape(task(factor=4).make, X_0[0], KEYS[0])
    with pytest.raises(UserError, match="known must be None for name='super_resolve', which has no hole"):
        task().of_given(X_0[0], np.ones((12, 6, 1)))


def test_exact_samples_given_a_small_image_with_noise():
    """Gaussian data: given what is shown, x_0 is Gaussian, too, and its denoiser has a closed form. DPM-Solver++ of
    order 2 maps x_T to x_0 by an affine function, so that mean and covariance of the samples follow from the images of
    0 and of the unit vectors, without chance. They are those of p(x_0 | z_s), up to an error that falls by 4 with twice
    the steps."""
    shape, factor, level = (4, 4, 1), 2, 3
    rng = np.random.default_rng(0)
    root = rng.standard_normal((16, 16)) / 8
    law = make_mixture(rng.uniform(-0.4, 0.4, (1, *shape)), covariances=(root @ root.T + 0.01 * np.eye(16))[None])
    process = Process(make_schedule("cosine", num_steps=1000))
    given = SuperResolution(factor, "nearest", "noise", schedule=SCHEDULE)
    noisy = make_image_task("super_resolve", super_resolution=given)
    x_0 = jnp.asarray(law.sample(rng, 1)[0][0].reshape(shape), jnp.float32)
    z_s = np.asarray(noisy.at_level(area_mean(x_0, factor), level, KEYS[0]).image)[::factor, ::factor]
    signal, noise = np.sqrt([SCHEDULE.host_alphas_bar[level - 1], SCHEDULE.host_one_minus_alphas_bar[level - 1]])
    matrix = signal * observation_matrix(lambda x: downsample(x, factor), shape)
    posterior = law.given_observation(matrix, z_s, noise_std=noise)
    denoise_fn = make_denoiser(process, exact_model_fn(process, posterior), x_0_limit=None)
    starts = jnp.asarray(np.concatenate([np.zeros((1, 16)), np.eye(16)]).reshape(17, *shape), jnp.float32)
    keys = jax.random.split(KEYS[0], 17)
    mean, covariance = posterior.moments()
    errors = []
    for num_steps in (20, 40, 80):
        table = dpmpp_table(process.schedule, steps=spaced_steps(1000, num_steps), order=2)
        ends = np.asarray(jax.jit(sample_loop, static_argnums=0)(denoise_fn, table, starts, keys), np.float64)
        ends = ends.reshape(17, 16)
        gain = ends[1:] - ends[0]  # row i: where the unit vector i goes
        errors.append([np.abs(ends[0] - mean).max(), np.abs(gain.T @ gain - covariance).max()])
    assert max(of_mean for of_mean, _ in errors) < 5e-5  # float32: some 80 steps
    coarse, middle, fine = (of_covariance for _, of_covariance in errors)
    assert middle < coarse / 3.5 and fine < middle / 3.5 and fine < 0.02 * np.abs(covariance).max()
    prior_mean, prior = law.moments()
    assert np.abs(prior_mean - mean).max() > 0.1 and np.abs(prior - covariance).max() > 0.05
