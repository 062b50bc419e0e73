"""The device mesh, the shardings, and the compile options of the outermost jits.

One program for one device and for many: `jit` over a `Mesh` with named shardings, which is what `jax.pmap`
has become.
"""

import functools
import os

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ddpm_jax.errors import UserError


def make_mesh(num_devices: int = 0) -> Mesh:
    """A mesh of one axis, "data", over the first `num_devices` devices (0: all).

    Raises:
      UserError: more devices asked for than there are.
    """
    devices = jax.devices()
    if not 0 <= num_devices <= len(devices):
        raise UserError(f"train.num_devices must be in 0..{len(devices)} (0: all of them); got {num_devices}")
    # Not jax.make_mesh: its axes are explicit on new JAX, and Linen's convolutions refuse those.
    return Mesh(np.array(devices[: num_devices or None]), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The first axis cut into equal parts, one a device."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(field: str, batch_size: int, mesh: Mesh, num_parts: int = 1) -> None:
    """Raises UserError unless every device gets the same number of images in every part of the batch."""
    unit = mesh.size * num_parts
    if batch_size < 1 or batch_size % unit:
        parts = f" times {num_parts} parts" if num_parts > 1 else ""
        remedy = max(unit, batch_size // unit * unit)
        raise UserError(
            f"{field} must be a multiple of {unit} ({mesh.size} devices{parts}); got {batch_size}: "
            f"take {remedy}, or another train.num_devices"
        )


def put_batch(local: PyTree[np.ndarray], mesh: Mesh) -> PyTree[jax.Array]:
    """This process's rows of a global batch -> arrays over the mesh."""
    sharding = batch_sharded(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), local)


@functools.cache
def compiler_options() -> dict[str, str]:
    """Options for the outermost jits: on CPU, convolutions on all cores; elsewhere none.

    jaxlib 0.10 hands CPU convolutions to a library that runs narrow ones on one core; this gives them back to
    the multi-threaded path and leaves it the matrix products and reductions. The option is experimental, so
    it is tried once on a tiny function. DDPM_JAX_CPU_OPTIONS=0 turns it off.
    """
    if jax.default_backend() != "cpu" or os.environ.get("DDPM_JAX_CPU_OPTIONS") == "0":
        return {}
    options = {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    }
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(np.float32(0)).block_until_ready()
    except jax.errors.JaxRuntimeError:
        return {}  # a jaxlib without this option: its own default is all there is
    return options


def quick_compile_options() -> dict[str, str]:
    """Options for a jit that runs once, such as drawing the parameters: on CPU, compile without optimising.

    An initialiser a tensor makes hundreds of small loops, which take longer to optimise than to run. The
    numbers drawn are the same, bit for bit.
    """
    return {"xla_backend_optimization_level": "0"} if jax.default_backend() == "cpu" else {}
