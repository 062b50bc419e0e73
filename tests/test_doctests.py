"""The examples in the docstrings of the core run as written."""

import doctest
import importlib

import pytest

CORE = [
    "schedules", "diffusion", "likelihood", "losses", "ode_likelihood", "samplers", "models.layers", "models.qkv",
    "models.unet",
]  # fmt: skip


@pytest.mark.parametrize("name", CORE)
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(f"ddpm_jax.{name}"))
    assert result.failed == 0


def test_some_examples_exist():
    modules = (importlib.import_module(f"ddpm_jax.{name}") for name in CORE)
    assert sum(len(t.examples) for m in modules for t in doctest.DocTestFinder().find(m)) >= 6
