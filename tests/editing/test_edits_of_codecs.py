"""Edits in the space of another codec than pixels: the starts are encoded, and what needs pixels is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared_codecs import linear_codec

import ddpm_jax as dj
from ddpm_jax.diffusion.rng import encoding_keys, sample_keys, seed_keys
from ddpm_jax.experiment.codec_factory import CODECS

QUICK = {"progress": False, "batch_size": 8, "seed": 5}
KEYS = sample_keys(seed_keys(5).sample, jnp.arange(3))


@pytest.fixture(scope="module")
def run(tiny_config):
    """A run whose x_0 is [4, 4, 4] where the images are [8, 8, 1], with noise in its encoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CODECS, "linear", lambda config: linear_codec())
        config = tiny_config("codec.name=linear", "sample.clip_x_0=false")
        run = dj.TrainedRun(0, config, {})
        yield dataclasses.replace(run, params=dj.init_params(run.model, jax.random.key(0), (4, 4, 4)))


@pytest.fixture(scope="module")
def images(run):
    return run.source("test").load(np.arange(3))


@pytest.fixture(scope="module")
def x_0(run, images):
    return run.codec.encode(jnp.asarray(images), encoding_keys(KEYS))


def test_sdedit_starts_from_the_noised_x_0(run, images, x_0):
    got = dj.edit_images(run, images, "sdedit", strength=0.5, **QUICK)[:, 0].astype(int)
    table = run.last_steps(0.5)
    denoise_fn = run.denoiser_of()(run.params, {})
    drawn = jax.jit(lambda x: dj.sample_loop(denoise_fn, table, dj.noised_start(run.process, table, x, KEYS), KEYS))
    np.testing.assert_allclose(got, np.asarray(run.codec.decode(drawn(x_0))).astype(int), atol=1)


def test_the_inversion_gives_back_the_encoded_image(run, images, x_0):
    settings = {"num_fixed_point": 20, "num_sampler_steps": 10}
    back = dj.edit_images(run, images, "variation", strength=0, **settings, **QUICK)[:, 0].astype(int)
    wanted = np.asarray(run.codec.decode(x_0)).astype(int)
    assert np.abs(back - wanted).max() <= 1 and np.abs(wanted - images).max() > 1
    noised = dj.edit_images(run, images, "interpolate", to=images, num_results=2, method="noised", **QUICK)
    np.testing.assert_array_equal(noised[:, 0], noised[:, 1])


@pytest.mark.parametrize("what", ["inpaint", "outpaint", "super_resolve"])
def test_what_needs_pixels_is_refused(run, images, what):
    message = rf"what={what} needs the pixels of x_0, and this run diffuses x_0 of shape \[4, 4, 4\] by "
    with pytest.raises(dj.UserError, match=message + "codec.name='linear': take sdedit, variation, interpolate"):
        dj.edit_images(run, images, what, **QUICK)


def test_masks_are_refused(run, images):
    with pytest.raises(dj.UserError, match=r"mask is of pixels, and this run diffuses x_0 of shape \[4, 4, 4\] by "):
        dj.edit_images(run, images, "sdedit", mask=dj.make_mask("left", 8, 8), **QUICK)
