"""The device mesh and the shardings.

One program serves one device and many: `jit` over a `Mesh` with named shardings (the successor of `jax.pmap`).
"""

from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ddpm_jax.runtime.errors import UserError, arg

LEAST_SHARDED = 1024  # elements; smaller arrays are not worth the communication


def make_mesh(num_devices: int = 0, fsdp: int = 1, devices: Iterable[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes "data" and "fsdp" over the first `num_devices` devices (0: all).

    The batch is split over both axes; what `state_sharded` splits is split over "fsdp" and replicated along "data".

    Args:
      fsdp: length of the second axis; 0 for all devices.
      devices: to choose from; None: all devices of JAX.

    Raises:
      UserError: more devices than there are; not all of them, if several processes share a run; or a number that
        `fsdp` does not divide.
    """
    # Sorted by process, so that a global batch is the concatenation of the batches of the processes in order.
    there = jax.devices() if devices is None else devices
    devices = sorted(there, key=lambda device: (device.process_index, device.id))
    if not 0 <= num_devices <= len(devices):
        raise UserError(f"{arg('num_devices')} must be in 0..{len(devices)} (0: all of them); got {num_devices}")
    if jax.process_count() > 1 and num_devices not in (0, len(devices)):
        raise UserError(
            f"{arg('num_devices')} must be 0, all {len(devices)} devices, in a run of {jax.process_count()} "
            f"processes; got {num_devices}"
        )
    devices = devices[: num_devices or None]
    if fsdp < 0 or len(devices) % (fsdp or len(devices)):
        raise UserError(
            f"{arg('fsdp')} must divide the number of devices, {len(devices)} (0: all of them); got {fsdp}"
        )
    # Not jax.make_mesh: on new JAX its axes are explicit, and Linen's convolutions do not support that.
    return Mesh(np.array(devices).reshape(-1, fsdp or len(devices)), ("data", "fsdp"))


def local_mesh(mesh: Mesh) -> Mesh:
    """The devices of `mesh` that belong to this process, along "data"."""
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    return Mesh(np.array(local).reshape(-1, 1), mesh.axis_names)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


# In `in_shardings`: keeps the sharding that the argument already has.
AS_GIVEN = None


def batch_sharded(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """One axis split into equal parts, one per device."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, mesh.axis_names))


def state_sharded(mesh: Mesh, shapes: PyTree[jax.ShapeDtypeStruct]) -> PyTree[NamedSharding]:
    """Splits the longest axis of each array that "fsdp" divides into as many parts (ZeRO-3, FSDP).

    The rule is the same for parameters, EMA and both moments of Adam, so that an update needs no communication. Arrays
    with fewer than 1,024 elements, and arrays without such an axis, are replicated.
    """
    fsdp = mesh.shape["fsdp"]

    def sharding(shape: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [i for i, length in enumerate(shape.shape) if length % fsdp == 0]
        if fsdp == 1 or not axes or shape.size < LEAST_SHARDED:
            return replicated(mesh)
        longest = max(axes, key=lambda i: shape.shape[i])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))

    return jax.tree.map(sharding, shapes)


def check_batch_size(batch_size: int, mesh: Mesh, num_parts: int = 1) -> None:
    """Raises UserError unless each device gets the same number of images in each part of the batch."""
    unit = mesh.size * num_parts
    if batch_size < 1 and unit == 1:
        raise UserError(f"{arg('batch_size')} must be at least 1; got {batch_size}")
    if batch_size < 1 or batch_size % unit:
        of = "1 device" if mesh.size == 1 else f"{mesh.size} devices"
        of += f" times {num_parts} parts" if num_parts > 1 else ""
        remedy = max(unit, batch_size // unit * unit)
        raise UserError(
            f"{arg('batch_size')} must be a multiple of {unit} ({of}); got {batch_size}: "
            f"take {remedy}, or another {arg('num_devices')}"
        )


def put_batch(local: PyTree[np.ndarray], mesh: Mesh) -> PyTree[jax.Array]:
    """The rows of a global batch that belong to this process -> arrays over the mesh."""
    sharding = batch_sharded(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), local)


def platform_of(mesh: Mesh) -> str:
    """ "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform
