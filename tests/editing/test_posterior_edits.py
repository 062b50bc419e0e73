"""Edits by DPS: they are `posterior_sampling` of the run's denoiser, for every kind of measurement."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.diffusion.edits import average_measurement, pixel_measurement
from ddpm_jax.diffusion.rng import seed_keys
from ddpm_jax.experiment.training import train

QUICK = {"progress": False, "batch_size": 8}


def with_random_weights(workdir):
    """A network that is hardly trained takes each pixel for itself."""
    run, rng = dj.open_run(str(workdir)), np.random.default_rng(0)
    random = lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32)  # noqa: E731
    return dataclasses.replace(run, params=jax.tree.map(random, run.params))


@pytest.fixture(scope="module")
def run(straight_run):
    return with_random_weights(straight_run)


@pytest.fixture(scope="module")
def images(run):
    return run.source("test").load(np.arange(3))


def halved(images):
    """The means of 2 x 2 pixels, uint8."""
    count, height, width, channels = images.shape
    return np.rint(images.reshape(count, height // 2, 2, width // 2, 2, channels).mean((2, 4))).astype(np.uint8)


def test_it_is_posterior_sampling_of_the_denoiser_and_known_pixels_are_pasted(run, images):
    mask, zeta = dj.make_mask("stripes", 8, 8), 0.7
    pixels, known = pixel_measurement(mask), mask[..., 0]
    y = pixels.measure(dj.to_model_scale(jnp.asarray(images)))
    got = dj.edit_images(run, images, "inpaint", mask=mask, method="dps", zeta=zeta, seed=2, **QUICK)[:, 0]

    @jax.jit
    def draw(key, zeta):
        fitted = dj.posterior_sampling(run.denoiser_of()(run.params, {}), pixels.measure, y, zeta=zeta)
        return dj.p_sample_loop(fitted, run.sampler_table, key=key, num_samples=3, shape=(8, 8, 1))

    wanted, free = (np.asarray(dj.to_uint8(draw(seed_keys(2).sample, z))).astype(int) for z in (zeta, 0.0))
    np.testing.assert_array_equal(got[:, known], images[:, known])
    assert np.any(wanted[:, known] != images[:, known])
    np.testing.assert_allclose(got.astype(int)[:, ~known], wanted[:, ~known], atol=1)  # other programs, then rounded
    assert np.mean(np.abs(free - wanted)[:, ~known] > 1) > 0.3


def test_without_zeta_or_known_pixels_it_is_sampling(run, images):
    samples = run.sample(3, seed=4, batch_size=8, progress=False).astype(int)
    nothing = np.zeros((8, 8, 1), bool)
    for mask, zeta in ((nothing, 1.0), (dj.make_mask("left", 8, 8), 0)):
        got = dj.edit_images(run, images, "inpaint", mask=mask, method="dps", zeta=zeta, seed=4, **QUICK)[:, 0]
        np.testing.assert_allclose(got.astype(int)[:, ~mask[..., 0]], samples[:, ~mask[..., 0]], atol=1)


def test_outpainting_keeps_the_image(run, images):
    (result,) = dj.edit_images(run, images[:1], "outpaint", side="top", method="dps", **QUICK)[:, 0]
    np.testing.assert_array_equal(result[4:], images[0])


@pytest.fixture(scope="module")
def guided(tiny_config, made_once):
    """A run with self-conditioning and classes, the one of `test_self_conditioned_runs`."""
    on = ("diffusion.self_conditioning=true", "model.num_classes=10", "condition.drop_rate=0.1")
    return with_random_weights(made_once("self_conditioning", lambda workdir: train(tiny_config(*on), str(workdir))))


def test_with_guidance_self_conditioning_and_a_solver_that_remembers(guided, images):
    small, zeta, num = halved(images), 2.0, 3
    sampler = {"classes": (3,), "guidance_scale": 2.0, "sampler": "dpmpp_2m", "num_sampler_steps": 5}
    got = dj.edit_images(guided, small, "super_resolve", factor=2, method="dps", zeta=zeta, **sampler, **QUICK)[:, 0]
    run, ids = guided.with_sampler(sampler, batch_size=None, num_devices=1), np.zeros(num, np.int32)
    y, halving, table = dj.to_model_scale(jnp.asarray(small)), average_measurement(2), run.sampler_table
    denoise_fn = run.denoiser_of()(run.params, run.condition_of(ids), run.guidance_of(ids))

    @jax.jit
    def draw(key, zeta):
        fitted = dj.posterior_sampling(denoise_fn, halving.measure, y, zeta=zeta)
        return dj.p_sample_loop(fitted, table, key=key, num_samples=num, shape=(8, 8, 1), self_conditioning=True)

    wanted, free = (np.asarray(dj.to_uint8(draw(seed_keys(0).sample, z))).astype(int) for z in (zeta, 0.0))
    np.testing.assert_allclose(got.astype(int), wanted, atol=1)
    assert np.mean(np.abs(free - wanted) > 1) > 0.1


def test_colours_near_the_grey_values(tiny_config):
    config = tiny_config("data.num_channels=3")
    run = dj.TrainedRun(0, config, {})
    run = dataclasses.replace(run, params=dj.init_params(run.model, jax.random.key(0), run.image_shape))
    grey = run.source("test").load(np.arange(2))[..., :1]
    luma = lambda images: images @ np.array([0.299, 0.587, 0.114])  # noqa: E731
    draw = lambda zeta: dj.edit_images(run, grey, "colourise", method="dps", zeta=zeta, **QUICK)[:, 0]  # noqa: E731
    far, near = (np.abs(luma(draw(zeta)) - grey[..., 0]).mean() for zeta in (0, 0.5))
    assert near < 0.7 * far


def test_another_zeta_image_and_mask_compile_nothing(straight_run, images):
    run, mask = dj.open_run(str(straight_run)), dj.make_mask("top", 8, 8)
    for _ in range(2):  # the second call meets arrays of another origin, which JAX counts once more
        dj.edit_images(run, images, "inpaint", mask=mask, method="dps", zeta=0.5, **QUICK)
    ((generator, _),) = run.programs.generators.values()
    programs = generator._advance._cache_size()
    dj.edit_images(run, images[::-1], "inpaint", mask=~mask, method="dps", zeta=2, seed=1, **QUICK)
    assert generator._advance._cache_size() == programs and len(run.programs.generators) == 1


@pytest.mark.parametrize(
    "what, given, message",
    [
        (
            "inpaint",
            {"method": "dps", "zeta": -0.5},
            "zeta must be in \\[0, 1000\\], 0 for no influence; got -0",
        ),
        ("inpaint", {"method": "dps", "zeta": float("inf")}, r"zeta must be in \[0, 1000\]"),
        ("inpaint", {"method": "ddnm", "zeta": 1.0}, "zeta is a setting of inpaint by dps, outpaint by dps, colourise"),
        ("sdedit", {"method": "dps"}, "method must be .*sdedit.*; got 'dps'"),
    ],
)
def test_what_does_not_fit_is_said(run, images, what, given, message):
    with pytest.raises(dj.UserError, match=message):
        dj.edit_images(run, images, what, mask=np.zeros((8, 8, 1), bool), **given, **QUICK)
