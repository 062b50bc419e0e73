"""Stand-ins that let a peer be imported without a library that it uses in its trainer alone."""

import sys
import types
from unittest import mock

import pytest


@pytest.fixture(scope="session")
def diffusers():
    return pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e '.[parity]'")


@pytest.fixture(scope="session")
def lucidrains():
    """denoising_diffusion_pytorch's module of the same name; torchvision serves its Trainer only."""
    pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[parity]'")
    names = ("torchvision", "torchvision.transforms", "torchvision.utils")
    stand_ins = {name: mock.MagicMock(spec=types.ModuleType(name)) for name in names}
    try:
        import torchvision  # noqa: F401

        stand_ins = {}
    except ImportError:
        for module in stand_ins.values():
            module.__spec__ = None
        stand_ins["torchvision"].transforms = stand_ins["torchvision.transforms"]
        stand_ins["torchvision"].utils = stand_ins["torchvision.utils"]
        stand_ins["torchvision.utils"].save_image = None
    with mock.patch.dict(sys.modules, stand_ins):
        return pytest.importorskip(
            "denoising_diffusion_pytorch.denoising_diffusion_pytorch",
            reason="denoising_diffusion_pytorch is not installed: pip install -e '.[parity]'",
        )
