"""Classifier-free guidance beside the guiders of diffusers, on the same predictions."""

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("diffusers")
import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.guidance import classifier_free_guidance, make_guidance
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.projected_guidance import make_projection
from ddpm_jax.diffusion.schedules import make_schedule

SCHEDULE = make_schedule("linear")
RNG = np.random.default_rng(0)
CONDITIONAL, NULL, X_T = RNG.standard_normal((3, 4, 8, 8, 3)).astype(np.float32)


def guided_by_us(scale, **settings):
    def model_fn(x_t, t, condition):
        told = condition["told"][:, None, None, None]
        return jnp.where(told == 1, jnp.repeat(jnp.asarray(CONDITIONAL), 2, 0), jnp.repeat(jnp.asarray(NULL), 2, 0))

    process = Process(SCHEDULE, "x_0")
    guide = classifier_free_guidance(process, make_guidance({"told": jnp.zeros(4)}, scale=scale, **settings))

    def model_fn_of_any(x_t, t, condition):  # the branch without guidance has half of the rows
        rows = model_fn(x_t, t, {"told": jnp.resize(condition["told"], (8,))})
        return rows[: len(x_t)]

    denoise_fn = make_denoiser(process, model_fn_of_any, condition={"told": jnp.ones(4)}, guide=guide, x_0_limit=None)
    return denoise_fn(jnp.asarray(X_T), jnp.full(4, 500)).x_0_hat


def guided_by(peer):
    peer.set_state(step=0, num_inference_steps=10, timestep=torch.tensor(500))
    channels_first = [torch.from_numpy(a.transpose(0, 3, 1, 2).copy()) for a in (CONDITIONAL, NULL)]
    theirs = peer.forward(*channels_first)
    return getattr(theirs, "pred", theirs).numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("scale", [1.5, 3.0, 7.5])
@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_the_guided_prediction(scale, rescale):
    theirs = guided_by(ClassifierFreeGuidance(guidance_scale=scale, guidance_rescale=rescale))
    np.testing.assert_allclose(guided_by_us(scale, rescale=rescale), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.3])
@pytest.mark.parametrize("norm_limit", [0.0, 15.0])
def test_adaptive_projected_guidance(eta, norm_limit):
    """Theirs projects what it is given; x_0 is what the paper projects. The norms of these differences are about 20.

    The paper adds (scale - 1) times the projected difference to the conditional prediction. Theirs does so with
    `use_original_formulation`, whose scale is scale - 1; by default it adds scale times it to the unconditional one,
    which is another image as soon as something was projected away.
    """
    peer = AdaptiveProjectedGuidance(
        guidance_scale=3.0,
        eta=eta,
        adaptive_projected_guidance_rescale=norm_limit,
        adaptive_projected_guidance_momentum=None,
        use_original_formulation=True,
    )
    ours = guided_by_us(4.0, projection=make_projection(eta=eta, norm_limit=norm_limit))
    np.testing.assert_allclose(ours, guided_by(peer), rtol=1e-5, atol=1e-5)


def test_the_papers_scale():
    """`use_original_formulation` is the paper's w: s = 1 + w."""
    peer = ClassifierFreeGuidance(guidance_scale=2.0, use_original_formulation=True)
    peer.set_state(step=0, num_inference_steps=10, timestep=torch.tensor(500))
    theirs = peer.forward(torch.from_numpy(CONDITIONAL), torch.from_numpy(NULL))
    theirs = getattr(theirs, "pred", theirs).numpy()
    np.testing.assert_allclose(NULL + 3.0 * (CONDITIONAL - NULL), theirs, rtol=1e-5, atol=1e-5)
