"""In a process of its own: traces, shards, lowers and perhaps compiles the train step of a config for eight devices.

    python tests/benchmarking/big_model.py OUT.json compile|lower CONFIG [GROUP.FIELD=VALUE ...]
"""

import json
import resource
import sys
import time

import jax

from ddpm_jax.benchmarking.virtual_devices import use_virtual_devices
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.program_costs import lower_step
from ddpm_jax.experiment.state_sizes import state_bytes
from ddpm_jax.models.parameters import num_params
from ddpm_jax.runtime.compilation import quick_compile_options


def main(out: str, until: str, name: str, *overrides: str) -> None:
    use_virtual_devices(8)
    start = time.process_time()
    experiment = build_experiment(load_config(name, overrides))
    lowered = lower_step(experiment)
    leaves = jax.tree.leaves(experiment.abstract_state.params)
    got = {
        "num_params": num_params(experiment.abstract_state.params),
        "num_cut": sum(not leaf.sharding.is_fully_replicated for leaf in leaves),
        "cut_share": sum(leaf.size for leaf in leaves if not leaf.sharding.is_fully_replicated)
        / sum(leaf.size for leaf in leaves),
        "bytes": state_bytes(experiment),
        "partitions": lowered.as_text()[:10_000].count("mhlo.num_partitions = 8"),
    }
    if until == "compile":
        memory = lowered.compile(compiler_options=quick_compile_options()).memory_analysis()
        got |= {"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes}
    got |= {
        "seconds": time.process_time() - start,
        "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    with open(out, "w", encoding="utf-8") as file:
        json.dump(got, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
