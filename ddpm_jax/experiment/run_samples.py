"""Samples of a trained run by any sampler, with one compilation for all of them."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from ddpm_jax.diffusion.process import Process
from ddpm_jax.experiment import conditions, sample_guidance, sampler_factory
from ddpm_jax.experiment.classifier import classifier_of, classifier_of_samples, drawn_classes
from ddpm_jax.experiment.generator import Generator
from ddpm_jax.experiment.run_checkpoint import checkpoints_changed
from ddpm_jax.experiment.weak_network import WeakNetwork, check_is_another, weak_network_of_samples
from ddpm_jax.runtime import multi_host
from ddpm_jax.runtime.devices import make_mesh, replicated
from ddpm_jax.runtime.progress import ProgressBar

Other = TypeVar("Other")

_OF_WEAK = ("variance", "network_input")  # fields of `diffusion` that the program of a weaker network depends on


class RunSamples:
    """Draws from one set of parameters, by the sampler of whatever config is given."""

    def __init__(self, params: dict):
        self._mesh = make_mesh()
        self._params = jax.device_put(params, replicated(self._mesh))
        self._generators: dict[tuple, Generator] = {}
        self._others: dict[str, tuple[tuple, object]] = {}  # the other networks that guide, as they were last read

    @property
    def mesh(self) -> Mesh:
        """All devices."""
        return self._mesh

    def draw(
        self,
        config: ConfigDict,
        process: Process,
        model: object,
        *,
        num_samples: int,
        seed: int,
        condition: Mapping[str, ArrayLike] | None,
        progress: bool,
    ) -> np.ndarray:
        """[num_samples, *image_shape]; see `TrainedRun.sample`."""
        table = sampler_factory.build_table(config, process)
        weak = self._other(config, "autoguidance", self._read_weak)
        guidance_of = sample_guidance.guidance_of(config, weak)
        told, given = conditions.condition_of(config), conditions.condition_of(config, derived=False)
        if condition is not None:
            told = given = conditions.given_condition(config, condition, num_samples)
        classifier = self._other(config, "classifier", classifier_of_samples)
        drawn_classes(config, classifier)  # for its checks
        shifts_mean = classifier is not None and table.c_shift is not None
        sample = config.sample
        # What the compiled programs depend on; everything else is an argument of theirs.
        program = (
            sample.batch_size, sample.clip_x_0, sample.dynamic_threshold, jax.tree.structure(guidance_of(np.arange(1))),
            None if weak is None else (weak.network, *(weak.config.diffusion[name] for name in _OF_WEAK)),
            None if classifier is None else classifier.network, shifts_mean,
        )  # fmt: skip
        if program not in self._generators:
            self._generators[program] = sampler_factory.build_generator(
                config, process, table, model, self._mesh, classifier=classifier, weak=weak
            )
        of_classifier = classifier_of(config, classifier, self._mesh, given)
        generator = self._generators[program].with_table(table).with_samples(told, guidance_of, of_classifier)
        total = generator.num_batches(num_samples) * generator.num_rows
        with ProgressBar(total, "sampling", enabled=progress and multi_host.is_first()) as bar:
            return generator.generate(self._params, seed=seed, num_samples=num_samples, on_chunk=bar.update)

    def _read_weak(self, config: ConfigDict) -> WeakNetwork | None:
        weak = weak_network_of_samples(config)
        check_is_another(weak, config, self._params)
        return None if weak is None else weak.on_devices(self._mesh)

    def _other(self, config: ConfigDict, field: str, read: Callable[[ConfigDict], Other]) -> Other:
        """What `read` gives of the run in `sample.<field>`; read again if a setting or its checkpoints changed."""
        workdir = config.sample[field]
        if not workdir:
            return read(config)
        changed = checkpoints_changed(workdir)
        if changed is None:
            return read(config)  # which says what is wrong
        sample = config.sample
        of_field = {name: sample[name] for name in sorted(sample) if name.startswith(field)}
        # What is checked with it: whether it has an effect, and what else samples are guided away from.
        key = (of_field, sample.guidance_scale == 1, sample.cfg_plus_plus, sample.negative_classes, changed)
        if field not in self._others or self._others[field][0] != key:
            self._others[field] = key, read(config)
        return self._others[field][1]
