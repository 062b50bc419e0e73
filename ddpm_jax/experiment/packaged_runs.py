"""Trained runs that come with the package: the config and the averaged weights, in float16.

`benchmarks/package_run.py` makes one of a workdir.
"""

import os
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import save_file

import ddpm_jax
from ddpm_jax.experiment.config_json import config_from_json, config_to_json
from ddpm_jax.experiment.packaged_configs import with_defaults
from ddpm_jax.experiment.trained_run import TrainedRun

_FOLDER = Path(ddpm_jax.__file__).parent / "pretrained"
_CONFIG, _WEIGHTS = "config.json", "ema_float16.safetensors"


def packaged_runs() -> list[str]:
    """Their names, sorted."""
    return sorted(path.parent.name for path in _FOLDER.glob(f"*/{_CONFIG}"))


def is_packaged(workdir: str) -> bool:
    """Whether `workdir` names a packaged run, and no folder of that name is here."""
    return workdir in packaged_runs() and not os.path.isdir(workdir)


def output_folder(workdir: str) -> str:
    """Where commands write by default: the workdir, or for the packaged run NAME ./NAME_output."""
    return f"{workdir}_output" if is_packaged(workdir) else workdir


def open_packaged_run(name: str) -> TrainedRun:
    """The run of that name, with float32 parameters."""
    config = with_defaults(config_from_json((_FOLDER / name / _CONFIG).read_text("utf-8")))
    with safe_open(_FOLDER / name / _WEIGHTS, framework="numpy") as file:
        flat = {key: file.get_tensor(key).astype(np.float32) for key in file.keys()}
        step = int(file.metadata()["step"])
    return TrainedRun(step, config, unflatten_dict(flat, sep="/"))


def save_packaged_run(run: TrainedRun, folder: str) -> None:
    """Writes the two files; the weights are rounded to float16, a relative error of at most 2**-11."""
    os.makedirs(folder)
    config = run.config.copy_and_resolve_references().unlock()
    config.data.path = ""  # of the machine that trained it
    Path(folder, _CONFIG).write_text(config_to_json(config), "utf-8")
    flat = {key: np.asarray(value, np.float16) for key, value in flatten_dict(run.params, sep="/").items()}
    save_file(flat, Path(folder, _WEIGHTS), metadata={"step": str(run.step)})
