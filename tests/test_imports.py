"""What an import brings along, and the one way in which the modules may import each other."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ddpm_jax"

# A module may import from those left of it alone; those of one entry may not import each other.
ORDER = [
    ("errors",),
    ("keys", "schedules", "time_sampling"),
    ("diffusion", "respacing"),
    ("denoiser",),
    ("likelihood", "samplers", "weightings"),
    ("losses", "ode_likelihood"),
]


def imports_of(path):
    """Full names of all that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(names):
    """The parts after "ddpm_jax.": {"models.unet", "schedules", ...}."""
    return {name.removeprefix("ddpm_jax.") for name in names if name.startswith("ddpm_jax.")}


def loaded_by(module):
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(json.loads(out.stdout))


def test_importing_the_package_brings_no_heavy_library():
    core = ("schedules", "diffusion", "likelihood", "losses", "samplers", "models.unet")
    loaded = loaded_by("ddpm_jax, " + ", ".join(f"ddpm_jax.{name}" for name in core))
    for name in ("tensorflow", "tensorflow_datasets", "matplotlib", "absl.app", "ml_collections", "torch"):
        assert name not in loaded, name
    # Flax loads absl.flags for its own logging: no flag may be ours.
    assert not any("absl" in name for path in PACKAGE.rglob("*.py") for name in imports_of(path))
    # Its state would be shared with the plots of whoever calls us.
    assert not any("pyplot" in name for path in PACKAGE.rglob("*.py") for name in imports_of(path))


@pytest.mark.parametrize("level", range(len(ORDER)))
def test_the_core_imports_one_way(level):
    left = {name for names in ORDER[:level] for name in names}
    for module in ORDER[level]:
        used = {name.split(".")[0] for name in ours(imports_of(PACKAGE / f"{module}.py"))}
        assert used <= left, f"{module} imports {sorted(used - left)}"


def test_solvers_stand_on_the_samplers():
    for path in (PACKAGE / "solvers").glob("*.py"):
        used = {name.split(".")[0] for name in ours(imports_of(path))}
        assert used <= {"errors", "respacing", "samplers", "schedules", "solvers"}, path


CORE = {name for names in ORDER for name in names}
COMMANDS = {"train", "sample", "evaluate", "convert", "benchmark", "benchmarking", "commands"}


def test_the_core_is_pure():
    for module in CORE:
        libraries = {name.split(".")[0] for name in imports_of(PACKAGE / f"{module}.py")}
        standard = {"collections", "dataclasses", "difflib", "typing", "math"}
        assert libraries <= standard | {"flax", "jax", "jaxtyping", "numpy", "ddpm_jax"}, module


def test_models_are_a_leaf():
    for path in (PACKAGE / "models").glob("*.py"):
        used = imports_of(path)
        assert {name.split(".")[0] for name in ours(used)} <= {"models", "errors"}, path
        assert not any(name.startswith("ml_collections") for name in used), path


def test_nothing_below_imports_what_stands_above():
    """core, models <- training <- factories <- evaluation <- commands: no arrow the other way."""
    above = {
        "training": {"factories", "sampler_factory", "training_factory", "evaluation"} | COMMANDS,
        "factories": {"evaluation"} | COMMANDS,
        "evaluation": COMMANDS,
    }
    for part, forbidden in above.items():
        paths = [*(PACKAGE / part).glob("*.py"), *PACKAGE.glob(f"{part}.py")]
        assert paths, part
        for path in paths:
            used = {name.split(".")[0] for name in ours(imports_of(path))}
            assert not used & forbidden, f"{path.name} imports {sorted(used & forbidden)}"
