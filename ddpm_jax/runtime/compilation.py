"""How programs are compiled: options of the outermost jits, the compilation cache on disk, and freeing unused memory.

JAX is imported inside the functions, so that `--help` and errors about flags need not wait for it.
"""

import ctypes
import functools
import os
import sys
import tempfile
from pathlib import Path

# All compilations are stored: the dozens of small ones together take half a second at each start.
_CACHED_COMPILE_SECONDS = 0.0


def compiler_options(platform: str | None = None) -> dict[str, str]:
    """Options for the outermost jits: on CPU, convolutions use all cores; elsewhere no options.

    jaxlib 0.10 hands CPU convolutions to a library that runs narrow ones on one core. This option sends convolutions
    to the multi-threaded path; matrix products and reductions stay with the library. The option is experimental, so
    it is tried once on a tiny function. DDPM_JAX_CPU_OPTIONS=0 turns it off.

    Args:
      platform: the platform that the program is compiled for; None: JAX's default.
    """
    libraries = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    return _if_taken("xla_cpu_experimental_ynn_fusion_type", libraries, platform)


def remat_options(platform: str | None = None) -> dict[str, str]:
    """Options for a jit of the gradient of a network with `model.remat`: on CPU, keep its barriers; elsewhere none.

    A barrier delays the recomputation until the backward pass needs it. XLA's CPU compiler removes the barriers before
    it orders the operations, so that everything is recomputed at once and no memory is saved.
    The option is tried as in `compiler_options`, and turned off by the same variable; `platform` is as there.
    """
    return _if_taken("xla_disable_hlo_passes", "cse_barrier_expander", platform)


def quick_compile_options(platform: str | None = None) -> dict[str, str]:
    """Options for a program that is compiled only to get its memory plan: on CPU, without optimisation."""
    import jax

    return {"xla_backend_optimization_level": "0"} if (platform or jax.default_backend()) == "cpu" else {}


def _if_taken(option: str, value: str, platform: str | None) -> dict[str, str]:
    """The option, if the program is for the CPU, JAX runs on the CPU, and this jaxlib has the option."""
    import jax

    here = jax.default_backend()
    is_for_cpu = (platform or here) == here == "cpu" and os.environ.get("DDPM_JAX_CPU_OPTIONS") != "0"
    return {option: value} if is_for_cpu and _has_option(option, value) else {}


@functools.cache
def _has_option(option: str, value: str) -> bool:
    """Whether jaxlib takes an option."""
    import jax
    import numpy as np

    try:
        jax.jit(lambda x: x + 1, compiler_options={option: value})(np.float32(0)).block_until_ready()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def enable_compilation_cache(enabled: bool = True) -> None:
    """Stores compiled programs on disk, so that the next start of a command is faster.

    The folder is `JAX_COMPILATION_CACHE_DIR` if that is set, else `ddpm_jax/xla` in the user's cache folder
    (`XDG_CACHE_HOME`, by default `~/.cache`). If it cannot be written, a warning says so, and every start compiles
    again.
    """
    import jax

    if not enabled:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _CACHED_COMPILE_SECONDS)
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddpm_jax" / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        print(f"warning: no compilation cache, because {folder} cannot be written ({error.strerror}); "
              "set JAX_COMPILATION_CACHE_DIR to a folder that can", file=sys.stderr, flush=True)  # fmt: skip
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def release_unused_memory() -> None:
    """Returns memory that is free, but kept by the C library, to the system; on Linux with glibc only.

    A compilation takes some hundred MB and frees them; glibc would keep them in addition to what the steps then need.
    """
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has no such function
    if trim is not None:
        trim(0)
