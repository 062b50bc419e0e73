"""What an import brings along, and the one way in which the folders of the package may import each other."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ddpm_jax"

# Folder -> the folders (or modules) that its modules may import besides their own. An order, so no cycle can form.
ALLOWED = {
    "runtime": (),
    "diffusion": ("runtime.errors",),
    "models": ("runtime.errors",),
    "codecs": ("runtime.errors", "diffusion", "models"),
    "data": ("runtime",),
    "workdir": ("runtime",),
    "training": ("runtime", "diffusion", "models", "codecs", "data", "workdir"),
    "experiment": ("runtime", "diffusion", "models", "codecs", "data", "workdir", "training"),
    "interchange": ("runtime", "diffusion", "models", "workdir", "training", "experiment"),
    "evaluation": ("runtime", "diffusion", "codecs", "data", "experiment", "interchange"),
    "editing": ("runtime", "diffusion", "codecs", "data", "experiment"),
    "cascades": ("runtime", "diffusion", "codecs", "workdir", "experiment"),
    "benchmarking": ("runtime", "diffusion", "models", "data", "training", "experiment"),
}
# The commands `python -m ddpm_jax.<verb>`, each of which may import what it needs, and no other command.
COMMANDS = {"train", "sample", "edit", "evaluate", "convert", "benchmark"}
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))


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
    """The parts after "ddpm_jax.": {"models.unet", "diffusion.schedules", ...}."""
    return {name.removeprefix("ddpm_jax.") for name in names if name.startswith("ddpm_jax.")}


def loaded_by(module):
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(json.loads(out.stdout))


@pytest.mark.processes
def test_importing_the_package_brings_no_heavy_library():
    loaded = loaded_by("ddpm_jax, ddpm_jax.diffusion.samplers, ddpm_jax.models.unet")
    for name in ("tensorflow", "tensorflow_datasets", "matplotlib", "absl.app", "ml_collections", "torch"):
        assert name not in loaded, name
    # Flax loads absl.flags for its own logging: no flag may be ours.
    assert not any("absl" in name for path in PACKAGE.rglob("*.py") for name in imports_of(path))
    # Its state would be shared with the plots of whoever calls us.
    assert not any("pyplot" in name for path in PACKAGE.rglob("*.py") for name in imports_of(path))


def test_every_module_is_a_command_or_lies_in_a_folder_of_the_table():
    top = {module.name for module in MODULES if len(module.parts) == 1}
    assert top == COMMANDS | {"__init__", "__main__"}
    assert {module.parts[0] for module in MODULES if len(module.parts) > 1} == ALLOWED.keys()


@pytest.mark.parametrize("folder", ALLOWED)
def test_folders_import_one_way(folder):
    modules = [module for module in MODULES if module.parts[0] == folder]
    for module in modules:
        for name in ours(imports_of(PACKAGE / module.with_suffix(".py"))):
            allowed = (folder, *ALLOWED[folder])
            assert any(name == one or name.startswith(f"{one}.") for one in allowed), f"{module} imports {name}"


def test_the_table_is_an_order():
    folders = list(ALLOWED)
    for folder, allowed in ALLOWED.items():
        assert {name.partition(".")[0] for name in allowed} <= set(folders[: folders.index(folder)])


def reads_of_configs(source):
    """The line of each `config.x`, `self._config.x`, `run.config.x` or `config["x"]`; not of `jax.config.x`."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute | ast.Subscript):
            read = node.value
            name = read.id if isinstance(read, ast.Name) else read.attr if isinstance(read, ast.Attribute) else ""
            is_jax = isinstance(read, ast.Attribute) and isinstance(read.value, ast.Name) and read.value.id == "jax"
            if name.endswith("config") and not is_jax:
                lines.append(node.lineno)
    return lines


def test_what_counts_as_reading_a_config():
    for source in ("config.unet.channels", "self._config.data", "run.config.eval.batch_size", "f(args.config.train)",
                   "config['model']", "x = config.unlocked()"):  # fmt: skip
        assert reads_of_configs(source) == [1], source
    for source in ("jax.config.update('a', 1)", "build_model(config)", "replace(run, config=run.config)"):
        assert reads_of_configs(source) == [], source


def test_only_experiment_reads_a_config():
    """The others hand it on, and take plain values, an `Experiment` or a `TrainedRun`."""
    for module in MODULES:
        if module.parts[0] != "experiment":
            path = PACKAGE / module.with_suffix(".py")
            assert not any(name.startswith("ml_collections") for name in imports_of(path)), path
            assert not reads_of_configs(path.read_text()), f"{path}: lines {reads_of_configs(path.read_text())}"


def test_samplers_stand_on_the_rest_of_the_mathematics():
    for path in (PACKAGE / "diffusion").glob("*.py"):
        assert not any(name.startswith("diffusion.samplers") for name in ours(imports_of(path))), path


def test_no_command_imports_another():
    for name in COMMANDS:
        used = {name.partition(".")[0] for name in ours(imports_of(PACKAGE / f"{name}.py"))}
        assert used <= ALLOWED.keys(), f"{name} imports {sorted(used - ALLOWED.keys())}"


def test_the_mathematics_and_the_networks_are_pure():
    """No config, no file, and in the mathematics no Linen."""
    standard = {"collections", "contextlib", "contextvars", "dataclasses", "enum", "functools", "math", "typing"}
    libraries = {"flax", "jax", "jaxtyping", "numpy", "ddpm_jax"}
    for folder in ("diffusion", "models"):
        for path in (PACKAGE / folder).rglob("*.py"):
            names = imports_of(path)
            assert {name.split(".")[0] for name in names} <= standard | libraries, path
            assert folder == "models" or not any(name.startswith("flax.linen") for name in names), path
