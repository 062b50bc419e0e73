"""A trained run, opened from its workdir: the config from the checkpoint and the weights."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ml_collections import ConfigDict

from ddpm_jax.experiment.config_json import config_from_json
from ddpm_jax.experiment.config_overrides import apply_override
from ddpm_jax.experiment.packaged_configs import with_defaults
from ddpm_jax.runtime.errors import UserError, check_one_of
from ddpm_jax.workdir.checkpoints import Checkpoints

WEIGHTS = {"ema": "ema_params", "raw": "params"}


# What may be said anew of a run that is measured: which pictures, and where they are.
DATA_FIELDS = ("data.name", "data.path", "data.data_dir", "data.split", "data.eval_split")


@dataclass(frozen=True)
class TrainedRun:
    """One checkpoint of a run, as NumPy arrays: nothing in it depends on the devices it was trained on."""

    step: int
    config: ConfigDict
    params: dict


def open_trained_run(workdir: str, *, step: int | None = None, best: bool = False, weights: str = "ema") -> TrainedRun:
    """The config and the weights of a checkpoint.

    A config from before a field was added has the field at its default.

    Args:
      step: which; None for the newest that can be read.
      best: the one with the lowest eval loss instead.
      weights: "ema" or "raw".

    Raises:
      UserError: no such folder, checkpoint or weights; both `step` and `best`.
    """
    check_one_of("--weights", weights, WEIGHTS)
    if best and step is not None:
        raise UserError(f"--best and --step={step} both choose a checkpoint: give one of them")
    if not os.path.isdir(workdir):
        raise UserError(f"--workdir must be the folder of a training run; there is no {workdir!r}")
    checkpoints = Checkpoints(workdir)
    try:
        if best:
            step = checkpoints.best_step()
        step, params = checkpoints.restore_params(WEIGHTS[weights], step)
        _, config_json = checkpoints.restore_config(step)
    finally:
        checkpoints.close()
    return TrainedRun(step, with_defaults(config_from_json(config_json)), params)


def with_data(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """`config` with `data.field=value` applied, of the fields DATA_FIELDS; locked.

    Raises:
      UserError: another field, or a value of a wrong type.
    """
    config = config.copy_and_resolve_references()
    for override in overrides:
        field = override.partition("=")[0]
        check_one_of("a field after --config.", field, DATA_FIELDS)
        apply_override(config, override)
    return config.lock()
