"""Pictures made on the fly, and the place of real ones."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture():
    """make(height, width) -> a smooth RGB picture, red from left to right, green from top to bottom."""

    def make(height: int, width: int) -> Image.Image:
        values = np.zeros((height, width, 3), np.uint8)
        values[..., 0] = np.linspace(0, 255, width).round()
        values[..., 1] = np.linspace(0, 255, height).round()[:, None]
        return Image.fromarray(values)

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with fashion-mnist/, cifar10-jpeg/ and clothing/; the test is skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
    folder = Path(os.environ.get("DDPM_JAX_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real image data not found at {folder}; skipped")
    return folder


@pytest.fixture(params=["in memory", "on demand"])
def either_way(request, monkeypatch):
    """Runs a test twice: with a set that is decoded at once, and with one that is too large for that."""
    from ddpm_jax.data import image_source

    if request.param == "on demand":
        monkeypatch.setattr(image_source, "MEMORY_BUDGET_BYTES", 0)
    return request.param
