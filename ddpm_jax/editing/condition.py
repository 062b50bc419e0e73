"""What the network is told of results: their classes in turn, or nothing."""

from dataclasses import dataclass

import numpy as np

from ddpm_jax.data.condition import has_null, null_condition, of_data
from ddpm_jax.experiment.generator import Generator
from ddpm_jax.experiment.sample_inputs import ClassifierOf, ConditionOf, GuidanceOf
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.runtime.errors import UserError, arg


@dataclass(frozen=True)
class Told:
    """Which classes the results have. Result k of an image has the class classes[k mod len(classes)].

    Attributes:
      num_results: of an image: the number of a result is image * num_results + k.
      with_classes: whether classes were given; without, the network is told nothing.
      by_image: all results of an image have one class, and its number is theirs.
    """

    num_results: int
    with_classes: bool
    by_image: bool = False

    def functions(self, run: TrainedRun, generator: Generator) -> tuple[ConditionOf, GuidanceOf, ClassifierOf]:
        """Those of a generator for results by number."""
        if not self.with_classes:
            spec = run.condition
            unknown = lambda ids: null_condition(spec, len(ids)) if spec else {}  # noqa: E731
            return unknown, run.guidance_of, generator.classifier_of
        told_of, guidance_of = run.given_condition_of, run.guidance_of
        turn = lambda ids: ids if self.by_image else ids % self.num_results  # noqa: E731
        return (
            lambda ids: told_of(turn(ids)),
            lambda ids: guidance_of(turn(ids)),
            lambda ids: generator.classifier_of(turn(ids)),
        )


def says_classes(given: dict[str, object]) -> bool:
    """Whether the settings of the sampler say of which classes the results are, or which classifier guides them."""
    values = (given.get("classes"), given.get("classifier"))
    return any(value is not None and np.size(value) > 0 and str(value) not in ("", "()") for value in values)


def sampler_settings_of(run: TrainedRun, given: dict[str, object]) -> dict[str, object]:
    """The settings of the sampler with no guidance where no classes are given, because there is nothing to guide to.

    Raises:
      UserError: guidance without classes, or a network that must be told one.
    """
    if says_classes(given):
        return given
    if of_data(run.condition) and not has_null(run.condition):
        raise UserError(
            f"{arg('classes')} must say of which class the results are: the network was not trained without classes "
            "(condition.drop_rate=0)"
        )
    for name in ("guidance_scale", "cfg_plus_plus", "negative_classes"):
        if of_data(run.condition) and name in given and not given.get("autoguidance"):
            raise UserError(f"{arg(name)} guides towards classes: give {arg('classes')}, too")
    if given.get("autoguidance") or "guidance_scale" in given:
        return given
    return given | {"guidance_scale": 1.0, "cfg_plus_plus": False, "classifier": ""}
