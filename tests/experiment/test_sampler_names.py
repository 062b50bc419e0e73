"""The names of samplers and spacings have one home; flags are made from it, and the docs agree with it."""

import re
from pathlib import Path

from ddpm_jax.diffusion.timestep_spacing import SPACINGS
from ddpm_jax.experiment.config_flags import OverridesParser
from ddpm_jax.experiment.sampler_factory import SAMPLERS
from ddpm_jax.experiment.sampler_flags import add_sampler_flags

DOCS = (Path(__file__).parents[2] / "docs" / "samplers.md").read_text("utf-8")


def names_in_table(header):
    """What stands in backticks in the first column of the table of docs/samplers.md that begins with `header`."""
    rows = DOCS.partition(f"{header}\n")[2].partition("\n\n")[0].splitlines()[1:]
    assert rows, header
    return [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]


def test_the_docs_have_a_row_for_each():
    assert sorted(names_in_table("| name | what | calls for N steps | order |")) == sorted(SAMPLERS)
    assert sorted(names_in_table("| name | steps |")) == sorted(SPACINGS)


def test_the_flags_list_them():
    parser = OverridesParser("sample", "Draws.", "python -m ddpm_jax.sample")
    add_sampler_flags(parser)
    shown = " ".join(parser.format_help().split())
    for names in (SAMPLERS, SPACINGS):
        assert f"{', '.join(names[:-1])} or {names[-1]}" in shown
