"""Opens a trained run: a workdir, or one that comes with the package."""

import os

from ddpm_jax.experiment.objective_factory import draws_images
from ddpm_jax.experiment.packaged_runs import is_packaged, packaged_runs, read_packaged_run
from ddpm_jax.experiment.post_hoc_average import read_post_hoc_average
from ddpm_jax.experiment.run_checkpoint import read_run_checkpoint
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.runtime.errors import UserError, arg, whole_number
from ddpm_jax.workdir.class_names import read_class_names


def weights_text(weights: str, ema_std: float | None) -> str:
    """How the weights are named in output: as `weights`, or as "ema_std=0.1"."""
    return weights if ema_std is None else f"ema_std={float(ema_std)!r}"


def open_run(
    workdir: str | os.PathLike,
    *,
    step: int | None = None,
    best: bool = False,
    weights: str = "ema",
    ema_std: float | None = None,
) -> TrainedRun:
    """The config and the weights of a checkpoint.

    A config from before a field was added has the field at its default.

    Args:
      workdir: folder of the run, or "digits", a small trained model that comes with the package, where no folder
        has that name.
      step: which checkpoint; None for the newest that can be read.
      best: the one with the lowest eval loss instead.
      weights: "ema" for the first average, "ema/NAME" for one by its decay, such as "ema/0.9999", or by its length,
        such as "ema/std_0.05", or "raw".
      ema_std: instead, the average of this length at the checkpoint's step, which need not have been kept: it is
        reconstructed from snapshots (docs/post_hoc_ema.md). `TrainedRun.post_hoc` says from how many.

    Raises:
      UserError: no such folder, checkpoint or weights; both `step` and `best`, or `weights` and `ema_std`; an average
        that cannot be reconstructed.

    Example:
      >>> open_run("digits").image_shape
      (8, 8, 1)
    """
    workdir = os.fspath(workdir)
    step = None if step is None else whole_number("step", step)
    if best and step is not None:
        raise UserError(f"{arg('best')} and {arg(f'step={step}')} both choose a checkpoint: give one of them")
    if ema_std is not None and weights != "ema":
        raise UserError(f"{arg(f'weights={weights}')} and {arg(f'ema_std={ema_std}')} both choose weights: give one")
    if is_packaged(workdir):
        if best or step is not None or weights != "ema" or ema_std is not None:
            raise UserError(
                f"the packaged run {workdir!r} has one checkpoint and its ema weights: leave out {arg('step')}, "
                f"{arg('best')}, {arg('weights')} and {arg('ema_std')}"
            )
        return TrainedRun(*read_packaged_run(workdir))
    if not os.path.isdir(workdir):
        packaged = ", ".join(map(repr, packaged_runs()))
        raise UserError(
            f"{arg('workdir')} must be the folder of a training run, or one of the package, {packaged}; "
            f"there is no {workdir!r}"
        )
    post_hoc = None
    if ema_std is None:
        step, config, params = read_run_checkpoint(workdir, step=step, best=best, weights=weights)
    else:
        step, config, params, post_hoc = read_post_hoc_average(workdir, ema_std, step=step, best=best)
    if not draws_images(config):
        raise UserError(
            f"{arg('workdir')} must be a run of objective.name='diffusion'; got {workdir!r}, which trained "
            f"{config.objective.name!r}: it draws no images"
        )
    return TrainedRun(step, config, params, read_class_names(workdir), post_hoc)
