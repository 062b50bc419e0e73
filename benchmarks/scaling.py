"""How step time and memory grow with batch, resolution, width, steps, samples and devices: exponents, JSON, a plot.

    python benchmarks/scaling.py --out=docs/images/scaling

Writes scaling.json and scaling.png and prints two Markdown tables; takes some twenty minutes on two idle CPU cores. The
base is a small U-Net, of which one quantity after the other is varied (the resolution in batches of 4). Seconds are
medians of several repeats; in each repeat every point of a curve has its turn, so that other load on the machine
affects all points alike. Memory is that of the compiled step on one device (state, batch, temporaries); neither memory
nor FLOPs depend on other load. Over devices only memory is reported, because the devices are virtual: strong scaling is
the same batch over all devices with the state sharded by FSDP, weak scaling is a batch that grows with the devices.
Samples are drawn in batches of 8 with ten network calls each; the curve over sampler steps draws 8 samples. Exponents
are least-squares fits of logarithms, with their standard errors.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from ddpm_jax.benchmarking.power_law import PowerLaw, fit_power_law
from ddpm_jax.benchmarking.virtual_devices import use_virtual_devices
from ddpm_jax.data.batch import Batch
from ddpm_jax.experiment import config_checks, sampler_factory
from ddpm_jax.experiment.build import Experiment, build_experiment
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.program_costs import lower_step, step_memory, train_step_flops

BASE = (
    "data.num_channels=3", "data.image_size=32,32", "unet.channels=32", "unet.channel_mults=1,2,2",
    "unet.attention_resolutions=8", "train.batch_size=16", "train.num_devices=1", "sample.sampler=ddim",
    "sample.num_sampler_steps=10", "sample.batch_size=8",
)  # fmt: skip
# Name of the axis -> its points, and the fields that each point sets.
AXES = {
    "batch": ((1, 2, 4, 8, 16, 32, 64, 128, 256, 512), lambda n: [f"train.batch_size={n}"]),
    "resolution": (
        (8, 16, 32, 64, 128, 256),
        lambda n: [f"data.image_size={n},{n}", f"unet.attention_resolutions={n // 4}", "train.batch_size=4"],
    ),
    "width": ((16, 32, 64, 128), lambda n: [f"unet.channels={n}"]),
    "steps": ((10, 20, 50, 100, 200), lambda n: [f"sample.num_sampler_steps={n}"]),
    "samples": ((8, 16, 32, 64), lambda n: []),
    "devices": ((1, 2, 4, 8), lambda n: [f"train.num_devices={n}", f"mesh.fsdp={n}"]),
    "weak": ((1, 2, 4, 8), lambda n: [f"train.num_devices={n}", f"train.batch_size={16 * n}"]),
}
UNITS = {
    "batch": "images per step",
    "resolution": "pixels per side",
    "width": "channels of the first level",
    "steps": "sampler steps",
    "samples": "samples",
    "devices": "devices (one batch, FSDP)",
    "weak": "devices (16 images each)",
}
OF_SAMPLING = ("steps", "samples")  # only the time is measured
OVER_DEVICES = ("devices", "weak")  # only the memory is measured
WHAT = {"seconds": "median seconds", "memory": "bytes on one device", "flops": "FLOPs of a step"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="PATH", help="write PATH.json and PATH.png")
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--notime", action="store_true", help="only memory and FLOPs, for a busy machine")
    parser.add_argument("--child", metavar="NAME", help="used internally: prints memory over devices")
    args = parser.parse_args()
    if args.child:
        ns = AXES[args.child][0]
        use_virtual_devices(max(ns))
        print(json.dumps([_memory(parts_of(args.child, n)) for n in ns]))
        return 0

    report = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, jax {jax.__version__}",
        "repeats": args.repeats,
        "axes": {},
    }
    for axis in args.axes:
        if args.notime and axis in OF_SAMPLING:
            continue
        print(f"{axis} ...", file=sys.stderr, flush=True)
        report["axes"][axis] = measured(axis, 0 if args.notime else args.repeats)
        report["load_average"] = os.getloadavg()[0]
    for curves in report["axes"].values():
        curves["fits"] = {what: fit_power_law(*points(curves, what)) for what in WHAT if what in curves}
        if "seconds" in curves and len(curves["n"]) >= 6:  # upper points: less overhead
            n, seconds = points(curves, "seconds")
            curves["upper_fit"] = fit_power_law(n[-3:], seconds[-3:])
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Path(f"{args.out}.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    plot(report).savefig(f"{args.out}.png", dpi=120)
    print_table(report)
    return 0


def parts_of(axis: str, n: int) -> Experiment:
    """The base experiment with one quantity set to n."""
    return build_experiment(load_config("digits", [*BASE, *AXES[axis][1](n)]))


def points(curves: dict, what: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array(curves["n"], float), np.array(curves[what], float)


def measured(axis: str, repeats: int) -> dict:
    """For each point of an axis: seconds (if repeats > 0), memory and FLOPs, as far as the axis has them."""
    ns = AXES[axis][0]
    curves = {"n": list(ns)}
    if axis in OVER_DEVICES:
        child = [sys.executable, __file__, "--out=-", f"--child={axis}"]
        done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
        return curves | {"memory": json.loads(done.stdout)}
    if axis in OF_SAMPLING:
        runs = {n: sampling(parts_of(axis, n), n if axis == "samples" else 8) for n in ns}
        return curves | (timed(runs, repeats) if repeats else {})
    parts = {n: parts_of(axis, n) for n in ns}
    curves |= {"memory": [_memory(parts[n]) for n in ns], "flops": [train_step_flops(parts[n]) for n in ns]}
    return curves | (timed({n: training(parts[n]) for n in ns}, repeats) if repeats else {})


def _memory(experiment: Experiment) -> int:
    memory = step_memory(experiment)
    return memory.arguments + memory.temporaries


def training(experiment: Experiment) -> Callable[[], None]:
    """A function that runs one training step."""
    config = experiment.config
    shape = (config.train.batch_size, *config_checks.image_shape_of(config))
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    step, held = lower_step(experiment).compile(), [experiment.fresh_state()]

    def once() -> None:
        held[0], metrics = step(held[0], Batch(images), experiment.keys.train, experiment.frozen)
        jax.block_until_ready(metrics)

    return once


def sampling(experiment: Experiment, num_samples: int) -> Callable[[], None]:
    """A function that draws `num_samples` samples from an untrained network."""
    table = sampler_factory.build_table(experiment.config, experiment.process)
    generator = sampler_factory.build_generator(
        experiment.config, experiment.process, table, experiment.model, experiment.mesh
    )
    params = experiment.fresh_state().params
    return lambda: generator.generate(params, seed=0, num_samples=num_samples)


def timed(runs: dict[int, Callable[[], None]], repeats: int) -> dict[str, list]:
    """Median and quartiles of the seconds of each run; the runs take turns."""
    seconds = {n: [] for n in runs}
    for run in runs.values():
        run()  # compiles and warms up
    for _ in range(repeats):
        for n, run in runs.items():
            run()  # warms the caches, which the other runs have used
            start = time.perf_counter()
            run()
            seconds[n].append(time.perf_counter() - start)
    low, median, high = (np.quantile(list(seconds.values()), q, axis=1).tolist() for q in (0.25, 0.5, 0.75))
    return {"seconds": median, "seconds_quartiles": [low, high], "seconds_all": list(seconds.values())}


def print_table(report: dict) -> None:
    names = ["against", "points", "seconds, last three points", *(f"{what}, exponent" for what in WHAT)]
    print(f"| {' | '.join(names)} |")
    print("| --- | --- | ---: |" + " ---: |" * len(WHAT))
    for axis, curves in report["axes"].items():
        cells = [
            "{:.3f} +- {:.3f}".format(*curves["fits"][what][:2]) if what in curves["fits"] else "-" for what in WHAT
        ]
        cells.insert(0, "{:.3f} +- {:.3f}".format(*curves["upper_fit"][:2]) if "upper_fit" in curves else "-")
        print(f"| {axis} | {', '.join(map(str, curves['n']))} {UNITS[axis]} | {' | '.join(cells)} |")
    print("\n| against | value | median seconds (quartiles) | MiB on one device | GFLOPs of a step |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for axis, curves in report["axes"].items():
        for i, n in enumerate(curves["n"]):
            low, high = (side[i] for side in curves.get("seconds_quartiles", [[0] * len(curves["n"])] * 2))
            seconds = f"{curves['seconds'][i]:.3f} ({low:.3f} to {high:.3f})" if "seconds" in curves else "-"
            memory = f"{curves['memory'][i] / 2**20:,.1f}" if "memory" in curves else "-"
            flops = f"{curves['flops'][i] / 1e9:,.2f}" if "flops" in curves else "-"
            print(f"| {axis} | {n} | {seconds} | {memory} | {flops} |")


def plot(report: dict) -> Figure:
    """One row of panels for the seconds and one for the memory, logarithmic, with the fitted lines."""
    rows = [what for what in ("seconds", "memory") if any(what in curves for curves in report["axes"].values())]
    panels = {what: [axis for axis, curves in report["axes"].items() if what in curves] for what in rows}
    width = max(len(axes) for axes in panels.values())
    figure = Figure(figsize=(3.3 * width, 3.0 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), width, squeeze=False)
    for panel in grid.flat:
        panel.set_axis_off()
    for row, what in enumerate(rows):
        for panel, axis in zip(grid[row], panels[what], strict=False):
            draw(panel, axis, what, report["axes"][axis])
    return figure


def round_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in [low, high]; the powers of ten alone over more than two decades."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low > 100 else (1, 2, 5)
    return [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]


def draw(panel, axis: str, what: str, curves: dict) -> None:
    x, y = points(curves, what)
    y = y / 2**20 if what == "memory" else y
    law = PowerLaw(*curves["fits"][what])
    factor = law.factor / 2**20 if what == "memory" else law.factor
    panel.set_axis_on()
    if what == "seconds":
        low, high = np.array(curves["seconds_quartiles"])
        panel.errorbar(x, y, yerr=[y - low, high - y], fmt="o", color="#1f4e79", markersize=5, capsize=3)
    else:
        panel.plot(x, y, "o", color="#1f4e79", markersize=5)
    panel.plot(x, factor * x**law.exponent, color="#c0504d", linewidth=1.2)
    panel.set(xscale="log", yscale="log", xlabel=UNITS[axis])
    seconds = "seconds" if axis in OF_SAMPLING else "seconds per step"
    panel.set_ylabel(seconds if what == "seconds" else "MiB on one device")
    panel.set_title(f"exponent {law.exponent:.2f} ± {law.standard_error:.2f}", fontsize=10)
    every = 2 if len(x) > 6 else 1
    panel.set_xticks(x[::every], [f"{n:g}" for n in x[::every]])
    panel.minorticks_off()
    if y.max() < 1.5 * y.min():  # almost constant: must not look like a slope
        panel.set_ylim(y.min() / 2, 2 * y.max())
    ticks = round_ticks(*panel.get_ylim())
    panel.set_yticks(ticks, [f"{value:,.6g}" for value in ticks])
    panel.grid(True, linewidth=0.5, color="0.88")
    panel.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main())
