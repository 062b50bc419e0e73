"""What every codec of the table promises, and the linear codec, whose numbers have closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared_codecs import linear_codec

from ddpm_jax.codecs.codec import PIXELS
from ddpm_jax.codecs.floats import FloatCodec
from ddpm_jax.codecs.pixels import to_model_scale
from ddpm_jax.data.batch import Batch
from ddpm_jax.data.image_source import ArraySource
from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.forward_process import q_sample, signal_and_noise
from ddpm_jax.diffusion.losses import make_loss_fn
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import encoding_keys, sample_keys, seed_keys
from ddpm_jax.diffusion.samplers import ddim_table
from ddpm_jax.diffusion.samplers.sampling_loop import initial_noise, sample_loop
from ddpm_jax.diffusion.schedules import make_schedule
from ddpm_jax.evaluation.elbo_bits_per_dim import BitsPerDim
from ddpm_jax.evaluation.ode_bits_per_dim import OdeBits
from ddpm_jax.experiment.generator import Generator
from ddpm_jax.runtime.devices import make_mesh
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.training.diffusion_objective import DiffusionObjective

# Gaussian images: independent pixels N(0, S^2) rounded to the 256 values, 4 S within them.
S, SHAPE, NUM = 0.25, (4, 4, 1), 256
IMAGES = np.rint((np.clip(S * np.random.default_rng(0).normal(size=(NUM, *SHAPE)), -1, 1) + 1) * 127.5).astype(np.uint8)
LINEAR = {"as many numbers": linear_codec(), "fewer numbers": linear_codec(size=2, seed=1)}
ALL = {"pixels": PIXELS, **LINEAR}
PROCESS = Process(make_schedule("cosine", num_steps=20), variance="fixed_small")


def of_each(codecs):
    return pytest.mark.parametrize("codec", codecs.values(), ids=codecs)


def key_of_images(key, num_images):
    return encoding_keys(sample_keys(key, jnp.arange(num_images)))


# Of every codec


@of_each(ALL)
def test_an_image_is_encoded_by_itself_and_its_key(codec):
    encode = jax.jit(lambda codec, images, keys: codec.encode(images, keys))
    keys = key_of_images(jax.random.key(0), 6)
    x_0 = np.asarray(encode(codec, IMAGES[:6], keys))
    assert x_0.shape == (6, *codec.x_0_shape(SHAPE)) and x_0.dtype == np.float32
    assert np.array_equal(encode(codec, IMAGES[2:4], keys[2:4]), x_0[2:4])
    if codec.x_0_limit is not None:
        assert np.abs(x_0).max() <= codec.x_0_limit
    lost = codec.reconstruction_term(IMAGES[:6], x_0)
    assert lost is None or (lost.shape == (6,) and lost.dtype == jnp.float32)
    decoded = codec.decode(x_0)
    assert decoded.shape == (6, *SHAPE) and decoded.dtype == jnp.uint8


@of_each(ALL)
def test_the_last_step_is_a_distribution(codec):
    """Over the values that x_0 can take, p(x_0 | x_1) sums or integrates to 1."""
    mean, log_var = jnp.full((1, 1), 0.13), jnp.full((1, 1), 2 * math.log(0.04))
    if codec.bin_width is None:
        values, width = np.linspace(-0.5, 0.8, 20_001), 1.3 / 20_000
    else:
        num = round(2 * codec.x_0_limit / codec.bin_width) + 1
        values, width = np.linspace(-codec.x_0_limit, codec.x_0_limit, num), 1.0
    log_p = codec.log_likelihood(jnp.asarray(values[:, None], jnp.float32), mean=mean, log_var=log_var)
    np.testing.assert_allclose(np.exp(np.asarray(log_p, np.float64)).sum() * width, 1, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int8, bool])
def test_pixels_of_another_type_are_refused(dtype):
    """Images in 0..1 or -1..1 would be scaled a second time, without a word."""
    images = np.zeros((2, 4, 4, 1), dtype)
    for call in (lambda: PIXELS.encode(images, None), lambda: jax.jit(to_model_scale)(images)):
        with pytest.raises(UserError, match="images must be uint8, 0..255; got"):
            call()
    objective = DiffusionObjective(None, make_loss_fn(PROCESS))
    with pytest.raises(UserError, match="images must be uint8"):
        objective.draw(PIXELS, Batch(images), jax.random.key(0), {})


def test_pixels_lose_nothing():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x_0 = PIXELS.encode(images, key_of_images(jax.random.key(0), 1))
    assert float(x_0.min()) == -1 and float(x_0.max()) == 1
    assert np.array_equal(PIXELS.decode(x_0), images) and PIXELS.reconstruction_term(images, x_0) is None
    assert PIXELS.decode(jnp.array([-7.0, 7.0])).tolist() == [0, 255]
    assert not jax.tree.leaves(PIXELS)


# Real numbers


def test_values_are_shifted_and_scaled():
    codec = FloatCodec(mean=5.0, scale=0.5)
    values = np.linspace(-100, 100, 48, dtype=np.float32).reshape(2, 6, 4)  # signals of 6 positions
    x_0 = codec.encode(values, key_of_images(jax.random.key(0), 2))
    assert x_0.shape == (2, *codec.x_0_shape((6, 4))) and x_0.dtype == jnp.float32
    np.testing.assert_allclose(x_0, (values - 5) / 0.5, rtol=1e-6)
    decoded = codec.decode(x_0)
    assert decoded.dtype == codec.dtype
    np.testing.assert_allclose(decoded, values, rtol=1e-6, atol=1e-5)  # nothing is clipped
    for name, value in (("scale", 0.0), ("scale", -1.0), ("scale", math.inf), ("mean", math.nan)):
        with pytest.raises(UserError, match=f"{name} must be"):
            FloatCodec(**{name: value})


@pytest.mark.parametrize("cls, settings", [(BitsPerDim, {}), (OdeBits, dict(num_ode_steps=8, num_probes=0))])
def test_bits_of_values_are_of_their_density(cls, settings):
    """p(scale x + mean) = p(x)/scale: log2(scale) more bits per number, whatever the network."""
    values = np.random.default_rng(0).normal(size=(16, 6, 2)).astype(np.float32)  # signals
    process = PROCESS if cls is BitsPerDim else PROCESS.schedule
    denoise_fn = make_denoiser(PROCESS, lambda x_t, t: 0.5 * x_t, x_0_limit=None)

    def bits(values, codec):
        measurement = cls(
            lambda params, condition: denoise_fn, process, ArraySource(values, dtype="float32"),
            key=seed_keys(0).eval, mesh=make_mesh(1), batch_size=16, codec=codec, **settings,
        )  # fmt: skip
        result = measurement.measure({})
        return np.asarray(result.total if cls is BitsPerDim else result)

    of_values, of_scaled = bits(values, FloatCodec()), bits(8 * values + 3, FloatCodec(mean=3.0, scale=8.0))
    # x_0 differs in its last bit, and the bound's largest terms are some 10 bits.
    np.testing.assert_allclose(of_scaled - of_values, 3, atol=1e-4)


# The linear codec


def exact_denoiser(codec, **settings):
    """Of N(0, S^2 + std^2) in every number of x_0: the matrix is orthonormal."""
    var = S**2 + codec.std**2

    def model_fn(x_t, t):
        signal, noise = signal_and_noise(PROCESS.schedule, t, x_t.ndim)
        return noise * x_t / (signal**2 * var + noise**2)

    return make_denoiser(PROCESS, model_fn, x_0_limit=None, **settings)


def expected_bits(codec):
    """The bound's parts in bits/dim of an image, in the mean over images, noise and encoder; float64."""
    schedule, var, k = PROCESS.schedule, S**2 + codec.std**2, codec.matrix.shape[1] / 4  # numbers to a pixel
    bar, noise = schedule.host_alphas_bar, schedule.host_one_minus_alphas_bar
    before, betas = np.append(1.0, bar[:-1]), np.asarray(schedule.betas_float64)
    error = var * noise / (bar * var + noise)  # of x_0_hat
    small = betas * (1 - before) / noise
    small[0] = small[1]  # of the last step: the variance is repaired
    coef = np.sqrt(before) * betas / noise
    kl = (coef**2 * error / (2 * small))[1:].sum()
    last = 0.5 * np.log(2 * np.pi * small[0]) + error[0] / (2 * small[0])  # at t = 0 the mean is x_0_hat
    prior = 0.5 * (noise[-1] + bar[-1] * var - 1 - np.log(noise[-1]))
    missing = 1 - k  # of the pixels' directions are not in x_0
    log_q = -0.5 * k * (np.log(2 * np.pi * codec.std**2) + 1)
    off = missing * S**2 + k * codec.std**2  # the mean square of image - decoded
    log_p = -0.5 * (np.log(2 * np.pi * codec.decoder_std**2) + off / codec.decoder_std**2) + np.log(2 / 255)
    parts = {"prior": k * prior, "kl": k * kl, "decoder": k * last, "reconstruction": log_q - log_p}
    return {name: value / np.log(2) for name, value in (parts | {"total": sum(parts.values())}).items()}


