"""Devices of a TPU that is not here: programs can be compiled for them, not run."""

import importlib.util
import os

import jax
from jax.experimental import topologies

from ddpm_jax.runtime.errors import UserError

# libtpu would look for the TPU that this host belongs to, wait for an answer and complain of having none; and it would
# let one process in at a time, which a process that only compiles has no need of.
_ON_ITS_OWN = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def absent_tpu(topology: str) -> list[jax.Device]:
    """The devices of a TPU slice, from its compiler alone (the package libtpu), which runs on any x86-64 Linux.

    JAX itself must have been told to run on CPU. Turns the cache of compiled programs off: JAX cannot write those of an
    absent device, and would say so each time.

    Args:
      topology: generation and chips along each axis, as "v5e:2x4", "v6e:1x1" or "v4:2x2x1".

    Raises:
      UserError: no libtpu, or no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("--tpu needs the TPU's compiler, the package libtpu: pip install 'jax[tpu]'")
    jax.config.update("jax_enable_compilation_cache", False)
    for name, value in _ON_ITS_OWN.items():
        os.environ.setdefault(name, value)
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        why = str(error).splitlines()[0]
        raise UserError(f"--tpu must be a slice, as v5e:2x4, v6e:1x1 or v4:2x2x1; got {topology!r}: {why}") from error
