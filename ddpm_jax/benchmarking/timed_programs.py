"""The programs of a config, ready to run on random images that are already on the device."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Compiled
from jaxtyping import PyTree

from ddpm_jax.experiment.build import Experiment
from ddpm_jax.experiment.program_costs import (
    StepMemory,
    compiled_with_costs,
    lower_forward,
    lower_sampler_rows,
    lower_step,
    sampled_batch,
    sampled_guidance,
)
from ddpm_jax.experiment.state_sizes import abstract_batch
from ddpm_jax.runtime.compilation import release_unused_memory

PROGRAMS = ("train", "forward", "sample")


@dataclasses.dataclass(frozen=True)
class Call:
    """A compiled program with its inputs."""

    run: Callable[[], PyTree]  # makes the call; its outputs may not be ready yet
    num_images: int  # per call
    costs: StepMemory


def prepare_call(name: str, experiment: Experiment, *, num_rows: int = 1) -> Call:
    """Compiles one of PROGRAMS: a train step, a network call, or `num_rows` steps of the sampler."""
    if name == "train":
        compiled, costs = compiled_with_costs(lambda: lower_step(experiment))
        call = Call(_training(experiment, compiled), experiment.batch_size, costs)
    else:
        lower = lower_forward if name == "forward" else lambda experiment: lower_sampler_rows(experiment, num_rows)
        compiled, costs = compiled_with_costs(lambda: lower(experiment))
        guidance = [] if name == "forward" else [sampled_guidance(experiment)]
        call = Call(_calling(experiment, compiled, *guidance), experiment.sample_batch_size, costs)
    release_unused_memory()
    return call


def _training(experiment: Experiment, step: Compiled) -> Callable[[], PyTree]:
    """A function that makes one more train step at each call."""
    batch = random_inputs(abstract_batch(experiment))
    held = [experiment.fresh_state()]

    def run() -> PyTree:
        held[0], metrics = step(held[0], batch, experiment.keys.train, experiment.frozen)
        return held[0], metrics

    return run


def _calling(experiment: Experiment, program: Compiled, *others: PyTree) -> Callable[[], PyTree]:
    """A function that makes the same network call each time, with newly initialised parameters."""
    init = jax.jit(lambda key: experiment.init(key).params, out_shardings=experiment.state_sharding.params)
    x_t, keys, condition = sampled_batch(experiment)
    keys = jax.device_put(jax.random.split(experiment.keys.sample, keys.shape[0]), keys.sharding)
    inputs = (init(experiment.keys.init), random_inputs(x_t), keys, random_inputs(condition), *others)
    return lambda: program(*inputs)


def random_inputs(shapes: PyTree[jax.ShapeDtypeStruct]) -> PyTree[jax.Array]:
    """Arrays with these shapes and shardings: noise, random pixels, or labels 0, depending on the dtype."""
    rng = np.random.default_rng(0)

    def draw(shape: jax.ShapeDtypeStruct) -> jax.Array:
        if shape.dtype == jnp.uint8:
            return jax.device_put(rng.integers(0, 256, shape.shape, np.uint8), shape.sharding)
        if jnp.issubdtype(shape.dtype, jnp.integer):
            return jax.device_put(np.zeros(shape.shape, shape.dtype), shape.sharding)
        return jax.device_put(rng.standard_normal(shape.shape, np.float32), shape.sharding)

    return jax.tree.map(draw, shapes)
