"""Lower bounds for a train step on an accelerator that this machine does not have, from its FLOPs and bytes.

    python benchmarks/roofline.py --nets cifar10 celeba_hq_256 --peak=989e12 --bandwidth=4.8e12 --dtype=bfloat16

The default device is an NVIDIA H200 by its data sheet: 989 TFLOP/s in bfloat16 without sparsity, 4.8 TB/s.

Each network is traced at two batch sizes, not compiled, and FLOPs and bytes are fitted as a + b * batch: b is the work
per image, a the work per step whatever the batch size (optimiser, EMA, norms of all parameters). FLOPs are XLA's count
before compilation. Bytes have two bounds. `fused` counts what convolutions and matrix products read and write, and the
state read and written once; all operations in between are free. `apart` counts every operation as reading and writing
on its own (XLA's count before compilation). The true value is between them, and near `fused` for a compiler that fuses
well. Then

    time(batch) = max(FLOPs / peak, bytes / bandwidth)

The step changes from memory-bound to compute-bound where the two are equal, if they ever are; from there on the time is
proportional to the batch size. Launch times are not included, and no kernel reaches the peak: this is a bound, not a
forecast.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn

from ddpm_jax.experiment.build import Experiment, build_experiment
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.program_costs import flops, lower_step
from ddpm_jax.experiment.state_sizes import abstract_batch
from ddpm_jax.runtime.errors import UserError

OF_TENSOR_CORES = ("conv_general_dilated", "dot_general")
BATCH_SIZES = (8, 16)  # for the fit; any two sizes work


class Line(NamedTuple):
    """fixed + each * batch."""

    fixed: float
    each: float

    def __call__(self, batch: float) -> float:
        return self.fixed + self.each * batch


class Costs(NamedTuple):
    """Costs of a train step as functions of the batch size."""

    flops: Line
    fused: Line  # bytes
    apart: Line


def equations(jaxpr: Jaxpr, platform: str) -> Iterator[JaxprEqn]:
    """All equations of a program and its inner functions; of `jax.lax.platform_dependent` the branch for `platform`."""
    for equation in jaxpr.eqns:
        yield equation
        inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        for branch, platforms in zip(
            equation.params.get("branches", ()), equation.params.get("branches_platforms") or (), strict=False
        ):
            if platforms is None or platform in platforms:  # the default branch comes last
                inner.append(branch.jaxpr)
                break
        for program in inner:
            if hasattr(program, "eqns"):
                yield from equations(program, platform)


def num_bytes(avals) -> int:
    return sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in avals)


def fused_bytes(experiment: Experiment) -> int:
    """Bytes read and written by convolutions and products, and by one pass over the state and its gradient."""
    batch = abstract_batch(experiment)
    key = jax.eval_shape(lambda: experiment.keys.train)
    program = jax.make_jaxpr(experiment.train_step)(experiment.abstract_state, batch, key)
    moved = sum(
        num_bytes(var.aval for var in (*equation.invars, *equation.outvars))
        for equation in equations(program.jaxpr, "cuda")
        if equation.primitive.name in OF_TENSOR_CORES
    )
    state = experiment.abstract_state
    # Convolutions already read the parameters and write the gradient; the optimiser reads both once more.
    return moved + 2 * num_bytes(jax.tree.leaves((state.opt_state, state.ema, state.params)))


def costs_of(net: str, dtype: str) -> Costs:
    """The costs of the train step of an experiment on one device."""
    counts = []
    for batch_size in BATCH_SIZES:
        own = [f"train.batch_size={batch_size}", "train.num_devices=1", "mesh.fsdp=1", "train.grad_accum_steps=1"]
        experiment = build_experiment(load_config(net, [*own, "optim.clip_replicas=0", f"model.dtype={dtype}"]))
        lowered = lower_step(experiment)
        counts.append((flops(lowered), fused_bytes(experiment), lowered.cost_analysis()["bytes accessed"]))
    one, other = np.array(counts, float)
    each = (other - one) / (BATCH_SIZES[1] - BATCH_SIZES[0])
    return Costs(*(Line(*line) for line in zip(one - BATCH_SIZES[0] * each, each, strict=True)))


def turning_batch(costs: Costs, moved: Line, peak: float, bandwidth: float) -> str:
    """The batch size from which the FLOPs take longer than the bytes, as text."""
    slope = costs.flops.each / peak - moved.each / bandwidth
    if slope <= 0:
        return "never"
    return f"{max(1, math.ceil((moved.fixed / bandwidth - costs.flops.fixed / peak) / slope)):,}"


def rows(net: str, costs: Costs, args: argparse.Namespace) -> Iterator[list[str]]:
    """One line per batch size."""
    for batch in args.batch_sizes:
        work = costs.flops(batch) / args.peak
        cells = [net, f"{batch}", f"{1e3 * work:.2f}"]
        for moved in (costs.fused, costs.apart):
            seconds = moved(batch) / args.bandwidth
            cells += [f"{1e3 * seconds:.2f}", f"{batch / max(work, seconds):,.0f}"]
        yield cells


def table(names: list[str], lines: list[list[str]]) -> str:
    """Markdown."""
    ruler = ["---"] + ["---:"] * (len(names) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (names, ruler, *lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["fashion_mnist", "cifar10", "celeba_hq_256"], metavar="NAME")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8, 32, 128, 512], metavar="N")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--peak", type=float, default=989e12, help="FLOPs per second in that dtype")
    parser.add_argument("--bandwidth", type=float, default=4.8e12, help="bytes per second of the device's memory")
    args = parser.parse_args()
    try:
        costs = {net: costs_of(net, args.dtype) for net in args.nets}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"The peak is reached at {args.peak / args.bandwidth:.0f} FLOPs per byte or more.\n")
    names = ["net", "GFLOPs per image", "MB per image, fused", "apart", "MB per step, whatever the batch",
             "FLOPs per byte, fused", "apart", "bound by FLOPs from batch, fused", "apart"]  # fmt: skip
    lines = []
    for net, cost in costs.items():
        intensities = (f"{cost.flops.each / moved.each:,.0f}" for moved in (cost.fused, cost.apart))
        turns = (turning_batch(cost, moved, args.peak, args.bandwidth) for moved in (cost.fused, cost.apart))
        sizes = (f"{cost.flops.each / 1e9:,.1f}", *(f"{n / 1e6:,.0f}" for n in
                 (cost.fused.each, cost.apart.each, cost.fused.fixed)))  # fmt: skip
        lines.append([net, *sizes, *intensities, *turns])
    print(table(names, lines) + "\n")
    names = ["net", "batch", "FLOPs, ms", "bytes fused, ms", "images/s at most", "bytes apart, ms", "images/s"]
    print(table(names, [line for net, cost in costs.items() for line in rows(net, cost, args)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
