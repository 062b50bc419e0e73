"""Costs of the programs of a config before they run: floating-point operations, bytes, compile time.

Everything is computed from shapes: no parameter and no image is created.
"""

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled, Lowered

from ddpm_jax.data.condition import Condition
from ddpm_jax.diffusion.guidance import Guidance
from ddpm_jax.diffusion.samplers.sampling_loop import init_sampler_state, scan_rows
from ddpm_jax.diffusion.self_conditioning import with_estimate
from ddpm_jax.experiment import model_factory
from ddpm_jax.experiment.build import Experiment, build_experiment
from ddpm_jax.experiment.config_files import changed
from ddpm_jax.experiment.sample_guidance import guidance_of
from ddpm_jax.experiment.state_sizes import abstract_batch, abstract_condition
from ddpm_jax.runtime.compilation import compiler_options, quick_compile_options
from ddpm_jax.runtime.devices import batch_sharded, platform_of
from ddpm_jax.training.train_step import TrainStep


def lower_step(experiment: Experiment, step_fn: TrainStep | None = None) -> Lowered:
    """The train step, traced and sharded over the mesh of `experiment`.

    Args:
      step_fn: from `experiment.jitted_step`, which is then not traced and lowered again when it runs.
    """
    batch = abstract_batch(experiment)
    key = jax.eval_shape(lambda: experiment.keys.train)  # only a shape, which is on no device
    return (step_fn or experiment.jitted_step()).lower(experiment.abstract_state, batch, key)


def sampled_batch(
    experiment: Experiment,
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct, dict[str, jax.ShapeDtypeStruct]]:
    """The shapes of x_t, of the keys and of the condition of `sample.batch_size` images."""
    sharding, batch_size = batch_sharded(experiment.mesh), experiment.sample_batch_size
    keys = jax.eval_shape(lambda key: jax.random.split(key, batch_size), experiment.keys.sample)
    return (
        jax.ShapeDtypeStruct((batch_size, *experiment.x_0_shape), jnp.float32, sharding=sharding),
        jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=sharding),
        abstract_condition(experiment, batch_size),
    )


def sampled_guidance(experiment: Experiment) -> Guidance | None:
    """The guidance of `sample.batch_size` images; None if there is no guidance."""
    return guidance_of(experiment.config)(np.arange(experiment.sample_batch_size))


def lower_sampler_rows(experiment: Experiment, num_rows: int = 1) -> Lowered:
    """(params, x_t, keys, condition, guidance) -> x_s: the first rows of the config's sampler. Each row is one network
    call, with twice the batch if there is guidance.
    """
    table = experiment.sampler_table
    denoiser_of = model_factory.build_denoiser(experiment.config, experiment.process, experiment.model)
    self_conditioning = experiment.config.diffusion.self_conditioning

    def advance(
        params: dict, x_t: jax.Array, keys: jax.Array, condition: Condition, guidance: Guidance | None
    ) -> jax.Array:
        rows, state = table.rows(0, num_rows), init_sampler_state(table, x_t, self_conditioning=self_conditioning)
        return scan_rows(denoiser_of(params, condition, guidance), rows, state, keys).x_t

    guidance = sampled_guidance(experiment)
    if guidance is not None:
        cut = batch_sharded(experiment.mesh)
        guidance = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=cut if np.ndim(x) else None), guidance
        )
    return jax.jit(advance, compiler_options=compiler_options(platform_of(experiment.mesh))).lower(
        experiment.abstract_state.params, *sampled_batch(experiment), guidance
    )


def lower_forward(experiment: Experiment) -> Lowered:
    """(params, x_t, keys, condition) -> the prediction at t = 0 without dropout; the keys are unused."""

    def forward(params: dict, x_t: jax.Array, keys: jax.Array, condition: Condition) -> jax.Array:
        t = jnp.zeros(x_t.shape[:1], jnp.int32)
        model_fn = lambda x_t, t: experiment.model.apply({"params": params}, x_t, t, condition)  # noqa: E731
        if experiment.config.diffusion.self_conditioning:
            model_fn = with_estimate(model_fn, jnp.zeros_like(x_t))
        return model_fn(x_t, t)

    return jax.jit(forward, compiler_options=compiler_options(platform_of(experiment.mesh))).lower(
        experiment.abstract_state.params, *sampled_batch(experiment)
    )


def flops(program: Lowered | Compiled) -> float:
    """Floating-point operations as counted by XLA, a multiply-add as two; before compilation, over all devices.

    The body of a loop is counted once, however often it runs. 0 if the backend does not count: see `countable`.
    """
    costs = program.cost_analysis()
    if costs is None:
        return 0.0
    return float((costs[0] if isinstance(costs, list) else costs)["flops"])


def countable(experiment: Experiment) -> Experiment:
    """`experiment`, moved to a CPU device if its devices are not CPUs.

    XLA counts operations before compilation only on CPU.
    """
    if platform_of(experiment.mesh) == "cpu":
        return experiment
    try:
        return on_one_device(experiment, jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS does not include the CPU
        return experiment


def on_one_device(experiment: Experiment, device: jax.Device) -> Experiment:
    """The same experiment on a mesh of one device."""
    return dataclasses.replace(experiment, mesh=Mesh(np.array([[device]]), experiment.mesh.axis_names))


def train_step_flops(experiment: Experiment, step_fn: TrainStep | None = None) -> float:
    """FLOPs of one update, over all devices; with `model.remat`, recomputation is included. With self-conditioning the
    mean over the updates with and without a first call.

    Args:
      step_fn: from `experiment.jitted_step`, if available: its own program is counted if possible.
    """
    counted = experiment
    if experiment.config.train.grad_accum_steps > 1 or experiment.config.optim.clip_replicas:
        # As one part, because parts are a loop, whose body is counted once.
        whole = changed(experiment.config, ["train.grad_accum_steps=1", "optim.clip_replicas=0"])
        counted = build_experiment(whole, experiment.mesh.devices.flat)
    counted = countable(counted)
    total, diffusion = flops(lower_step(counted, step_fn if counted is experiment else None)), counted.config.diffusion
    if diffusion.self_conditioning:  # XLA counts the dearer branch of a condition: the one with the first call
        first_call = flops(lower_forward(counted)) * counted.batch_size / counted.sample_batch_size
        total -= (1 - diffusion.self_conditioning_rate) * first_call
    return total


def sampler_step_flops(experiment: Experiment) -> float:
    """FLOPs of one network call for `sample.batch_size` images, over all devices."""
    return flops(lower_sampler_rows(countable(experiment)))


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes of a compiled program on one device, and the time to compile it."""

    arguments: int  # for a train step: state and batch; the new state reuses the memory of the old one
    temporaries: int  # for a train step: gradient, activations, and scratch memory of sums and convolutions
    trace_seconds: float
    compile_seconds: float


def compiled_with_costs(lower: Callable[[], Lowered], **options: str) -> tuple[Compiled, StepMemory]:
    """Traces, lowers and compiles, with `options` in addition to the program's own compiler options."""
    start = time.monotonic()
    lowered = lower()
    traced = time.monotonic()
    compiled = lowered.compile(compiler_options=options or None)
    compile_seconds = time.monotonic() - traced
    memory = compiled.memory_analysis()
    return compiled, StepMemory(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        trace_seconds=traced - start,
        compile_seconds=compile_seconds,
    )


def step_memory(experiment: Experiment) -> StepMemory:
    """The memory of the train step; on CPU compiled without optimisation, which does not change the buffer plan."""
    return compiled_with_costs(lambda: lower_step(experiment), **quick_compile_options(platform_of(experiment.mesh)))[1]