def measure(codec, num_devices=2, cls=BitsPerDim, **settings):
    denoise_fn = exact_denoiser(codec)
    process = PROCESS if cls is BitsPerDim else PROCESS.schedule
    measurement = cls(
        lambda params, condition: denoise_fn, process, ArraySource(IMAGES), key=seed_keys(0).eval,
        mesh=make_mesh(num_devices), batch_size=NUM, codec=codec, **settings,
    )  # fmt: skip
    return measurement.measure({})


@of_each(LINEAR)
def test_the_bound_of_gaussian_images_has_its_closed_form(codec):
    """Each part within 4.5 standard errors of the mean over the images, and of the rounding to 256 values."""
    bits = measure(codec)
    for name, (mean, error) in bits.summary().items():
        # A rounded pixel has 1/12 of a squared bin more variance: relative to S^2, times the largest part's 10 bits.
        rounding = 10 * (2 / 255) ** 2 / 12 / S**2
        assert abs(mean - expected_bits(codec)[name]) < 4.5 * error + rounding, name
    on_eight = measure(codec, num_devices=8)
    np.testing.assert_allclose(on_eight.total, bits.total, rtol=1e-5)


@of_each(LINEAR)
def test_the_flow_of_gaussian_images_has_its_closed_form(codec):
    """Per image: the flow takes x_0 linearly to N(0, 1), whatever the encoder drew."""
    got = measure(codec, cls=OdeBits, num_ode_steps=40, num_probes=0)
    x_0 = np.asarray(codec.encode(IMAGES, key_of_images(seed_keys(0).eval, NUM)), np.float64)
    sigma_2 = (PROCESS.schedule.host_one_minus_alphas_bar / PROCESS.schedule.host_alphas_bar)[[0, -1]]
    var = S**2 + codec.std**2
    growth = np.sqrt((var + sigma_2[1]) / (var + sigma_2[0]))
    end = growth * x_0
    log_p = -0.5 * (end**2 / (1 + sigma_2[1]) + np.log(2 * np.pi * (1 + sigma_2[1]))) + np.log(growth)
    lost = np.asarray(codec.reconstruction_term(IMAGES, jnp.asarray(x_0, jnp.float32)), np.float64)
    expected = (-log_p.sum((1, 2, 3)) + lost) / (16 * np.log(2))
    # Of order 4 over 40 steps, and float32's sums: as in the test of the flow on pixels.
    np.testing.assert_allclose(got, expected, atol=2e-4)


