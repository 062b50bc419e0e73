"""The state that a run goes on from: of its newest checkpoint, or of imported weights."""

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
    """The state that a run of this config goes on from; None where nothing was saved.

    Raises:
      UserError: the checkpoints are of a run of another config, or none can be read.
    """
    steps = checkpoints.steps()
    if not steps:
        return None
    step, text = checkpoints.restore_config()
    saved = config_from_json(text)
    if steps == [0]:  # training saves later steps alone: this one is of imported weights
        check_same_run(saved, experiment.config, CHANGEABLE_AT_IMPORT)
    else:
        at_end = CHANGEABLE_AT_THE_END if _is_over(saved, step) else ()
        check_same_run(saved, experiment.config, (*CHANGEABLE, *at_end))
    return saved_state(experiment, checkpoints)


def _is_over(saved: ConfigDict, step: int) -> bool:
    """Whether the run has made all its updates, or would change nothing in those that are left."""
    config = with_defaults(saved)
    return step >= config.train.num_steps or float(build_learning_rate(config)(step)) == 0


def saved_state(experiment: Experiment, checkpoints: Checkpoints) -> TrainState | None:
    """The newest state that can be read, on the mesh of `experiment`; None where nothing was saved.

    Raises:
      UserError: there are checkpoints and none can be read, or imported weights that do not fit the network.
    """
    if checkpoints.steps() == [0]:  # training saves later steps alone: this one is of imported weights
        return _begin_from_import(experiment, checkpoints)
    return checkpoints.restore_state(experiment.abstract_state)


def _begin_from_import(experiment: Experiment, checkpoints: Checkpoints) -> TrainState:
    """A fresh state with the weights of step 0: its optimiser and its averages may be others than the import's.

    Every average starts at the imported one.
    """

    def imported(item: str) -> PyTree:
        _, tree = checkpoints.restore_params(item, 0)
        model_factory.check_params(experiment.config, experiment.model, tree)
        return tree

    sharding = experiment.state_sharding
    params, average = jax.device_put(imported("params"), sharding.params), imported("ema_params")
    ema = {name: jax.device_put(average, where) for name, where in sharding.ema.items()}
    return experiment.fresh_state().replace(params=params, ema=ema)
