"""The weaker network of autoguidance (Karras et al. 2024): a checkpoint of another run, or an earlier one of the same.

It is read from `sample.autoguidance`.
"""

import dataclasses
import functools
import os
from dataclasses import dataclass

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddpm_jax.data.condition import Condition
from ddpm_jax.diffusion.guidance import PredictFn
from ddpm_jax.diffusion.process import Prediction, Process
from ddpm_jax.experiment import model_factory
from ddpm_jax.experiment.conditions import condition_spec
from ddpm_jax.experiment.config_checks import fields_named
from ddpm_jax.experiment.objective_factory import draws_images
from ddpm_jax.experiment.packaged_runs import no_such_folder
from ddpm_jax.experiment.run_checkpoint import read_run_checkpoint
from ddpm_jax.experiment.same_process import check_same_num_classes, check_same_x_t
from ddpm_jax.experiment.weights_digest import weights_digest
from ddpm_jax.runtime.devices import replicated
from ddpm_jax.runtime.errors import UserError

_OF_SUPER_RESOLUTION = ("factor", "upsampling", "max_level")  # fields of `condition` on which what is shown depends


@dataclass(frozen=True, eq=False)
class WeakNetwork:
    """One checkpoint of a run of diffusion, as NumPy arrays."""

    step: int
    config: ConfigDict
    params: dict

    @functools.cached_property
    def network(self) -> nn.Module:
        """The network that `params` are of."""
        return model_factory.build_model(self.config)

    @property
    def facts(self) -> dict[str, object]:
        """What a report says of it, as JSON: step, fingerprint of the weights."""
        return {"step": self.step, "fingerprint": weights_digest(self.params)}

    def predict_of(self, process: Process, params: dict) -> PredictFn:
        """(x_t, t, condition) -> the prediction of the network with these parameters, at the steps of `process`."""
        diffusion = self.config.diffusion  # it may learn another variance, and be told another number of the noise
        process = dataclasses.replace(process, variance=diffusion.variance, network_input=diffusion.network_input)

        def predict_fn(x_t: jax.Array, t: jax.Array, condition: Condition) -> Prediction:
            run = lambda x_t, t: self.network.apply({"params": params}, x_t, t, condition)  # noqa: E731
            return process.predict(run, x_t, t)

        return predict_fn

    def on_devices(self, mesh: Mesh) -> "WeakNetwork":
        """The same with its weights on every device of the mesh."""
        return WeakNetwork(self.step, self.config, jax.device_put(self.params, replicated(mesh)))


def weak_network_of_samples(config: ConfigDict) -> WeakNetwork | None:
    """The network that the samples of a run are guided away from: `sample.autoguidance`; None without one.

    Raises:
      UserError: no such run or checkpoint; one of another process, prediction, shape or condition than the run's; a
        scale of 1; or negative classes, which would be a second reference.
    """
    sample = config.sample
    if not sample.autoguidance:
        for field, default in (("autoguidance_step", 0), ("autoguidance_weights", "ema")):
            if sample[field] != default:
                raise UserError(f"sample.{field}={sample[field]!r} needs a sample.autoguidance, the run it is of")
        return None
    setting = f"sample.autoguidance={sample.autoguidance!r}"
    if sample.guidance_scale == 1 and not sample.cfg_plus_plus:
        raise UserError(f"{setting} has no effect at sample.guidance_scale=1: try 1.5")
    if sample.negative_classes:
        raise UserError(
            f"{setting} and sample.negative_classes={tuple(sample.negative_classes)} are both what samples are guided "
            "away from: give one of them"
        )
    weak = _read(sample.autoguidance, sample.autoguidance_step, sample.autoguidance_weights)
    if not draws_images(weak.config):
        raise UserError(f"{setting} must be a run of a diffusion model; it trained {weak.config.objective.name!r}")
    _check_fits(config, weak, setting)
    return weak


def check_is_another(weak: WeakNetwork | None, config: ConfigDict, params: PyTree) -> None:
    """Raises UserError if the network that samples are guided away from is the run's own, with the same weights.

    Args:
      params: of the run.
    """
    if weak is None or weak.network != model_factory.build_model(config):
        return
    if weak.config.diffusion.network_input != config.diffusion.network_input:
        return
    if jax.tree.structure(weak.params) == jax.tree.structure(params) and all(
        np.array_equal(theirs, ours)  # ends at the first that differs, as digests of all would not
        for theirs, ours in zip(jax.tree.leaves(weak.params), jax.tree.leaves(params), strict=True)
    ):
        raise UserError(
            f"sample.autoguidance={config.sample.autoguidance!r} has no effect: its weights at step {weak.step} are "
            "those of the run itself: give an earlier sample.autoguidance_step, or a weaker run"
        )


def _read(workdir: str, step: int, weights: str) -> WeakNetwork:
    if not os.path.isdir(workdir):
        raise no_such_folder("sample.autoguidance", workdir)
    if step < 0:
        raise UserError(f"sample.autoguidance_step must be at least 0, 0 for the newest; got {step}")
    with fields_named("sample", {"step": "sample.autoguidance_step", "weights": "sample.autoguidance_weights"}):
        return WeakNetwork(*read_run_checkpoint(workdir, step=step or None, weights=weights))


def _check_fits(config: ConfigDict, weak: WeakNetwork, setting: str) -> None:
    check_same_x_t(config, weak.config, setting=setting, does="predicts")
    ours, theirs = config.diffusion.prediction, weak.config.diffusion.prediction
    if ours != theirs:
        raise UserError(f"{setting} has diffusion.prediction={theirs!r}; the run has {ours!r}: both must be the same")
    check_same_num_classes(config.model.num_classes, weak.config.model.num_classes, setting=setting)
    for field in ("task", *(_OF_SUPER_RESOLUTION if config.condition.task == "super_resolve" else ())):
        ours, theirs = config.condition[field], weak.config.condition[field]
        if ours != theirs:
            raise UserError(f"{setting} has condition.{field}={theirs!r}; the run has {ours!r}: both must be the same")
    ours, theirs = condition_spec(config), condition_spec(weak.config)
    if ours.keys() != theirs.keys() or any(ours[name].shape != theirs[name].shape for name in ours):
        raise UserError(
            f"{setting} has the condition {sorted(theirs)}; the run has {sorted(ours)}: both must be the same"
        )
    if weak.config.diffusion.self_conditioning:
        raise UserError(
            f"{setting} has diffusion.self_conditioning=True, whose network must see its own previous estimates: take "
            "a run without"
        )
    model_factory.check_params(weak.config, weak.network, weak.params)
