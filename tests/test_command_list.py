"""`python -m ddpm_jax`: the list of commands, and what it hands on to them."""

import importlib
import re
from importlib.metadata import version
from pathlib import Path

import pytest

import ddpm_jax
from ddpm_jax.__main__ import COMMANDS, main


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_it_lists_every_command(argv, capsys):
    assert main(argv) == 0
    text = capsys.readouterr().out
    for name, (_, _, what) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(what)}$", text, re.MULTILINE)


def test_it_hands_on_the_flags_and_the_exit_code(monkeypatch):
    for name, (module, first, _) in COMMANDS.items():
        seen = []
        monkeypatch.setattr(importlib.import_module(module), "main", lambda argv, seen=seen: seen.append(argv) or 74)
        assert main([name, "--workdir=x", "y"]) == 74 and seen == [[*first, "--workdir=x", "y"]]


def test_an_unknown_command_is_one_line(capsys):
    assert main(["trian", "--workdir=x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown command 'trian'; must be one of train, sample, ")
    assert error.endswith("did you mean 'train'?\n") and error.count("\n") == 1


def test_the_version_has_one_home(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ddpm_jax {ddpm_jax.__version__}\n"
    assert version("ddpm_jax") == ddpm_jax.__version__
    changes = (Path(ddpm_jax.__file__).parent.parent / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## {re.escape(ddpm_jax.__version__)}\b", changes, re.MULTILINE)


def test_its_types_are_for_others_too():
    assert (Path(ddpm_jax.__file__).parent / "py.typed").is_file()
