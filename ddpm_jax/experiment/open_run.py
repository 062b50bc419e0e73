"""Opens a trained run: a workdir, or one that comes with the package."""

import os

from ml_collections import ConfigDict

from ddpm_jax.experiment.config_json import config_from_json
from ddpm_jax.experiment.objective_factory import draws_images
from ddpm_jax.experiment.packaged_configs import base_config, with_defaults
from ddpm_jax.experiment.packaged_runs import is_packaged, open_packaged_run, packaged_runs
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.runtime.errors import UserError, arg, check_one_of, whole_number
from ddpm_jax.training.optimizer import ema_name
from ddpm_jax.training.train_state import ema_item
from ddpm_jax.workdir.checkpoints import Checkpoints


def open_run(
    workdir: str | os.PathLike, *, step: int | None = None, best: bool = False, weights: str = "ema"
) -> TrainedRun:
    """The config and the weights of a checkpoint.

    A config from before a field was added has the field at its default.

    Args:
      workdir: folder of the run, or "digits", a small trained model that comes with the package, where no folder
        has that name.
      step: which checkpoint; None for the newest that can be read.
      best: the one with the lowest eval loss instead.
      weights: "ema" for the first average, "ema/NAME" for one by its decay, such as "ema/0.9999", or "raw".

    Raises:
      UserError: no such folder, checkpoint or weights; both `step` and `best`.

    Example:
      >>> open_run("digits").image_shape
      (8, 8, 1)
    """
    workdir = os.fspath(workdir)
    step = None if step is None else whole_number("step", step)
    if best and step is not None:
        raise UserError(f"{arg('best')} and {arg(f'step={step}')} both choose a checkpoint: give one of them")
    if is_packaged(workdir):
        if best or step is not None or weights != "ema":
            raise UserError(
                f"the packaged run {workdir!r} has one checkpoint and its ema weights: leave out {arg('step')}, "
                f"{arg('best')} and {arg('weights')}"
            )
        return open_packaged_run(workdir)
    if not os.path.isdir(workdir):
        packaged = ", ".join(map(repr, packaged_runs()))
        raise UserError(
            f"{arg('workdir')} must be the folder of a training run, or one of the package, {packaged}; "
            f"there is no {workdir!r}"
        )
    checkpoints = Checkpoints(workdir)
    try:
        if best:
            step = checkpoints.best_step()
        step, params = checkpoints.restore_params(lambda config_json: _item_of(weights, config_json), step)
        _, config_json = checkpoints.restore_config(step)
    finally:
        checkpoints.close()
    config = with_defaults(config_from_json(config_json))
    _check_fields(config, workdir)
    if not draws_images(config):
        raise UserError(
            f"{arg('workdir')} must be a run of objective.name='diffusion'; got {workdir!r}, which trained "
            f"{config.objective.name!r}: it draws no images"
        )
    return TrainedRun(step, config, params)


def _check_fields(config: ConfigDict, workdir: str) -> None:
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
    names = [ema_name(decay) for decay in with_defaults(config_from_json(config_json)).optim.ema_decays]
    if not names:
        raise UserError("the config of the checkpoint has no average in optim.ema_decays: it was changed by hand")
    items = {"ema": ema_item(names[0], names[0]), "raw": "params"}
    items |= {f"ema/{name}": ema_item(name, names[0]) for name in names}
    check_one_of("weights", weights, items)
    return items[weights]
