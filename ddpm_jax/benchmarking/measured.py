"""A train step, a network call and a sampler step, timed on the devices that are there."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from ddpm_jax import sampler_factory
from ddpm_jax.benchmarking.calls import PROGRAMS, prepare_call
from ddpm_jax.benchmarking.programs import countable, flops, lower_forward, lower_sampler_rows, train_step_flops
from ddpm_jax.benchmarking.tables import aligned, counted, mebibytes
from ddpm_jax.benchmarking.timing import product_peak, repeated, summary
from ddpm_jax.benchmarking.variants import changed
from ddpm_jax.errors import UserError, check_one_of
from ddpm_jax.models.unet import num_params
from ddpm_jax.parts import Parts, build_parts

COLUMNS = ("seconds", "quartiles", "pictures/s", "FLOP/s", "of peak", "compile s", "MiB")
NOTE = """\
A row is one program: train a whole update, forward a network call, sample a step of the sampler (a call and what is
around it), each on random pictures that lie on the device already. Seconds are the median. FLOPs are XLA's count of the
program without remat; the peak is that of a matrix product in the same type on all devices, measured just before. MiB
is what the compiler plans on each device: arguments and temporaries."""


def measure(
    config: ConfigDict, what: Sequence[str], *, repeats: int = 20, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Prints a line of the table for each of `what` as it is measured, and returns the numbers.

    Args:
      what: of PROGRAMS.
      repeats: timed calls of each, after two that are not.

    Raises:
      UserError: nothing to measure or no such program, too few repeats, or a config that does not fit.
    """
    for name in what:
        check_one_of("--what", name, PROGRAMS)
    if not what:
        raise UserError(f"--what must name something to measure, of {sorted(PROGRAMS)}; got nothing")
    if repeats < 3:
        raise UserError(f"--repeats must be at least 3, for a median with quartiles; got {repeats}")
    parts = build_parts(config)
    peak = product_peak(parts.mesh, parts.model.dtype)
    device, rate = parts.mesh.devices.flat[0].device_kind, peak["flops_per_second"]
    size = num_params(parts.abstract_state.params)
    say(f"model    {size:,} parameters, {config.model.dtype}, on {parts.mesh.size} x {device}, jax {jax.__version__}")
    say(f"peak     {counted(rate)}FLOP/s, a product of {peak['side']} x {peak['side']} on each device\n")
    say(aligned(["", *COLUMNS]))
    rows = {}
    for name in what:
        rows[name] = _measured(name, parts, repeats, rate)
        say(_line(name, rows[name]))
    _say_sampler(parts, rows, say)
    say("\n" + NOTE)
    return {"num_params": size, "device": device, "devices": parts.mesh.size, "peak": peak, "rows": rows, "note": NOTE}


def _measured(name: str, parts: Parts, repeats: int, peak: float) -> dict[str, float]:
    call = prepare_call(name, parts)
    if name == "train":
        useful = train_step_flops(build_parts(changed(parts.config, ["model.remat=false"])))
    else:
        useful = flops((lower_forward if name == "forward" else lower_sampler_rows)(countable(parts)))
    seconds = repeated(call.run, repeats)
    return summary(seconds, pictures=call.pictures, flops=useful, peak=peak) | dataclasses.asdict(call.costs)


def _line(name: str, row: dict[str, float]) -> str:
    return aligned([
        name,
        f"{row['seconds']:.4f}",
        f"{row['seconds_low']:.4f}-{row['seconds_high']:.4f}",
        f"{row['pictures_per_second']:,.1f}",
        counted(row["flops_per_second"]).strip(),
        f"{100 * row['share_of_peak']:.1f} %",
        f"{row['trace_seconds'] + row['compile_seconds']:.1f}",
        mebibytes(row["arguments"] + row["temporaries"]),
    ])  # fmt: skip


def _say_sampler(parts: Parts, rows: dict[str, dict], say: Callable[[str], None]) -> None:
    """What the time of a sampler step makes of a whole sample."""
    if "sample" in rows:
        calls = sampler_factory.build_table(parts.config, parts.schedule).num_calls
        rate = rows["sample"]["samples_per_second"] = rows["sample"]["pictures_per_second"] / calls
        say(f"\n{parts.config.sample.sampler} with {calls} network calls: {rate:.4g} samples a second")
