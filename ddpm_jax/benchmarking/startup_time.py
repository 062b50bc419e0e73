"""Seconds from the start of a process to the end of its first train step, without and with compiled programs on disk.

Each start is a process of its own, `python -m ddpm_jax.benchmarking.startup_time CONFIG`, on random images.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from ddpm_jax.experiment.config_files import Config
from ddpm_jax.experiment.config_json import config_from_json, config_to_json
from ddpm_jax.runtime.errors import UserError

# The phases in order, after the start of Python itself; "second" is the second step, which compiles nothing.
PHASES = ("imports", "build", "parameters", "first", "second")


def startup(config: Config) -> dict[str, dict[str, int | float]]:
    """Seconds of each of PHASES, and "total": from the start of the process to the end of its first step.

    "programs" is the number of compiled programs on disk afterwards.

    For "cold", the cache of compiled programs is empty; "warm" is a second start. This process must not already use
    a device that only one process can use, such as a TPU.

    Raises:
      UserError: a start that failed, with its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "config.json")
        with open(path, "w") as file:
            file.write(config_to_json(config))
        return {name: _started(path, os.path.join(folder, "compiled")) for name in ("cold", "warm")}


def _started(path: str, cache: str) -> dict[str, int | float]:
    since = time.time()
    command = [sys.executable, "-m", "ddpm_jax.benchmarking.startup_time", path]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"--what=compile: the start failed: {lines[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    programs = sum(name.endswith("-cache") for name in os.listdir(cache))
    return {"total": found.pop("first_step_at") - since, "programs": programs, **found}


def _first_steps(path: str) -> dict[str, Any]:
    """Does what `python -m ddpm_jax.train` does until its second step, except for data, checkpoints and workdir."""
    marks = []

    def mark() -> None:
        marks.append(time.perf_counter())

    mark()
    import jax

    from ddpm_jax.benchmarking.timed_programs import random_inputs
    from ddpm_jax.experiment.build import build_experiment
    from ddpm_jax.experiment.state_sizes import abstract_batch
    from ddpm_jax.experiment.training import train  # noqa: F401  everything that the command imports
    from ddpm_jax.runtime.compilation import enable_compilation_cache

    enable_compilation_cache()
    mark()
    with open(path) as file:
        experiment = build_experiment(config_from_json(file.read()))
    mark()
    state = jax.block_until_ready(experiment.fresh_state())
    mark()
    batch = random_inputs(abstract_batch(experiment))
    step_fn = experiment.jitted_step()
    state, _ = jax.block_until_ready(step_fn(state, batch, experiment.keys.train))
    first_step_at = time.time()
    mark()
    jax.block_until_ready(step_fn(state, batch, experiment.keys.train))
    mark()
    return dict(zip(PHASES, np.diff(marks).tolist(), strict=True)) | {"first_step_at": first_step_at}


if __name__ == "__main__":
    print(json.dumps(_first_steps(sys.argv[1])))
