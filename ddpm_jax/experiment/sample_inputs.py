"""What samples are told and guided by, as functions of their numbers, and where these arrays are on the devices."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ddpm_jax.data.condition import Condition
from ddpm_jax.diffusion.gradient_guidance import ClassifierGuidance
from ddpm_jax.diffusion.guidance import Guidance
from ddpm_jax.runtime.devices import batch_sharded, replicated

GuidanceOf = Callable[[np.ndarray], Guidance | None]  # numbers of samples, int [N] -> their guidance
ClassifierOf = Callable[[np.ndarray], ClassifierGuidance | None]  # the same, of a classifier
ConditionOf = Callable[[np.ndarray], dict[str, np.ndarray]]  # numbers of samples, int [N] -> their condition


def no_condition(ids: np.ndarray) -> dict[str, np.ndarray]:
    """The condition of an unconditional network."""
    del ids
    return {}


class InputShardings(NamedTuple):
    """Where the inputs of a batch are: what is of one sample with that sample, everything else on all devices.

    Attributes:
      batch: of numbers, conditions and the arrays of an edit.
      guidance, classifier: None for samples without.
    """

    batch: NamedSharding
    guidance: Guidance | None
    classifier: ClassifierGuidance | None

    @classmethod
    def of(cls, mesh: Mesh, guidance: Guidance | None, classifier: ClassifierGuidance | None) -> "InputShardings":
        """Those of all inputs of the same kind as these."""
        batch, everywhere = batch_sharded(mesh), replicated(mesh)
        if guidance is not None:
            guidance = jax.tree.map(lambda _: everywhere, guidance).replace(reference=batch)
        return cls(batch, guidance, None if classifier is None else ClassifierGuidance(everywhere, batch, everywhere))

    def placed(
        self,
        numbers: np.ndarray,
        condition: dict[str, np.ndarray],
        guidance: Guidance | None,
        classifier: ClassifierGuidance | None,
    ) -> tuple[jax.Array, Condition, Guidance | None, ClassifierGuidance | None]:
        """The inputs of a batch on the devices."""
        numbers, condition = jax.device_put((numbers, condition), self.batch)
        if guidance is not None:
            guidance = jax.device_put(guidance, self.guidance)
        if classifier is not None:
            classifier = jax.device_put(classifier, self.classifier)
        return numbers, condition, guidance, classifier
