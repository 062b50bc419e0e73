"""What the README shows runs as it stands there."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_run_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _ = blocks("python")
    names = {}
    exec(compile(code.replace("num_sampler_steps=20", "num_sampler_steps=2"), "README.md", "exec"), names)
    assert names["images"].shape == (64, 8, 8, 1) and (tmp_path / "digits.png").is_file()


def test_the_library_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, code = blocks("python")
    shorter = code.replace("range(200)", "range(2)").replace("spaced_steps(1000, 50)", "spaced_steps(1000, 3)")
    assert shorter.count("range(2)") == shorter.count("spaced_steps(1000, 3)") == 1
    names = {}
    exec(compile(shorter, "README.md", "exec"), names)
    samples = np.asarray(names["samples"])
    assert samples.shape == (16, 8, 8, 1) and samples.dtype == np.uint8
    assert np.isfinite(names["metrics"]["loss"]) and (tmp_path / "digits.png").is_file()


def commands():
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return sorted({part for part in parts if part.startswith("python -m ddpm_jax.")})


@pytest.mark.parametrize("command", commands())
def test_the_commands_parse(command, monkeypatch):
    """Every flag and config field that the README types exists."""
    import importlib

    module, *argv = shlex.split(command)[2:]
    module = {"ddpm_jax.data": "ddpm_jax.data.__main__"}.get(module, module)  # a package of sub-commands
    seen = {}

    def parse_only(main, parser, argv):
        seen["args"] = parser.parse(list(argv))
        return 0

    command_module = importlib.import_module(module)
    monkeypatch.setattr(command_module, "run", parse_only)
    assert command_module.main(argv) == 0
    assert seen["args"]


def test_the_files_it_names_are_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    experiments = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \| .* \| (?:not )?run", experiments, re.MULTILINE)
    assert len(found) > 5
    for name in found:
        for config in filter(None, name):
            assert (ROOT / "configs" / f"{config}.py").is_file(), config
