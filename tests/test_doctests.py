"""Every example in a docstring of the package runs as written."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ddpm_jax"


def examples_by_module():
    """{"ddpm_jax.models.layers": 1, ...}: the examples in the source of each module that has some; imports nothing."""
    counts = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        counts[name] = len(re.findall(r"^ *>>> ", path.read_text("utf-8"), flags=re.MULTILINE))
    return {name: count for name, count in counts.items() if count}


EXAMPLES = examples_by_module()


def test_examples_are_found_in_every_folder():
    assert {"ddpm_jax.diffusion.schedules", "ddpm_jax.models.layers", "ddpm_jax.data.batch_loader"} <= EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    # As many as the source has: doctest skips, without a word, what it does not take for the module's own.
    assert (result.failed, result.attempted) == (0, EXAMPLES[name])
