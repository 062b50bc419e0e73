"""Times a program over many repeats, and derives rates."""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from ddpm_jax.runtime.devices import batch_sharded, local_mesh

_SIDES = (512, 1024, 2048, 4096, 8192)
_LONG_ENOUGH = 0.05  # seconds of a product, so that its launch time does not matter
_PEAK_REPEATS = 5


def repeated(run: Callable[[], Any], repeats: int, warm_up: int = 2) -> list[float]:
    """Seconds of each of `repeats` calls, until the results are ready, after `warm_up` untimed calls."""
    seconds = []
    for _ in range(warm_up + repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return seconds[warm_up:]


def summary(seconds: list[float], *, num_images: int, flops: float, peak: float) -> dict[str, float]:
    """Median and quartiles of `seconds`, images per second, FLOPs per second, and their share of `peak`."""
    low, median, high = (float(q) for q in np.quantile(seconds, (0.25, 0.5, 0.75)))
    return {
        "seconds": median,
        "seconds_low": low,
        "seconds_high": high,
        "repeats": len(seconds),
        "images_per_second": num_images / median,
        "flops": flops,
        "flops_per_second": flops / median,
        "share_of_peak": flops / median / peak,
    }


def product_peak(mesh: Mesh, dtype: DTypeLike) -> dict[str, float]:
    """FLOPs per second of a product of square matrices in `dtype` on all devices at once: the peak to compare with.

    The side grows until a product takes long enough; the best of all sides counts.
    """
    spread = batch_sharded(mesh)
    product = jax.jit(lambda a: jax.lax.batch_matmul(a, a), in_shardings=spread)
    best = {"flops_per_second": 0.0, "side": 0}
    for side in _SIDES:
        shape = (mesh.size, side, side)
        ones = jax.jit(lambda shape=shape: jnp.ones(shape, dtype), out_shardings=spread)()  # never whole on a device
        seconds = float(np.median(repeated(lambda ones=ones: product(ones), _PEAK_REPEATS)))
        rate = mesh.size * 2 * side**3 / seconds
        if rate > best["flops_per_second"]:
            best = {"flops_per_second": rate, "side": side}
        if seconds > _LONG_ENOUGH:
            break
    return best


def peak_memory(mesh: Mesh) -> dict[str, int]:
    """Peak bytes in use: "host", of this process, and "device", of its first device, if the device counts them."""
    per_unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, elsewhere in KiB
    import resource  # which Windows lacks

    peaks = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * per_unit}
    stats = local_mesh(mesh).devices.flat[0].memory_stats() or {}  # None on CPU
    if "peak_bytes_in_use" in stats:
        peaks["device"] = stats["peak_bytes_in_use"]
    return peaks
