"""The average of any length of a run's parameters, from its snapshots and a checkpoint (post-hoc EMA)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddpm_jax.experiment.config_json import config_from_json
from ddpm_jax.experiment.packaged_configs import with_defaults
from ddpm_jax.experiment.run_checkpoint import check_known_fields
from ddpm_jax.runtime.errors import UserError, arg, arguments_named
from ddpm_jax.training.post_hoc_ema import MAX_PROFILE_ERROR, MAX_ROUNDING_ERROR, post_hoc_weights, rounding_error
from ddpm_jax.training.power_averages import gamma_of_std, std_name
from ddpm_jax.training.train_state import ema_item
from ddpm_jax.workdir.checkpoints import Checkpoints
from ddpm_jax.workdir.ema_snapshots import EmaSnapshots


@dataclass(frozen=True)
class PostHocAverage:
    """How an average was reconstructed: its length, from the averages of how many steps, the error of its profile, and
    the most that rounding of the stored averages changes it, as a share of its parameters (`rounding_error`)."""

    std: float
    num_steps: int
    profile_error: float
    rounding_error: float

    def __str__(self) -> str:
        steps = "1 step" if self.num_steps == 1 else f"{self.num_steps} steps"
        profile, rounding = (f"{100 * error:.2g}%" for error in (self.profile_error, self.rounding_error))
        return (
            f"average of length {float(self.std)!r} from those of {steps}, with an error of {profile} in its profile "
            f"and of at most {rounding} by rounding"
        )


def read_post_hoc_average(
    workdir: str, std: float, *, step: int | None = None, best: bool = False
) -> tuple[int, ConfigDict, dict, PostHocAverage]:
    """The step, the config, the average of length `std` at that step, and how it was reconstructed.

    It is the sum of the averages of optim.ema_stds in the snapshots up to the step, and in the checkpoint itself, with
    the weights of `post_hoc_weights`; summed in float64. An average that the checkpoint has is taken as it is.

    Args:
      step, best: which checkpoint, as for `open_run`: by default the newest whose averages can be read.

    Raises:
      UserError: no such checkpoint, no averages to reconstruct from, a length that they do not represent, or a damaged
        snapshot.
    """
    with arguments_named({"std": arg("ema_std")}.get):
        gamma_of_std(std)
    checkpoints = Checkpoints(workdir)
    try:
        chosen = checkpoints.best_step() if best else step
        step, config_json = checkpoints.restore_config(chosen)
        config = with_defaults(config_from_json(config_json))
        check_known_fields(config, workdir)
        stds = config.optim.ema_stds
        if not stds or step == 0:
            what = "has made no update" if stds else "keeps no such averages"
            raise UserError(
                f"{arg('ema_std')} needs the averages of optim.ema_stds, and the run in {workdir} {what}: train with "
                "--config.optim.ema_stds=0.05,0.1"
            )
        items = {of_std: ema_item(std_name(of_std), "") for of_std in ([std] if std in stds else stds)}
        newest = step
        step, of_checkpoint = checkpoints.restore_items(list(items.values()), chosen)
        if step != newest:
            config = with_defaults(config_from_json(checkpoints.restore_config(step)[1]))
        snapshots = EmaSnapshots(workdir)
        steps = [earlier for earlier in snapshots.steps() if 1 <= earlier < step]
        weights, how = _weights([*steps, step], stds, std)

        def averages() -> Iterator[PyTree]:
            for weight, at, of_std in weights:
                if at < step:
                    yield weight, snapshots.read(at, std_name(of_std))
                else:
                    yield weight, of_checkpoint[items[of_std]]

        return step, config, _weighted_sum(averages()), how
    finally:
        checkpoints.close()


def _weights(
    steps: Sequence[int], stds: Sequence[float], std: float
) -> tuple[list[tuple[float, int, float]], PostHocAverage]:
    """[(weight, step, std)] of the averages to be added, for the average of length `std` at the last of the steps."""
    if std in stds:
        return [(1.0, steps[-1], std)], PostHocAverage(std, 1, 0.0, rounding_error(1.0))
    pairs = [(step, of_std) for step in steps for of_std in stds]
    with arguments_named({"stds": "optim.ema_stds"}.get):
        weights, error = post_hoc_weights(*zip(*pairs, strict=True), step=steps[-1], std=std)
    if error > MAX_PROFILE_ERROR:
        num_steps = f"{len(steps)} step{'s' * (len(steps) > 1)}"
        raise UserError(
            f"{arg('ema_std')}={std} cannot be reconstructed: the averages of {num_steps} leave an error of "
            f"{100 * error:.3g}% in its profile, and at most {100 * MAX_PROFILE_ERROR:g}% is accepted; take a "
            "length nearer to those of optim.ema_stds, or train with more train.num_ema_snapshots"
        )
    rounding = rounding_error(weights)
    if rounding > MAX_ROUNDING_ERROR:
        raise UserError(
            f"{arg('ema_std')}={std} cannot be reconstructed: rounding of the stored averages would change it by up to "
            f"{100 * rounding:.2g}% of its parameters, and at most {100 * MAX_ROUNDING_ERROR:g}% is accepted; take a "
            "length nearer to those of optim.ema_stds"
        )
    chosen = [(weight, *pair) for weight, pair in zip(weights, pairs, strict=True)]
    return chosen, PostHocAverage(std, len(steps), error, rounding)


def _weighted_sum(averages: Iterator[tuple[float, PyTree]]) -> PyTree:
    """sum_i weight_i * average_i in float64, as arrays of the averages' types."""
    total, like = None, None
    for weight, average in averages:
        term = jax.tree.map(lambda leaf, weight=weight: weight * leaf.astype(np.float64), average)
        total, like = (term, average) if total is None else (jax.tree.map(np.add, total, term), like)
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), total, like)