@of_each(LINEAR)
def test_samples_are_decoded(codec):
    """The generator's images are those of x_0 from the loop; their pixels have the variance of what x_0 holds."""
    table = ddim_table(PROCESS.schedule)
    generator = Generator(
        lambda params, condition: exact_denoiser(codec), table, image_shape=SHAPE, mesh=make_mesh(2),
        batch_size=NUM, codec=codec,
    )  # fmt: skip
    seen = []
    images = generator.generate({}, seed=3, num_samples=NUM, watch=lambda first, t, x: seen.append((t, x.shape)))
    keys = sample_keys(seed_keys(3).sample, jnp.arange(NUM))
    x_0 = sample_loop(exact_denoiser(codec), table, initial_noise(keys, codec.x_0_shape(SHAPE)), keys)
    assert np.abs(images.astype(int) - codec.decode(x_0)).max() <= 1
    assert seen[0] == (19, (NUM, *SHAPE)) and seen[-1] == (-1, (NUM, *SHAPE))


def test_training_sees_what_is_encoded_and_the_codec_is_an_argument():
    codec = linear_codec(size=3)
    objective = DiffusionObjective(None, make_loss_fn(PROCESS, log_likelihood=codec.log_likelihood), codec=codec)
    drawn, weights = objective.draw(codec, Batch(IMAGES[:8]), jax.random.key(0), {})
    assert drawn.x_0.shape == drawn.eps.shape == (8, 2, 2, 3) and np.array_equal(weights, np.ones(8))
    mean = codec.replace(std=0.0).encode(IMAGES[:8], jax.random.split(jax.random.key(0), 8))
    noise = np.asarray(drawn.x_0 - mean) / codec.std
    assert np.abs(noise).max() < 5 and 0.7 < noise.std() < 1.3 and len(np.unique(noise)) == noise.size
    # None of what is drawn elsewhere in the step.
    others = [np.asarray(drawn.eps), jax.random.normal(jax.random.split(jax.random.key(0), 4)[2], noise.shape)]
    assert not any(np.isclose(noise, other).any() for other in others)
    other, _ = objective.draw(codec, Batch(IMAGES[:8]), jax.random.key(1), {})
    assert not np.isclose(other.x_0, drawn.x_0).any()
    # The matrix comes in as an argument: no constant of the program has its shape.
    program = jax.make_jaxpr(lambda codec, images: objective.draw(codec, Batch(images), jax.random.key(0), {}))
    constants = program(codec, IMAGES[:8]).consts
    assert not any(np.shape(constant) == codec.matrix.shape for constant in constants)


def test_the_term_at_0_is_a_density_where_x_0_has_no_bins():
    codec = linear_codec()
    x_0 = codec.encode(IMAGES[:8], key_of_images(jax.random.key(0), 8))
    loss_fn = make_loss_fn(PROCESS, loss="vlb", log_likelihood=codec.log_likelihood)
    t, eps = jnp.zeros(8, jnp.int32), jax.random.normal(jax.random.key(1), x_0.shape)
    model_fn = lambda x_t, t: 0 * x_t  # noqa: E731
    got = np.asarray(loss_fn(model_fn, x_0=x_0, t=t, eps=eps)["loss"])
    x_t = np.asarray(q_sample(PROCESS.schedule, x_0=x_0, t=t, eps=eps), np.float64)
    bar, small = PROCESS.schedule.host_alphas_bar[0], np.exp(np.float64(PROCESS.schedule.log_var_fixed_small[0]))
    error = np.asarray(x_0, np.float64) - x_t / np.sqrt(bar)
    expected = (0.5 * np.log(2 * np.pi * small) + error**2 / (2 * small)).mean((1, 2, 3)) / np.log(2)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
