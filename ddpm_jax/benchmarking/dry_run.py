"""Parameters, operations and memory of a training run before it starts, with and without each memory-saving setting."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ddpm_jax.benchmarking.memory_variants import Variant, build_variants
from ddpm_jax.benchmarking.text_tables import aligned, counted, mebibytes
from ddpm_jax.experiment.build import Experiment, build_experiment
from ddpm_jax.experiment.config_files import Config
from ddpm_jax.experiment.config_overrides import flatten
from ddpm_jax.experiment.program_costs import sampler_step_flops, step_memory, train_step_flops
from ddpm_jax.experiment.state_sizes import average_bytes, kept_bytes, state_bytes
from ddpm_jax.models.parameters import num_params
from ddpm_jax.runtime.devices import platform_of
from ddpm_jax.runtime.errors import out_of_memory

STATE_COLUMNS = ("params", "ema", "optimizer", "batch", "gradients", "kept")
STEP_COLUMNS = ("arguments", "temporaries", "total")
NOTE = """\
All bytes are per device. params, ema (all averages), optimizer, batch, gradients and kept follow from shapes and
shardings and are valid for any device. kept is what the forward pass stores for the backward pass, before the compiler
fuses operations."""
NOTE_ON_COMPILED = """ temporaries is the compiler's plan for temporary memory in a step: gradients,
activations, and arrays gathered for FSDP. total is arguments (params, ema, optimizer, batch) plus temporaries."""
NOTE_ON_CPU = """
The compiler is XLA for this CPU. On a GPU or TPU it fuses and orders operations differently: expect other numbers
there, but the same direction for each setting. For bfloat16, kept and temporaries show less than a GPU or TPU saves:
CPU convolutions compute in float32, and norms, which stay in float32, account for much of what is kept."""
NOTE_ON_TPU = """
The compiler is the TPU's own; nothing has run on a TPU. It pads the last two axes of an array to whole tiles of 8 x 128
elements, so that arguments are larger than the sum above, the more so for narrow networks."""


def dry_run(
    config: Config,
    names: tuple[str, ...] = (),
    *,
    devices: Sequence[jax.Device] | None = None,
    compiles: bool = True,
    say: Callable[[str], None] = print,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Prints the tables as the numbers become available, and returns the numbers.

    Args:
      names: rows, from `memory_variants.SWITCHES`; empty: all that fit.
      devices: the devices to plan for; None: all devices of JAX.
      compiles: False leaves out what needs a compilation.
      say: called with each line of the report.
      progress: called with a line about each step of the work.

    Raises:
      UserError: no such row, or the config does not fit as given.
    """
    experiment = build_experiment(config, devices)
    variants, left_out = build_variants(config, names, devices)
    kind = experiment.mesh.devices.flat[0].device_kind
    report = {"config": flatten(config), "jax": jax.__version__, "devices": experiment.mesh.size, "device": kind}
    report |= _introduce(experiment, say)
    rows = {variant.name: {"changes": list(variant.changes), **state_bytes(variant.experiment)} for variant in variants}
    say("\nMiB on each device, from shapes and shardings:")
    say(aligned(["row", *STATE_COLUMNS]))
    for variant in variants:
        progress(f"tracing {variant.name}")
        row = rows[variant.name]
        row["kept"] = kept_bytes(variant.experiment)
        say(aligned([variant.name, *(mebibytes(row[column]) for column in STATE_COLUMNS)]))
    for name, why in left_out.items():
        say(f"{name} is left out: {why}")
    report |= _count(experiment, say, progress)
    if compiles:
        _compile(variants, rows, say, progress)
        note = NOTE + NOTE_ON_COMPILED + (NOTE_ON_CPU if platform_of(experiment.mesh) == "cpu" else NOTE_ON_TPU)
    else:
        note = NOTE
    say("\n" + note)
    say("\n" + _answer(variants[0].name, next(iter(rows.values())), experiment, compiles))
    return report | {"rows": rows, "left_out": left_out, "note": note}


def _answer(name: str, row: dict[str, Any], experiment: Experiment, compiles: bool) -> str:
    """The memory of the first row in one sentence."""
    settings = "the given settings" if name == "given" else f"the settings of {name}"
    if "does_not_fit" in row:
        return f"A train step with {settings} does not fit."
    if compiles:
        size, how = row["total"], "the total above"
    else:
        size, how = sum(row[column] for column in STATE_COLUMNS), "without what the compiler saves or adds"
    each = "" if experiment.mesh.size == 1 else " on each device"
    unit, name_of_unit = (2**30, "GiB") if size >= 2**30 else (2**20, "MiB")
    return f"A train step with {settings} needs about {size / unit:.3g} {name_of_unit}{each} ({how})."


def _introduce(experiment: Experiment, say: Callable[[str], None]) -> dict[str, Any]:
    mesh, size, batch_size = experiment.mesh, num_params(experiment.abstract_state.params), experiment.batch_size
    say(f"model         {size:,} parameters")
    of = "" if platform_of(mesh) == "cpu" else f" of {mesh.devices.flat[0].device_kind}"
    say(f"mesh          {mesh.size} devices{of}: data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}")
    say(f"batch         {batch_size} images, {batch_size // mesh.size} on each device")
    averages = average_bytes(experiment)
    for name, num_bytes in averages.items():
        say(f"{f'ema/{name}':<13} {mebibytes(num_bytes)} MiB on each device")
    return {"num_params": size, "mesh": dict(mesh.shape), "batch_size": batch_size, "averages": averages}


def _count(experiment: Experiment, say: Callable[[str], None], progress: Callable[[str], None]) -> dict[str, Any]:
    progress("counting operations")
    train, sampler = train_step_flops(experiment), sampler_step_flops(experiment)
    calls = experiment.sampler_table.num_calls
    num_train, num_sampled = experiment.batch_size, experiment.sample_batch_size
    say("\nFLOPs over all devices, a multiply-add as two:")
    say(f"train step    {counted(train)} for {num_train} images, {counted(train / num_train)} per image")
    say(f"sampler step  {counted(sampler)} for {num_sampled} images, {counted(sampler / num_sampled)} per image")
    say(f"one sample    {counted(sampler / num_sampled * calls)} by {experiment.sampler}, {calls} network calls")
    return {
        "train_step_flops": train,
        "sampler_step_flops": sampler,
        "sample_batch_size": num_sampled,
        "sampler_calls": calls,
    }


def _compile(
    variants: list[Variant], rows: dict[str, Any], say: Callable[[str], None], progress: Callable[[str], None]
) -> None:
    mesh = variants[0].experiment.mesh
    where = "this CPU" if platform_of(mesh) == "cpu" else mesh.devices.flat[0].device_kind
    say(f"\nMiB on each device in a train step, compiled for {where}:")
    say(aligned(["row", *STEP_COLUMNS, "compile s"]))
    for number, variant in enumerate(variants, 1):
        progress(f"compiling {variant.name}, {number} of {len(variants)}")
        row = rows[variant.name]
        try:
            memory = step_memory(variant.experiment)
        except jax.errors.JaxRuntimeError as error:
            row["does_not_fit"] = out_of_memory(error)
            if row["does_not_fit"] is None:
                raise
            say(aligned([variant.name]) + f"  does not fit: {row['does_not_fit']}")
            continue
        row |= dataclasses.asdict(memory) | {"total": memory.arguments + memory.temporaries}
        seconds = f"{memory.trace_seconds + memory.compile_seconds:.1f}"
        say(aligned([variant.name, *(mebibytes(row[column]) for column in STEP_COLUMNS), seconds]))
        jax.clear_caches()  # the traces of one row are useless for the next
