"""Everything that a config builds for a training run: mesh, objective, optimiser, train step, sampler."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import flax.linen as nn
import jax
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from ddpm_jax.codecs.codec import Codec
from ddpm_jax.data import BatchLoader, ImageSource
from ddpm_jax.data.batch import Batch
from ddpm_jax.data.condition import ConditionSpec, example_condition, of_data
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import SeedKeys, seed_keys
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.experiment import config_checks, data_factory, model_factory, sampler_factory, training_factory
from ddpm_jax.experiment.classifier import classifier_of_samples
from ddpm_jax.experiment.codec_factory import CODECS
from ddpm_jax.experiment.conditions import condition_of, condition_spec
from ddpm_jax.experiment.objective_factory import OBJECTIVES, build_objective, draws_images
from ddpm_jax.experiment.sample_guidance import guidance_of
from ddpm_jax.models.networks import NETWORKS
from ddpm_jax.runtime.compilation import compiler_options, remat_options
from ddpm_jax.runtime.devices import (
    batch_sharded,
    make_mesh,
    platform_of,
    put_batch,
    replicated,
    state_sharded,
)
from ddpm_jax.training.objective import Objective
from ddpm_jax.training.train_state import TrainState, init_state
from ddpm_jax.training.train_step import Metrics, TrainStep


@dataclass(frozen=True)
class Experiment:
    """Everything that a config builds; checked, but nothing is computed yet."""

    config: ConfigDict
    mesh: Mesh
    objective: Objective
    condition: ConditionSpec  # the condition that the network gets for an image
    init: Callable[[jax.Array], TrainState]  # key -> a fresh state
    train_step: TrainStep  # not jitted
    sampler_table: SamplerTable | None  # None if the objective draws no images
    preview_table: SamplerTable | None  # for samples drawn during training

    @property
    def process(self) -> Process:
        """The diffusion process."""
        return self.objective.process

    @property
    def codec(self) -> Codec:
        """The codec between images and x_0."""
        return self.objective.codec

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.objective.model

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C)."""
        return config_checks.image_shape_of(self.config)

    @property
    def x_0_shape(self) -> tuple[int, ...]:
        """The shape of one x_0."""
        return self.codec.x_0_shape(self.image_shape)

    @property
    def batch_size(self) -> int:
        """Images per update, over all devices."""
        return self.config.train.batch_size

    @property
    def sample_batch_size(self) -> int:
        """Images per sampling batch, over all devices."""
        return self.config.sample.batch_size

    @property
    def sampler(self) -> str:
        """The name of the sampler."""
        return self.config.sample.sampler

    @property
    def keys(self) -> SeedKeys:
        """The keys of the run's seed."""
        return seed_keys(self.config.train.seed)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """The shapes of the state, with its shardings over the mesh."""
        shapes = jax.eval_shape(self.init, self.keys.init)
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            state_sharded(self.mesh, shapes),
        )

    @property
    def state_sharding(self) -> TrainState:
        """The sharding of each array of the state."""
        return jax.tree.map(lambda x: x.sharding, self.abstract_state)

    def source(self) -> ImageSource:
        """The training images."""
        return data_factory.build_source(self.config, self.config.data.split)

    def batches(
        self, source: ImageSource, *, first_step: int = 0, batch_of_step: Callable[[int], int] = lambda step: step
    ) -> BatchLoader:
        """The training batches from `first_step` on, over the mesh; the arguments are those of `BatchLoader`."""
        return BatchLoader(
            source,
            batch_size=self.batch_size,
            seed=self.config.train.seed,
            first_step=first_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            spec=of_data(self.condition),
            transform=lambda batch: put_batch(batch, self.mesh),
            batch_of_step=batch_of_step,
        )

    def fresh_state(self) -> TrainState:
        """The state that training starts from."""
        return self.jitted_init()(self.keys.init)

    def jitted_init(self) -> Callable[[jax.Array], TrainState]:
        """key -> a fresh state over the mesh."""
        return jax.jit(self.init, out_shardings=self.state_sharding)

    def jitted_step(self) -> TrainStep:
        """(state, batch, key_train) -> (state, metrics): the train step over the mesh; donates its state."""
        everywhere, batch, state = replicated(self.mesh), batch_sharded(self.mesh), self.state_sharding
        platform = platform_of(self.mesh)
        remat = remat_options(platform) if self.config.model.remat else {}
        program = jax.jit(
            self.train_step,
            in_shardings=(state, batch, everywhere, everywhere),
            out_shardings=(state, everywhere),
            donate_argnums=0,
            compiler_options=compiler_options(platform) | remat,
        )
        return StepProgram(program, self)

    @functools.cached_property
    def frozen(self) -> PyTree:
        """The arrays that the objective does not train, on every device."""
        return jax.device_put(self.objective.frozen, replicated(self.mesh))


class StepProgram:
    """(state, batch, key_train) -> (state, metrics): a jitted train step together with its untrained arrays."""

    def __init__(self, program: jax.stages.Wrapped, experiment: Experiment):
        self._program, self._experiment = program, experiment

    def __call__(self, state: TrainState, batch: Batch, key_train: jax.Array) -> tuple[TrainState, Metrics]:
        """One update."""
        return self._program(state, batch, key_train, self._experiment.frozen)

    def lower(self, state: TrainState, batch: Batch, key_train: jax.Array) -> jax.stages.Lowered:
        """Lowers for arrays or their shapes. The compiled program has one more argument, `Experiment.frozen`."""
        everywhere = replicated(self._experiment.mesh)
        frozen = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), self._experiment.objective.frozen
        )
        return self._program.lower(state, batch, key_train, frozen)


def build_experiment(config: ConfigDict, devices: Iterable[jax.Device] | None = None) -> Experiment:
    """Everything that a config describes except the data; raises UserError for settings that do not fit.

    Args:
      devices: for the mesh to choose from; None: all devices of JAX.
    """
    config_checks.check_fields(config, own_groups={*NETWORKS, *CODECS, *OBJECTIVES})
    config_checks.check_numbers(config)
    config_checks.check_batch_memory(config)
    with config_checks.fields_named("train", {"fsdp": "mesh.fsdp"}):
        mesh = make_mesh(config.train.num_devices, config.mesh.fsdp, devices)
    objective = build_objective(config)
    condition = condition_spec(config)
    optimizer = objective.optimizer(training_factory.build_optimizer(config))
    train_step = training_factory.build_train_step(config, mesh, objective, of_data(condition), optimizer)
    image_shape = config_checks.image_shape_of(config)
    ema_names = tuple(training_factory.build_ema_decays(config))

    def init(key: jax.Array) -> TrainState:
        params = objective.init_params(key, image_shape, example_condition(condition))
        return init_state(params, optimizer, ema_names, objective.init_extra())

    return Experiment(config, mesh, objective, condition, init, train_step, *_sampler_tables(config, mesh, objective))


def _sampler_tables(
    config: ConfigDict, mesh: Mesh, objective: Objective
) -> tuple[SamplerTable, SamplerTable] | tuple[None, None]:
    """The tables of the samples and of the previews; built here, so that errors appear before the training."""
    if not draws_images(config):
        return None, None
    process = objective.process
    tables = sampler_factory.build_table(config, process), sampler_factory.build_preview_table(config, process)
    model_factory.check_limit_of_x_0(config)
    sampler_factory.check_sample_batch(config, mesh)
    condition_of(config)
    guidance_of(config)
    classifier_of_samples(config)
    return tables
