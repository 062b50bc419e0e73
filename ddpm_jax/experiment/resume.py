"""The state that a run goes on from: of its newest checkpoint, or of imported weights."""

import jax

from ddpm_jax.experiment import model_factory
from ddpm_jax.experiment.build import Parts
from ddpm_jax.training.train_state import TrainState
from ddpm_jax.workdir.checkpoints import Checkpoints


def saved_state(parts: Parts, checkpoints: Checkpoints) -> TrainState | None:
    """The newest state that can be read, on the mesh of `parts`; None where nothing was saved.

    Raises:
      UserError: there are checkpoints and none can be read, or imported weights that do not fit the network.
    """
    if checkpoints.steps() == [0]:  # training saves later steps alone: this one is of imported weights
        return _begin_from_import(parts, checkpoints)
    return checkpoints.restore_state(parts.abstract_state)


def _begin_from_import(parts: Parts, checkpoints: Checkpoints) -> TrainState:
    """A fresh state with the weights of step 0: its optimiser may be another one than that of the import."""
    weights = {}
    for item in ("params", "ema_params"):
        _, tree = checkpoints.restore_params(item, 0)
        model_factory.check_params(parts.config, parts.model, tree)
        weights[item] = jax.device_put(tree, getattr(parts.state_sharding, item))
    return parts.fresh_state().replace(**weights)
