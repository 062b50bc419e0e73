"""Several processes that share one run: the values that they exchange on the host so that all of them act alike.

This uses JAX's own `jax.distributed` (set up by `multi_host_flags`). Every process runs the same command, sees the same
workdir, and owns some of the devices. Only process 0 writes logs, images and tables.
"""

import zlib
from collections import deque
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ddpm_jax.runtime.devices import batch_sharded, local_mesh, put_batch, replicated
from ddpm_jax.runtime.errors import UserError

# Steps that the host may be ahead of the device: enough to hide the host's time, few enough for memory and Ctrl-C.
MAX_AHEAD = 2


def is_first() -> bool:
    """Whether this process writes the files that are written once."""
    return jax.process_index() == 0


def broadcast_from_first(number: int) -> int:
    """`number` of process 0, on every process: for decisions that one process takes for all."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def array_of_first(array: np.ndarray | None, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array of process 0, on every process; the others give None."""
    if jax.process_count() == 1:
        return array
    own = np.zeros(shape, dtype) if array is None else np.asarray(array)
    return np.asarray(multihost_utils.broadcast_one_to_all(own))


def max_over_hosts(number: int) -> int:
    """The largest `number` of any process, on every process."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def check_same(texts: Mapping[str, str], what: str) -> None:
    """Raises UserError, on every process, unless all processes have the same texts.

    Args:
      texts: by name; the names that differ are in the message.
      what: names the texts, such as "config".
    """
    if jax.process_count() == 1:
        return
    names = sorted(texts)
    sums = np.array([zlib.crc32(f"{name}={texts[name]}".encode()) for name in names], np.uint32)
    whole = np.array([len(names), zlib.crc32("".join(names).encode()), zlib.crc32(sums.tobytes())], np.uint32)
    everywhere = multihost_utils.process_allgather(whole)
    if np.all(everywhere == everywhere[:1]):
        return
    which = ""
    if np.all(everywhere[:, :2] == everywhere[:1, :2]):  # the same names, so that arrays of one shape are compared
        sums = multihost_utils.process_allgather(sums)
        which = f": {', '.join(name for name, found in zip(names, sums.T, strict=True) if len(set(found)) > 1)}"
    raise UserError(f"the processes of the run differ in their {what}{which}; start all of them with the same flags")


def barrier(name: str) -> None:
    """Waits until every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"ddpm_jax: {name}")


class HostMax:
    """The largest number of any process, asked for once per step and answered MAX_AHEAD steps later.

    A signal reaches one process, at any moment, and all processes must stop after the same step. Each passes the signal
    that it has seen, and the devices compute the maximum alongside the train step, so that the host need not wait. A
    single process gets its answer at once.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._asked: deque[jax.Array] = deque()
        self._num_local = local_mesh(mesh).size
        self._largest = jax.jit(jax.numpy.max, in_shardings=batch_sharded(mesh), out_shardings=replicated(mesh))

    def ask(self, number: int) -> int:
        """The answer for the call of MAX_AHEAD steps ago; 0 until there is one."""
        if jax.process_count() == 1:
            return number
        self._asked.append(self._largest(put_batch(np.full(self._num_local, number, np.int32), self._mesh)))
        return int(self._asked.popleft()) if len(self._asked) > MAX_AHEAD else 0
