"""The state that a run resumes from: its newest checkpoint, or imported weights."""

import jax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddpm_jax.experiment import model_factory
from ddpm_jax.experiment.build import Experiment
from ddpm_jax.experiment.config_changes import (
    CHANGEABLE,
    CHANGEABLE_AT_IMPORT,
    CHANGEABLE_AT_THE_END,
    check_same_run,
)
from ddpm_jax.experiment.config_json import config_from_json
from ddpm_jax.experiment.packaged_configs import with_defaults
from ddpm_jax.experiment.training_factory import build_learning_rate
from ddpm_jax.training.train_state import TrainState
from ddpm_jax.workdir.checkpoints import Checkpoints


def resumed_state(experiment: Experiment, checkpoints: Checkpoints) -> TrainState | None:
    """The state that a run with this config resumes from; None if nothing was saved.

    Raises:
      UserError: the checkpoints belong to a run with another config, or none can be read.
    """
    steps = checkpoints.steps()
    if not steps:
        return None
    step, text = checkpoints.restore_config()
    saved = config_from_json(text)
    if steps == [0]:  # training saves only later steps: step 0 holds imported weights
        check_same_run(saved, experiment.config, CHANGEABLE_AT_IMPORT)
    else:
        at_end = CHANGEABLE_AT_THE_END if _is_over(saved, step) else ()
        check_same_run(saved, experiment.config, (*CHANGEABLE, *at_end))
    return saved_state(experiment, checkpoints)


def saved_length(checkpoints: Checkpoints) -> int | None:
    """The number of steps that the run in the workdir was last started for; None if nothing was saved."""
    if not checkpoints.steps():
        return None
    return with_defaults(config_from_json(checkpoints.restore_config()[1])).train.num_steps


def _is_over(saved: ConfigDict, step: int) -> bool:
    """Whether the run has made all its updates, or the remaining ones would change nothing."""
    config = with_defaults(saved)
    return step >= config.train.num_steps or float(build_learning_rate(config)(step)) == 0


def saved_state(experiment: Experiment, checkpoints: Checkpoints) -> TrainState | None:
    """The newest readable state, on the mesh of `experiment`; None if nothing was saved.

    Raises:
      UserError: there are checkpoints but none can be read, or imported weights do not fit the network.
    """
    if checkpoints.steps() == [0]:  # training saves only later steps: step 0 holds imported weights
        return _begin_from_import(experiment, checkpoints)
    return checkpoints.restore_state(experiment.abstract_state)


def _begin_from_import(experiment: Experiment, checkpoints: Checkpoints) -> TrainState:
    """A fresh state with the weights of step 0, because its optimiser and averages may differ from those of the import.

    Every average starts at the imported average.
    """

    def imported(item: str) -> PyTree:
        _, tree = checkpoints.restore_params(item, 0)
        model_factory.check_params(experiment.config, experiment.model, tree)
        return tree

    sharding = experiment.state_sharding
    params, average = jax.device_put(imported("params"), sharding.params), imported("ema_params")
    ema = {name: jax.device_put(average, where) for name, where in sharding.ema.items()}
    return experiment.fresh_state().replace(params=params, ema=ema)
