"""Long loops on the devices in chunks; each chunk is one call of a compiled function.

Between two chunks the host shows progress, stores intermediate results and reacts to Ctrl-C.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ddpm_jax.runtime.compilation import compiler_options
from ddpm_jax.runtime.devices import batch_sharded

MAX_CHUNKS = 50


def chunks_of(num_steps: int) -> list[range]:
    """0..num_steps-1 in order, in at most MAX_CHUNKS parts.

    They have one length, or two lengths that differ by one, so that at most two compilations are needed.
    """
    parts = np.array_split(np.arange(num_steps), min(MAX_CHUNKS, num_steps))
    return [range(int(part[0]), int(part[-1]) + 1) for part in parts]


def jit_chunk(
    function: Callable[..., Any],
    mesh: Mesh,
    in_shardings: Sequence[NamedSharding | None],
    *,
    batch_axis: int = 0,
    donate: int | None = None,
) -> Callable[..., Any]:
    """`function` of one chunk, compiled for the mesh; its results are split along the batch.

    Args:
      in_shardings: one for each argument.
      batch_axis: of every array that `function` returns.
      donate: index of an argument, such as the state so far, whose memory the result may reuse.
    """
    return jax.jit(
        function,
        in_shardings=tuple(in_shardings),
        out_shardings=batch_sharded(mesh, axis=batch_axis),
        donate_argnums=donate,
        compiler_options=compiler_options(),
    )
