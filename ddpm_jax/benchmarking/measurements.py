"""Times a train step, a network call, a sampler step, the data loader and the start of a process on this machine."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.benchmarking.data_throughput import data_rate
from ddpm_jax.benchmarking.startup_time import PHASES, startup
from ddpm_jax.benchmarking.text_tables import aligned, counted, mebibytes
from ddpm_jax.benchmarking.timed_programs import PROGRAMS, prepare_call
from ddpm_jax.experiment.build import Experiment, build_experiment
from ddpm_jax.experiment.config_files import Config, changed
from ddpm_jax.experiment.program_costs import countable, flops, lower_forward, lower_sampler_rows, train_step_flops
from ddpm_jax.models.parameters import num_params
from ddpm_jax.runtime.errors import UserError, check_one_of
from ddpm_jax.runtime.timing import peak_memory, product_peak, repeated, summary

COLUMNS = ("seconds", "quartiles", "images/s", "FLOP/s", "of peak", "compile s", "MiB")
NOTE = """\
Each row is one program: train is a whole update, forward a network call, sample a step of the sampler (a network call
and the work around it), each on random images that are already on the device. Seconds are the median. FLOPs are XLA's
count of the program without remat; the peak is that of a matrix product in the same dtype on all devices, measured just
before. MiB is the compiler's plan per device: arguments plus temporaries."""


WHAT = (*PROGRAMS, "data", "compile")


def measure(
    config: Config, what: Sequence[str], *, repeats: int = 20, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Prints a line of the table for each entry of `what` as it is measured, and returns the numbers.

    Args:
      what: names from WHAT.
      repeats: timed calls of each program, after two untimed ones; for data, the number of batches.

    Raises:
      UserError: nothing to measure, an unknown name, too few repeats, or a config that does not fit.
    """
    for name in what:
        check_one_of("--what", name, WHAT)
    if not what:
        raise UserError(f"--what must name something to measure, from {sorted(WHAT)}; got nothing")
    if repeats < 3:
        raise UserError(f"--repeats must be at least 3, for a median with quartiles; got {repeats}")
    report: dict[str, Any] = {"jax": jax.__version__}
    if "compile" in what:  # first: its processes need the devices, and some devices serve only one process
        report["startup"] = startup(config)
        _say_startup(report["startup"], say)
    if "data" in what:
        report["data"] = data_rate(build_experiment(config), repeats)
        _say_data(report["data"], say)
    programs = [name for name in what if name in PROGRAMS]
    return report | (_measure_programs(config, programs, repeats, say) if programs else {})


def _measure_programs(
    config: Config, names: list[str], repeats: int, say: Callable[[str], None]
) -> dict[str, Any]:
    experiment = build_experiment(config)
    peak = product_peak(experiment.mesh, experiment.model.dtype)
    device, rate = experiment.mesh.devices.flat[0].device_kind, peak["flops_per_second"]
    size = num_params(experiment.abstract_state.params)
    where = f"{experiment.mesh.size} x {device}, jax {jax.__version__}"
    say(f"model    {size:,} parameters, {jnp.dtype(experiment.model.dtype).name}, on {where}")
    say(f"peak     {counted(rate)}FLOP/s, a product of {peak['side']} x {peak['side']} on each device\n")
    say(aligned(["", *COLUMNS]))
    rows = {}
    for name in names:
        rows[name] = _measured(name, experiment, repeats, rate)
        say(_line(name, rows[name]))
    _say_sampler(experiment, rows, say)
    memory = peak_memory(experiment.mesh)
    say("\n" + ", ".join(f"peak {where} memory {mebibytes(size)} MiB" for where, size in memory.items()))
    say("\n" + NOTE)
    return {
        "num_params": size, "device": device, "devices": experiment.mesh.size, "peak": peak, "rows": rows,
        "peak_memory": memory, "note": NOTE,
    }  # fmt: skip


def _say_startup(found: dict[str, dict[str, int | float]], say: Callable[[str], None]) -> None:
    say("seconds to the end of the first train step, in a new process")
    say(aligned(["", "total", *PHASES]))
    for name, seconds in found.items():
        say(aligned([name, *(f"{seconds[phase]:.2f}" for phase in ("total", *PHASES))]))
    say("cold: no compiled programs on disk; warm: started again. parameters and first include compilation.\n")


def _say_data(found: dict[str, int | float], say: Callable[[str], None]) -> None:
    say(
        f"data     {found['num_images']:,} images; the first batch after {found['first_seconds']:.2f} s, then "
        f"{found['images_per_second']:,.0f} images/s\n"
    )


def _measured(name: str, experiment: Experiment, repeats: int, peak: float) -> dict[str, float]:
    call = prepare_call(name, experiment)
    if name == "train":
        useful = train_step_flops(build_experiment(changed(experiment.config, ["model.remat=false"])))
    else:
        useful = flops((lower_forward if name == "forward" else lower_sampler_rows)(countable(experiment)))
    seconds = repeated(call.run, repeats)
    return summary(seconds, num_images=call.num_images, flops=useful, peak=peak) | dataclasses.asdict(call.costs)


def _line(name: str, row: dict[str, float]) -> str:
    return aligned([
        name,
        f"{row['seconds']:.4f}",
        f"{row['seconds_low']:.4f}-{row['seconds_high']:.4f}",
        f"{row['images_per_second']:,.1f}",
        counted(row["flops_per_second"]).strip(),
        f"{100 * row['share_of_peak']:.1f} %",
        f"{row['trace_seconds'] + row['compile_seconds']:.1f}",
        mebibytes(row["arguments"] + row["temporaries"]),
    ])  # fmt: skip


def _say_sampler(experiment: Experiment, rows: dict[str, dict], say: Callable[[str], None]) -> None:
    """Prints the rate of whole samples that follows from the time of a sampler step."""
    if "sample" in rows:
        calls = experiment.sampler_table.num_calls
        rate = rows["sample"]["samples_per_second"] = rows["sample"]["images_per_second"] / calls
        say(f"\n{experiment.sampler} with {calls} network calls: {rate:.4g} samples per second")
