"""Smaller and larger images beside `torch.nn.functional.interpolate`."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.image_conditions import area_mean, enlarged

torch = pytest.importorskip("torch")
X = np.random.default_rng(0).uniform(-1, 1, (6, 9, 3)).astype(np.float32)
OF_TORCH = {
    "nearest": {"mode": "nearest"},
    "bilinear": {"mode": "bilinear", "align_corners": False},
    "bilinear_corners": {"mode": "bilinear", "align_corners": True},
    "bicubic": {"mode": "bicubic", "align_corners": False},
}


def of_torch(x, **given):
    batch = torch.from_numpy(np.asarray(x, np.float64).transpose(2, 0, 1)[None])
    return torch.nn.functional.interpolate(batch, **given)[0].numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("upsampling", OF_TORCH)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_enlarged(upsampling, factor):
    wanted = of_torch(X, scale_factor=factor, **OF_TORCH[upsampling])
    np.testing.assert_allclose(enlarged(jnp.asarray(X), factor, upsampling), wanted, atol=1e-6)


def test_area():
    np.testing.assert_allclose(area_mean(jnp.asarray(X), 3), of_torch(X, size=(2, 3), mode="area"), atol=1e-6)
