"""The config and the weights of a checkpoint of a run, whatever was trained."""

import os

from ml_collections import ConfigDict

from ddpm_jax.experiment.config_json import config_from_json
from ddpm_jax.experiment.packaged_configs import base_config, with_defaults
from ddpm_jax.runtime.errors import UserError, arg, check_one_of, whole_number
from ddpm_jax.training.optimizer import ema_name
from ddpm_jax.training.power_averages import std_name
from ddpm_jax.training.train_state import ema_item
from ddpm_jax.workdir.checkpoints import Checkpoints


def read_run_checkpoint(
    workdir: str, *, step: int | None = None, best: bool = False, weights: str = "ema"
) -> tuple[int, ConfigDict, dict]:
    """The step, the config and the weights of a checkpoint, of whatever was trained; see `open_run.open_run`."""
    step = None if step is None else whole_number("step", step)
    if best and step is not None:
        raise UserError(f"{arg('best')} and {arg(f'step={step}')} both choose a checkpoint: give one of them")
    checkpoints = Checkpoints(workdir)
    try:
        if best:
            step = checkpoints.best_step()
        step, params = checkpoints.restore_params(lambda config_json: _item_of(weights, config_json), step)
        _, config_json = checkpoints.restore_config(step)
    finally:
        checkpoints.close()
    config = with_defaults(config_from_json(config_json))
    check_known_fields(config, workdir)
    return step, config, params


def check_known_fields(config: ConfigDict, workdir: str) -> None:
    """Raises UserError for a field that a later ddpm_jax has added to a group of today."""
    for group, fields in base_config().items():
        unknown = sorted(set(config[group]) - set(fields))
        if unknown:
            raise UserError(
                f"the run in {workdir} has the field {f'{group}.{unknown[0]}'!r}, which this ddpm_jax does "
                "not know: upgrade ddpm_jax"
            )


def _item_of(weights: str, config_json: str) -> str:
    """The item of a checkpoint that holds `weights`, of those that its config names; UserError for any others."""
    optim = with_defaults(config_from_json(config_json)).optim
    names = [ema_name(decay) for decay in optim.ema_decays]
    if not names:
        raise UserError("the config of the checkpoint has no average in optim.ema_decays: it was changed by hand")
    items = {"ema": ema_item(names[0], names[0]), "raw": "params"}
    items |= {f"ema/{name}": ema_item(name, names[0]) for name in (*names, *map(std_name, optim.ema_stds))}
    check_one_of("weights", weights, items)
    return items[weights]


def checkpoints_changed(workdir: str) -> int | None:
    """When the checkpoints of a run last changed, in nanoseconds; None where there are none."""
    try:
        return os.stat(os.path.join(workdir, "checkpoints")).st_mtime_ns if workdir else None
    except OSError:
        return None
