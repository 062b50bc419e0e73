"""Devices of a TPU that this machine does not have: programs can be compiled for them, but not run."""

import importlib.util
import os

import jax
from jax.experimental import topologies

from ddpm_jax.runtime.errors import UserError

# Without these, libtpu would look for the TPU of this host, wait for an answer and complain that there is none; and it
# would allow only one process at a time, although processes that only compile do not conflict.
_ON_ITS_OWN = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def absent_tpu(topology: str) -> list[jax.Device]:
    """The devices of a TPU slice, made by its compiler (the package libtpu), which runs on any x86-64 Linux.

    JAX itself must already be set to run on CPU. Turns the cache of compiled programs off, because JAX cannot write
    programs for an absent device, and would warn each time.

    Args:
      topology: generation and chips along each axis, such as "v5e:2x4", "v6e:1x1" or "v4:2x2x1".

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
        raise UserError(f"--tpu must be a slice such as v5e:2x4, v6e:1x1, v4:2x2x1; got {topology!r}: {why}") from error
