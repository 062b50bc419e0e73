"""Trained runs that come with the package: the config and the averaged weights, in float16.

`benchmarks/package_run.py` makes one of a workdir.
"""

import os
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from safetensors import safe_open
from safetensors.numpy import save_file

import ddpm_jax
from ddpm_jax.experiment.config_json import config_from_json, config_to_json
from ddpm_jax.experiment.packaged_configs import with_defaults
from ddpm_jax.runtime.errors import UserError, arg

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


def no_such_folder(argument: str, workdir: str) -> UserError:
    """The error for a folder of a run that does not exist, where the package's runs are not accepted either."""
    is_name = f", and the packaged run of that name can only be the {arg('workdir')}" if is_packaged(workdir) else ""
    return UserError(f"{argument} must be the folder of a training run; there is no {workdir!r}{is_name}")


def read_packaged_run(name: str) -> tuple[int, ConfigDict, dict]:
    """The step, the config and the averaged weights of the run of that name, in float32."""
    config = with_defaults(config_from_json((_FOLDER / name / _CONFIG).read_text("utf-8")))
    with safe_open(_FOLDER / name / _WEIGHTS, framework="numpy") as file:
        flat = {key: file.get_tensor(key).astype(np.float32) for key in file.keys()}
        step = int(file.metadata()["step"])
    return step, config, unflatten_dict(flat, sep="/")


def save_packaged_run(step: int, config: ConfigDict, params: dict, folder: str) -> None:
    """Writes the two files of a run; the weights are rounded to float16, a relative error of at most 2**-11."""
    os.makedirs(folder)
    config = config.copy_and_resolve_references().unlock()
    config.data.path = ""  # of the machine that trained it
    Path(folder, _CONFIG).write_text(config_to_json(config), "utf-8")
    flat = {key: np.asarray(value, np.float16) for key, value in flatten_dict(params, sep="/").items()}
    save_file(flat, Path(folder, _WEIGHTS), metadata={"step": str(step)})
