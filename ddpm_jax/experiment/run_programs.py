"""What edits and cascades keep of a run between calls, so that other images, masks and numbers compile nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.experiment.generator import Generator
from ddpm_jax.runtime.devices import replicated

Arrays = dict[str, np.ndarray | jax.Array]  # by name, [B, ...] each


class KeptGenerator(NamedTuple):
    """A generator, and what its edit, if it has one, reads as the arrays of the next batch."""

    generator: Generator
    arrays: Arrays


@dataclass
class RunPrograms:
    """The generators of a run, and its parameters on the devices.

    Attributes:
      generators: by all that their programs depend on.
      params: None before their first use.
    """

    generators: dict[tuple, KeptGenerator] = field(default_factory=dict)
    params: dict | None = None

    def generator(self, key: tuple, make: Callable[[Arrays], Generator]) -> KeptGenerator:
        """That of the key; the first time `make` builds it, for arrays that stand in the given dict at each batch."""
        if key not in self.generators:
            arrays: Arrays = {}
            self.generators[key] = KeptGenerator(make(arrays), arrays)
        return self.generators[key]

    def params_on(self, mesh: Mesh, params: dict) -> dict:
        """The parameters on the devices of the mesh, put there once."""
        if self.params is None:
            self.params = jax.device_put(params, replicated(mesh))
        return self.params
