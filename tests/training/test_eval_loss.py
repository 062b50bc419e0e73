"""The eval loss is the mean over the held-out pictures, whatever the batch size and the number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data.image_source import ArraySource
from ddpm_jax.runtime.devices import make_mesh
from ddpm_jax.training.eval_loss import EvalLoss

IMAGES = np.random.default_rng(0).integers(0, 256, (13, 2, 2, 1), dtype=np.uint8)


def eval_losses(params, frozen, batch, ids, key):
    """Depends on the picture, on its number and on the parameter."""
    return params["w"] * jnp.mean(batch.image.astype(jnp.float32), axis=(1, 2, 3)) + ids


def losses():
    return 2.0 * IMAGES.mean(axis=(1, 2, 3)) + np.arange(13)


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize(("batch_size", "max_images"), [(4, 0), (13, 0), (256, 0), (5, 7), (1, 1), (4, 99)])
def test_mean(num_devices, batch_size, max_images):
    held_out = EvalLoss(
        ArraySource(IMAGES), eval_losses, key=jax.random.key(0), mesh=make_mesh(num_devices), batch_size=batch_size,
        max_images=max_images,
    )  # fmt: skip
    num_images = min(max_images or 13, 13)
    assert held_out.num_images == num_images
    np.testing.assert_allclose(
        held_out.mean_loss({"w": jnp.float32(2.0)}), losses()[:num_images].mean(), rtol=1e-6
    )
