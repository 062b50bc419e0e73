"""What a program costs on an accelerator that this machine does not have, according to the accelerator's compiler.

    pip install 'jax[tpu]'
    python benchmarks/compiled_for.py --device=v5e --nets digits cifar10 --work forward --batch_size=128

    pip install 'jax[cuda12]'
    python benchmarks/compiled_for.py --device=h200 --nets cifar10 --work forward train --batch_size=128

Nothing is run. The compiler builds the program for one chip and reports

  - the bytes of the arguments and the temporaries;
  - for a TPU: the estimated cycles of each operation, by which the compiler chooses layouts and fusions. They are added
    up here by the purpose of the operation; copies that overlap with computation have no cycles;
  - for a GPU: the kernels. They are counted here, and the bytes that each reads and writes are added up. Bytes divided
    by the bandwidth are a lower bound on the time of the step, and so is the number of kernels times the launch time.
    Kernels of cuDNN and cuBLAS are chosen without autotuning, which a compilation on the GPU itself would do.

So this shows how a change of the program affects fusion, bytes and estimated cycles. It is not a measurement. Compiling
a train step for a TPU takes minutes.
"""

import argparse
import collections
import os
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.experimental import topologies
from jax.stages import Compiled

from ddpm_jax.benchmarking.tpu_topology import absent_tpu
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.program_costs import compiled_with_costs, lower_forward, lower_step
from ddpm_jax.runtime.errors import UserError

TPUS = {"v4": "v4:1x1x1", "v5e": "v5e:1x1", "v5p": "v5p:1x1x1", "v6e": "v6e:1x1"}
# From the data sheets: multiprocessors, bytes of memory, bytes per second, bytes of cache, compute capability, GHz.
GPUS = {"a100": (108, 80e9, 2.04e12, 40 << 20, (8, 0), 1.41), "h200": (132, 141e9, 4.8e12, 50 << 20, (9, 0), 1.98)}
PROGRAMS = {"forward": lower_forward, "train": lower_step}
# Kind -> part of the name of an operation in the network; the first match counts.
KINDS = {
    "norms": "/norm/",
    "attention": "attention",
    "resampling": "sample",
    "shortcuts": "shortcut",
    "convolutions": "conv",
}
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
FREE = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element")  # operations that move no data


def absent_gpu(name: str) -> jax.Device:
    """An NVIDIA GPU for XLA's compiler, described only by its numbers."""
    cores, memory, bandwidth, cache, (major, minor), clock = GPUS[name]
    shared = 228 << 10 if major >= 9 else 164 << 10
    about = f"""
        gpu_device_info {{
          core_count: {cores} fpus_per_core: {128 if major >= 9 else 64} clock_rate_ghz: {clock}
          device_memory_size: {int(memory)} memory_bandwidth: {int(bandwidth)} l2_cache_size: {cache}
          cuda_compute_capability {{ major: {major} minor: {minor} }}
          shared_memory_per_core: {shared} shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared - 1024}
          threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
        }}
        platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }} device_description_str: "{name}"
    """
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # the check would need the driver
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return topologies.get_topology_desc("", "cuda", topology="1x1x1", target_config=about).devices[0]
    except (NotImplementedError, RuntimeError) as error:
        raise UserError(f"--device={name} needs NVIDIA's compiler: pip install 'jax[cuda12]' ({error})") from error


class Operation(NamedTuple):
    """An operation of a compiled program."""

    kind: str  # one of KINDS, "the rest of the network", or "optimiser, EMA, norms" for everything else
    cycles: int
    num_bytes: int
    is_kernel: bool


def num_bytes(shape: str) -> int:
    """The bytes of an array or a tuple in XLA's notation: `(f32[2,3]{1,0}, pred[7])`."""
    total = 0
    for dtype, lengths in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape):
        count = 1
        for length in filter(None, lengths.split(",")):
            count *= int(length)
        total += SIZES.get(dtype, 0) * count
    return total


def kind_of(name: str) -> str:
    """What an operation is for, from its name: `jit(train_step)/jvp(UNet)/down_0_block_0/conv_1/...`."""
    if "UNet" not in name:
        return "optimiser, EMA, norms"
    inside = name.split("UNet")[-1]
    return next((kind for kind, part in KINDS.items() if part in inside), "the rest of the network")


def operations(program: str) -> Iterator[Operation]:
    """The operations at the entry of a compiled program, given as text; each may be a fusion of many."""
    shapes: dict[str, str] = {}
    for line in program[program.index("\nENTRY") :].splitlines():
        found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*?)\)(?:, |$)", line)
        if not found:
            continue
        name, shape, operation, operands = found.groups()
        shapes[name] = shape
        if operation in FREE:
            continue
        read = (shapes.get(operand.split()[-1].lstrip("%"), "") for operand in operands.split(",") if operand.strip())
        cycles, about = re.search(r'"estimated_cycles":"(\d+)"', line), re.search(r'op_name="([^"]*)"', line)
        yield Operation(
            kind=kind_of(about[1] if about else ""),
            cycles=int(cycles[1]) if cycles else 0,
            num_bytes=num_bytes(shape) + sum(map(num_bytes, read)),
            is_kernel=operation in ("fusion", "custom-call", "copy"),
        )


def compiled_for(device: jax.Device, net: str, work: str, batch_size: int, dtype: str) -> tuple[Compiled, list[str]]:
    """The program for one chip, and the cells of its row that do not depend on the kind of chip."""
    own = [f"{group}.batch_size={batch_size}" for group in ("train", "sample")]
    own += ["train.num_devices=1", "mesh.fsdp=1", "train.grad_accum_steps=1", "optim.clip_replicas=0"]
    experiment = build_experiment(load_config(net, [*own, f"model.dtype={dtype}"]), [device])
    compiled, costs = compiled_with_costs(lambda: PROGRAMS[work](experiment))
    sizes = (f"{size / 2**20:,.0f}" for size in (costs.arguments, costs.temporaries))
    return compiled, [net, work, str(batch_size), f"{costs.compile_seconds:.0f}", *sizes]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", required=True, choices=[*TPUS, *GPUS])
    parser.add_argument("--nets", nargs="+", default=["cifar10"], metavar="NAME")
    parser.add_argument("--work", nargs="+", default=["forward"], choices=list(PROGRAMS))
    parser.add_argument("--batch_size", type=int, default=128, metavar="N")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    try:
        is_tpu = args.device in TPUS
        device = absent_tpu(TPUS[args.device])[0] if is_tpu else absent_gpu(args.device)
        kinds = [*KINDS, "the rest of the network", "optimiser, EMA, norms"]
        unit = "million cycles" if is_tpu else "kernels | GB moved"
        names = ["net", "work", "batch", "compile s", "arguments, MiB", "temporaries, MiB", unit, *kinds]
        print("\n".join(f"| {' | '.join(cells)} |" for cells in (names, ["---"] * (len(names) + (not is_tpu)))))
        for net in args.nets:
            for work in args.work:
                compiled, cells = compiled_for(device, net, work, args.batch_size, args.dtype)
                of_kind, kernels = collections.Counter(), 0
                for operation in operations(compiled.as_text()):
                    of_kind[operation.kind] += operation.cycles if is_tpu else operation.num_bytes
                    kernels += operation.is_kernel
                scale = 1e6 if is_tpu else 1e9
                cells += [] if is_tpu else [f"{kernels:,}"]
                cells += [f"{amount / scale:.2f}" for amount in (of_kind.total(), *(of_kind[kind] for kind in kinds))]
                print(f"| {' | '.join(cells)} |", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
