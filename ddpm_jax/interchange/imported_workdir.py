"""Stores an imported network as the workdir of a run that has made no step yet."""

import os

import jax
import jax.numpy as jnp

from ddpm_jax.experiment import config_checks, model_factory, sampler_factory, training_factory
from ddpm_jax.experiment.config_files import Config
from ddpm_jax.experiment.config_json import config_to_json
from ddpm_jax.experiment.objective_factory import build_objective, draws_images
from ddpm_jax.interchange.imported_model import Imported
from ddpm_jax.runtime.atomic_files import new_folder
from ddpm_jax.training.train_state import init_state
from ddpm_jax.workdir.checkpoints import Checkpoints


def check_imported(config: Config) -> None:
    """Raises UserError if the parts of the config cannot be built or, for a diffusion model, sampled from."""
    config_checks.check_numbers(config)
    model_factory.build_network(config)
    process = model_factory.build_process(config)
    if draws_images(config):
        sampler_factory.build_table(config, process)


def write_workdir(imported: Imported, workdir: str | os.PathLike) -> None:
    """Writes checkpoints/0 and config.json into a new or empty folder, completely or not at all.

    The optimiser's state is new; a run that starts from step 0 may change its settings.

    Raises:
      UserError: the folder is not empty or cannot be created, or the config cannot be built.
    """
    config = imported.config
    check_imported(config)
    objective, ema_names = build_objective(config), tuple(training_factory.build_ema_decays(config))
    optimizer = objective.optimizer(training_factory.build_optimizer(config))
    with new_folder("--workdir", workdir) as folder:
        params, ema_params = (jax.tree.map(jnp.asarray, tree) for tree in (imported.params, imported.ema_params))
        state = init_state(params, optimizer, ema_names, objective.init_extra())
        state = state.replace(ema=dict.fromkeys(ema_names, ema_params))
        config_json = config_to_json(config)
        checkpoints = Checkpoints(str(folder), create=True)
        try:
            checkpoints.save(state, config_json)
            checkpoints.wait()
        finally:
            checkpoints.close()
        (folder / "config.json").write_text(config_json, encoding="utf-8")
