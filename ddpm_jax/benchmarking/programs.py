"""The programs of a config as XLA sees them before they run: floating-point operations, bytes, seconds of compilation.

All of it is of shapes: no parameter and no picture is made.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
from jax.stages import Compiled, Lowered

from ddpm_jax import factories, sampler_factory
from ddpm_jax.benchmarking.sizes import abstract_batch
from ddpm_jax.benchmarking.variants import changed
from ddpm_jax.devices import quick_compile_options
from ddpm_jax.parts import Parts, build_parts
from ddpm_jax.samplers import begin_walk, walk_on


def lower_step(parts: Parts) -> Lowered:
    """The train step, traced and sharded over the mesh of `parts`."""
    batch = abstract_batch(parts, parts.config.train.batch_size)
    return parts.jitted_step().lower(parts.abstract_state, batch, parts.keys.train)


def lower_sampler_step(parts: Parts) -> Lowered:
    """One row of the config's sampler, which is one network call, for `sample.batch_size` pictures."""
    config, batch_size = parts.config, parts.config.sample.batch_size
    table = sampler_factory.build_table(config, parts.schedule)
    denoiser_of = factories.build_denoiser(config, parts.schedule, parts.model)

    def advance(params: dict, x_t: jax.Array, keys: jax.Array, labels: jax.Array | None) -> jax.Array:
        return walk_on(denoiser_of(params, labels), table.rows(0, 1), begin_walk(table, x_t), keys).x_t

    x_t = jax.ShapeDtypeStruct((batch_size, *factories.image_shape_of(config)), jnp.float32)
    keys = jax.eval_shape(lambda key: jax.random.split(key, batch_size), parts.keys.sample)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32) if config.model.num_classes else None
    return jax.jit(advance).lower(parts.abstract_state.params, x_t, keys, labels)


def flops(program: Lowered | Compiled) -> float:
    """Floating-point operations as XLA counts them, a multiply-add as two; of all devices before compilation.

    The body of a loop is counted once, however often it runs.
    """
    costs = program.cost_analysis()
    return float((costs[0] if isinstance(costs, list) else costs)["flops"])


def train_step_flops(parts: Parts) -> float:
    """Of one update, over all devices; with `model.remat` what is computed again is counted again."""
    # In one part, since parts are a loop.
    whole = changed(parts.config, ["train.grad_accum_steps=1", "optim.clip_replicas=0"])
    return flops(lower_step(build_parts(whole)))


def sampler_step_flops(parts: Parts) -> float:
    """Of one network call for `sample.batch_size` pictures, over all devices."""
    return flops(lower_sampler_step(parts))


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes on one device of a compiled train step."""

    arguments: int  # state and batch; the new state takes the place of the old one
    temporaries: int  # the gradient, the activations, and what sums and convolutions need
    trace_seconds: float
    compile_seconds: float


def step_memory(parts: Parts) -> StepMemory:
    """Compiles the train step; on CPU without optimising the code, which leaves the plan of its buffers as it is."""
    start = time.monotonic()
    lowered = lower_step(parts)
    traced = time.monotonic()
    memory = lowered.compile(compiler_options=quick_compile_options()).memory_analysis()
    return StepMemory(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        trace_seconds=traced - start,
        compile_seconds=time.monotonic() - traced,
    )
