"""Bytes on one device, computed from shapes and shardings only: nothing is compiled, no array is created."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import PyTree

from ddpm_jax.data.batch import Batch
from ddpm_jax.data.condition import Condition, of_data
from ddpm_jax.experiment import model_factory, training_factory
from ddpm_jax.experiment.build import Experiment
from ddpm_jax.experiment.codec_factory import data_dtype_of
from ddpm_jax.runtime.devices import batch_sharded


def device_bytes(tree: PyTree) -> int:
    """Bytes on one device of arrays, or of shapes with a sharding; shapes without a sharding count as whole arrays."""

    def leaf_bytes(leaf: jax.Array | jax.ShapeDtypeStruct) -> int:
        sharding = getattr(leaf, "sharding", None)
        shape = sharding.shard_shape(leaf.shape) if sharding else leaf.shape
        return leaf.dtype.itemsize * math.prod(shape)

    return sum(leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def abstract_batch(experiment: Experiment) -> Batch:
    """The shapes of a training batch over the mesh."""
    sharding, batch_size = batch_sharded(experiment.mesh), experiment.batch_size
    dtype = data_dtype_of(experiment.config)
    images = jax.ShapeDtypeStruct((batch_size, *experiment.image_shape), dtype, sharding=sharding)
    condition = abstract_condition(experiment, batch_size)
    return Batch(images, {name: condition[name] for name in of_data(experiment.condition)})


def abstract_condition(experiment: Experiment, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the condition of a batch over the mesh."""
    sharding = batch_sharded(experiment.mesh)
    return {
        name: jax.ShapeDtypeStruct((batch_size, *entry.shape), entry.dtype, sharding=sharding)
        for name, entry in experiment.condition.items()
    }


def state_bytes(experiment: Experiment) -> dict[str, int]:
    """Bytes on a device before the first step: parameters (including untrained ones), all averages, optimiser state,
    batch; and one gradient."""
    state, frozen = experiment.abstract_state, jax.tree.leaves(experiment.objective.frozen)
    return {
        "params": device_bytes(state.params) + sum(leaf.nbytes for leaf in frozen),
        "ema": device_bytes(state.ema),
        "optimizer": device_bytes((state.step, state.opt_state, state.extra)),
        "batch": device_bytes(abstract_batch(experiment)),
        "gradients": device_bytes(state.params),  # a gradient is as large as the parameters
    }


def average_bytes(experiment: Experiment) -> dict[str, int]:
    """Bytes on a device of each average of the parameters, by name; the first is the one that is sampled."""
    ema = experiment.abstract_state.ema
    return {name: device_bytes(ema[name]) for name in training_factory.build_ema_decays(experiment.config)}


def residual_bytes(function: Callable[..., jax.Array], params: PyTree, *inputs: Any) -> int:
    """Bytes that `jax.vjp` of function(params, *inputs) by params keeps for the backward pass, without the inputs.

    This is an exact number for the program, and the same for every compiler. It is more than is kept in the end,
    because a compiler recomputes cheap residuals.
    """

    def residuals(params: PyTree, *inputs: Any) -> PyTree:
        return jax.vjp(lambda params: function(params, *inputs), params)[1]

    program = jax.make_jaxpr(residuals)(params, *inputs).jaxpr
    # An input, such as a parameter, is in memory anyway; a constant is part of the program.
    outputs = {var for var in program.outvars if not isinstance(var, Literal)}
    return sum(var.aval.dtype.itemsize * var.aval.size for var in outputs - set(program.invars))


def kept_bytes(experiment: Experiment) -> int:
    """Bytes that the forward pass keeps for the backward pass on one device: the residuals of one part of the batch."""
    config, model = experiment.config, experiment.model
    num_parts = config.optim.clip_replicas or config.train.grad_accum_steps
    rows = experiment.batch_size // num_parts // experiment.mesh.size
    x_t = jax.ShapeDtypeStruct((rows, *model_factory.input_shape_of(config)), jnp.float32)
    t = jax.ShapeDtypeStruct((rows,), jnp.int32)
    condition = {
        name: jax.ShapeDtypeStruct((rows, *entry.shape), entry.dtype) for name, entry in experiment.condition.items()
    }

    def predict(params: PyTree, key: jax.Array, x_t: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
        return model.apply({"params": params}, x_t, t, condition, train=True, rngs={"dropout": key})

    return residual_bytes(predict, experiment.abstract_state.params, experiment.keys.train, x_t, t, condition)
