"""A trained classifier of noised images, and the guidance that it gives to the samples of a run."""

import functools
import os
from dataclasses import dataclass

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddpm_jax.diffusion.gradient_guidance import ClassifierGuidance
from ddpm_jax.experiment import model_factory
from ddpm_jax.experiment.class_condition import checked_classes
from ddpm_jax.experiment.packaged_runs import no_such_folder
from ddpm_jax.experiment.run_checkpoint import read_run_checkpoint
from ddpm_jax.experiment.same_process import check_same_num_classes, check_same_x_t
from ddpm_jax.experiment.sample_inputs import ClassifierOf, ConditionOf
from ddpm_jax.experiment.weights_digest import weights_digest
from ddpm_jax.models.parameters import num_params
from ddpm_jax.runtime.devices import replicated
from ddpm_jax.runtime.errors import UserError, arg


@dataclass(frozen=True, eq=False)
class TrainedClassifier:
    """One checkpoint of a run of objective.name="classifier", as NumPy arrays."""

    step: int
    config: ConfigDict
    params: dict

    def __repr__(self) -> str:
        size = f"{num_params(self.params):,} parameters"
        return f"TrainedClassifier(step={self.step}, {self.num_classes} classes, {size})"

    @property
    def num_classes(self) -> int:
        """The number of its classes."""
        return self.config.model.num_classes

    @property
    def facts(self) -> dict[str, object]:
        """What a report says of it, as JSON: step, num_classes, fingerprint of the weights."""
        return {"step": self.step, "num_classes": self.num_classes, "fingerprint": weights_digest(self.params)}

    @functools.cached_property
    def network(self) -> nn.Module:
        """(x_t, t) -> logits [B, num_classes], as `network.apply({"params": params}, x_t, t)`."""
        return model_factory.build_classifier(self.config)


def open_classifier(
    workdir: str | os.PathLike, *, step: int | None = None, best: bool = False, weights: str = "ema"
) -> TrainedClassifier:
    """The config and the weights of a classifier of noised images; the arguments are those of `open_run`.

    Raises:
      UserError: no such folder, checkpoint or weights; a run that trained something else.
    """
    workdir = os.fspath(workdir)
    if not os.path.isdir(workdir):
        raise no_such_folder(arg("classifier"), workdir)
    step, config, params = read_run_checkpoint(workdir, step=step, best=best, weights=weights)
    if config.objective.name != "classifier":
        raise UserError(
            f"{arg('classifier')} must be a run of objective.name='classifier'; got {workdir!r}, which trained "
            f"{config.objective.name!r}"
        )
    return TrainedClassifier(step, config, params)


def classifier_of_samples(config: ConfigDict) -> TrainedClassifier | None:
    """The classifier that guides the samples of a run: `sample.classifier`; None without one, or at scale 0.

    Raises:
      UserError: a scale out of its range, no such classifier, or one of other x_t or classes than the run's.
    """
    scale, workdir = config.sample.classifier_scale, config.sample.classifier
    if not 0 <= scale <= 1e6:
        raise UserError(f"sample.classifier_scale must be in 0..1000000; got {scale}: 0 means no guidance, try 1 to 10")
    if not workdir or scale == 0:
        return None
    classifier = open_classifier(workdir)
    _check_fits(config, classifier, workdir)
    model_factory.check_params(classifier.config, classifier.network, classifier.params)
    return classifier


def _check_fits(config: ConfigDict, classifier: TrainedClassifier, workdir: str) -> None:
    """Raises UserError unless the classifier was trained on the x_t of the run's process, with the run's classes."""
    setting = f"sample.classifier={workdir!r}"
    check_same_x_t(config, classifier.config, setting=setting, does="classifies")
    if config.model.num_classes:
        check_same_num_classes(config.model.num_classes, classifier.num_classes, setting=setting)


def drawn_classes(config: ConfigDict, classifier: TrainedClassifier | None) -> tuple[int, ...]:
    """The classes of samples, in turn: sample.classes, or all of the classifier or the network; () for none."""
    num_classes = config.model.num_classes
    if classifier is not None:
        num_classes = classifier.num_classes
    elif not num_classes and config.sample.classifier:  # at scale 0
        if config.sample.classes:
            raise UserError("sample.classes has no effect at sample.classifier_scale=0: leave it out, or give a scale")
        return ()
    return checked_classes(config, "classes", num_classes) or tuple(range(num_classes))


def classifier_of(
    config: ConfigDict, classifier: TrainedClassifier | None, mesh: Mesh, condition_of: ConditionOf
) -> ClassifierOf:
    """Numbers of samples -> the guidance of the classifier; None without one.

    The label of a sample is that of its condition, or, if the network has no classes, `drawn_classes` in turn.
    """
    if classifier is None:
        return lambda ids: None
    classes = np.asarray(drawn_classes(config, classifier), np.int32)
    params = jax.device_put(classifier.params, replicated(mesh))
    scale = np.float32(config.sample.classifier_scale)

    def guidance(ids: np.ndarray) -> ClassifierGuidance:
        label = condition_of(ids).get("label", classes[ids % len(classes)])
        if np.any(label >= classifier.num_classes):
            raise UserError(
                f"the condition 'label' must be in 0..{classifier.num_classes - 1} with a classifier, which knows no "
                f"other class; got {np.max(label)}"
            )
        return ClassifierGuidance(params, label, scale)

    return guidance
