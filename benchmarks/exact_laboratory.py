"""What samplers, guidance and edits really draw, measured on data whose score is known exactly.

    python benchmarks/exact_laboratory.py --out=docs/images/laboratory

The network makes no error, so that every distance to the claimed law is that of the method. Prints eight Markdown
tables and writes PREFIX_samplers.png, PREFIX_guidance.png and PREFIX_inpainting.png for --out=PREFIX (the last two, and
the table of peaks, in two dimensions only).

Takes about nine minutes on two CPU cores. --quick takes two to three, with few samples and settings: its numbers only
show that the program runs. --dims sets another number of dimensions, --schedule another noise schedule.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from laboratory import plots
from laboratory.claims import LABEL, Claim, Settings, in_percent, in_thousandths, of_class, side_by_side
from laboratory.distances import Estimate, estimate, gaussian_kl, gaussian_w2
from laboratory.edits import Observed, inpainting_methods, measurement_methods, methods_table, peaks_table, sdedit_table
from laboratory.guidance_variants import variants_table
from laboratory.laws import gaussian, pinwheel
from laboratory.methods import SAMPLERS, process_of_steps, pushed_gaussian

from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers import SamplerTable, ancestral_table
from ddpm_jax.diffusion.schedules import SCHEDULES


def gaussian_table(settings: Settings) -> list[list[str]]:
    """W2 and KL of each sampler on one Gaussian, without sampling error."""
    law = gaussian(settings.num_dims)
    true = law.means[0], np.sqrt(law.variances[0])
    rows = []
    for name, kind in kinds(settings).items():
        pushed = [pushed_gaussian(process, law, table) for process, table in map(kind, settings.calls)]
        rows.append(
            [name, *(f"{gaussian_w2(*one, *true):.2g}" for one in pushed), f"{gaussian_kl(*pushed[-1], *true):.1g}"]
        )
    return rows


def kinds(settings: Settings) -> dict[str, Callable[[int], tuple[Process, SamplerTable]]]:
    """Name -> number of network calls -> (process, table): the samplers, and ancestral with other variances."""

    def of_sampler(name: str, variance: str = "fixed_small"):
        return lambda calls: (settings.process(variance), SAMPLERS[name](settings.process(variance), calls))

    def of_best_variance(calls: int) -> tuple[Process, SamplerTable]:
        process = process_of_steps(settings.process(), calls, "learned")
        return process, ancestral_table(process)

    rows = {name: of_sampler(name) for name in SAMPLERS}
    del rows["ancestral"]
    return {
        "ancestral, fixed_small": of_sampler("ancestral"),
        "ancestral, fixed_large": of_sampler("ancestral", "fixed_large"),
        "ancestral, best variance": of_best_variance,
        **rows,
    }


def mixture_table(settings: Settings) -> tuple[Claim, list[list[str]], dict[str, list[Estimate]]]:
    """Sliced W2 by sampler and number of calls, and the two-sample test at the most calls, on the mixture."""
    law = pinwheel(settings.num_dims)
    claim = Claim(lambda rng, num: law.sample(rng, num)[0], settings)
    rows, curves, drawers = [], {}, {}
    for name, kind in kinds(settings).items():
        curves[name] = []
        for calls in settings.calls:
            process, table = kind(calls)
            key = (process.variance, process.num_steps)
            if key not in drawers:
                drawers[key] = settings.drawer(process, law, max(settings.calls))
            runs = side_by_side(lambda seed: drawers[key](table, seed), settings.repetitions)  # noqa: B023
            curves[name].append(claim.distances(runs))
        rows.append([name, *map(in_thousandths, curves[name]), in_percent(claim.accuracy(runs))])
        progress(name)
    return claim, rows, curves


def guidance_table(settings: Settings) -> tuple[list[list[str]], dict[float, np.ndarray], dict[float, np.ndarray]]:
    """Guidance against p(x) p(class | x)^scale, the law that it is said to draw."""
    law = pinwheel(settings.num_dims)
    process = settings.process()
    drawer = settings.drawer(process, law, max(settings.guided_calls))
    rows, exact, drawn = [], {}, {}
    interval = "{:g},{:g}".format(*settings.interval)
    for scale in settings.scales:
        claim = Claim(
            lambda rng, num, scale=scale: law.sample_sharpened(rng, num, label=LABEL, scale=scale)[0], settings
        )
        exact[scale] = claim.exact
        floor = in_thousandths(estimate(claim.floor))
        rows.append([f"{scale:g}", "exact samples", "", floor, "50.0", *of_class(law, claim.exact)])
        methods = {"classifier-free": {"label": LABEL, "scale": scale}, "classifier": {"classifier": (LABEL, scale)}}
        if scale != 1:
            methods[f"classifier-free, in {interval}"] = methods["classifier-free"] | {"interval": settings.interval}
        for guidance, given in methods.items():
            for sampler in ("dpmpp_2m", "ancestral"):
                for calls in settings.guided_calls:
                    table = SAMPLERS[sampler](process, calls)
                    runs = side_by_side(
                        lambda seed: drawer(table, seed, **given),  # noqa: B023
                        settings.repetitions,
                    )
                    shown = [in_thousandths(claim.distances(runs)), in_percent(claim.accuracy(runs))]
                    name = f"{guidance}, {sampler}"
                    rows.append([f"{scale:g}", name, str(calls), *shown, *of_class(law, runs[0])])
                    if name == "classifier-free, ancestral":
                        drawn[scale] = runs[0]
        progress(f"guidance scale {scale:g}")
    return rows, exact, drawn


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A Markdown table; the title has no "|", which would begin a row of a table."""
    print(f"\n{title}\n\n| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def progress(name: str) -> None:
    """One line on stderr."""
    print(f"  {time.monotonic() - _START:5.0f} s  {name}", file=sys.stderr, flush=True)


_START = time.monotonic()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, default=2, help="number of dimensions, at least 2 (default 2)")
    # "jsd" ends without signal, where eps says nothing of x_0.
    parser.add_argument("--schedule", choices=[name for name in SCHEDULES if name != "jsd"], default="cosine")
    parser.add_argument("--x_0_limit", type=float, help="clip x_0_hat to this, as 1 for images; by default no clipping")
    parser.add_argument("--out", metavar="PREFIX", help="write the plots PREFIX_samplers.png, ...; without it none")
    parser.add_argument("--num_samples", type=int, help=f"per run (default {Settings.num_samples})")
    parser.add_argument(
        "--quick", action="store_true", help="few samples and settings, only to try the program: two to three minutes"
    )
    args = parser.parse_args(arguments)
    if args.dims < 2:
        parser.error(f"--dims must be at least 2; got {args.dims}")
    if args.out == "":
        parser.error("--out must be a prefix such as docs/images/laboratory; got ''; without it there are no plots")
    if args.x_0_limit is not None and not 0 < args.x_0_limit < math.inf:
        parser.error(f"--x_0_limit must be above 0 and finite; got {args.x_0_limit}")
    if args.num_samples is not None and not 100 <= args.num_samples <= 1_000_000:
        parser.error(f"--num_samples must be in 100..1000000; got {args.num_samples}")
    settings = Settings(num_dims=args.dims, schedule=args.schedule, x_0_limit=args.x_0_limit)
    if args.quick:
        few = {"calls": (10,), "guided_calls": (10,), "scales": (1.0, 2.0), "replacement_calls": (20,)}
        few |= {"measurement_calls": (20,), "resamplings": ((10, 2, 3),), "zetas": ((20, 0.1),), "strengths": (0.5,)}
        settings = replace(settings, **few, variant_calls=10, edit_calls=10, num_samples=500, repetitions=2)
    if args.num_samples is not None:
        settings = replace(settings, num_samples=args.num_samples)
    print(
        f"{args.dims} dimensions, schedule {args.schedule!r}, T = {settings.num_steps}, x_0 limited to "
        f"{args.x_0_limit or 'nothing'}; {settings.repetitions} x "
        f"{settings.num_samples} samples per cell"
    )
    if not args.out:
        print("no plots: give --out=PREFIX")
    print_table(
        "One Gaussian: W2 by number of network calls, and KL in nats at the most calls; no sampling error",
        ["sampler", *map(str, settings.calls), f"KL at {settings.calls[-1]}"],
        gaussian_table(settings),
    )
    claim, rows, curves = mixture_table(settings)
    floor = estimate(claim.floor)
    print_table(
        f"Mixture: 1000 x sliced W2 by number of network calls (exact samples: {in_thousandths(floor)}), and the "
        f"two-sample accuracy in percent at {settings.calls[-1]} calls (50: not told apart)",
        ["sampler", *map(str, settings.calls), "told apart"],
        rows,
    )
    rows, exact, drawn = guidance_table(settings)
    print_table(
        f"Guidance to class {LABEL} against p(x) p(class given x)^scale: 1000 x sliced W2, two-sample "
        "accuracy in percent, mean of p(class given x) in percent, standard deviation",
        ["scale", "method", "calls", "sliced W2", "told apart", "p(class)", "deviation"],
        rows,
    )
    print_table(
        f"Variants of guidance to class {LABEL}, ancestral with {settings.variant_calls} calls: 1000 x sliced W2 to "
        f"the class and to p(x) p(class given x)^{settings.variant_scale:g}, mean of p(class given x) in percent, "
        "standard deviation",
        ["method", "to the class", "to the sharpened one", "p(class)", "deviation"],
        variants_table(settings),
    )
    progress("variants of guidance")
    process, law = settings.process(), pinwheel(args.dims)
    drawer = settings.drawer(process, law, max(settings.replacement_calls))
    header = ["method", "calls", "sliced W2", "told apart", "misfit"]
    methods = inpainting_methods(settings, process)
    rows, shown = methods_table(settings, drawer, process, Observed.of_half(settings), methods)
    print_table(
        "Inpainting of the second half of the coordinates against p(x given first half): 1000 x sliced W2, "
        "two-sample accuracy in percent, 1000 x RMS of y - A x",
        header,
        rows,
    )
    progress("inpainting")
    if args.dims == 2:
        print_table(
            "The first known value, as in the plot: percent of the samples above 0.4 and from -0.3 to 0.25, and the "
            "standard deviation of the latter",
            ["method", "above 0.4", "middle peak", "its deviation"],
            peaks_table(shown),
        )
    methods = measurement_methods(settings, process)
    print_table(
        "A measurement y = A x, the mean of the coordinates, against p(x given y): as above",
        header,
        methods_table(settings, drawer, process, Observed.of_mean(settings), methods)[0],
    )
    progress("measurements")
    print_table(
        f"SDEdit of uniform points in [-1, 1], ancestral with {settings.edit_calls} calls at strength 1: 1000 x sliced "
        "W2 to p(x), and 1000 x RMS distance to the start",
        ["strength", "calls", "to the data", "to the start"],
        sdedit_table(settings, drawer, process),
    )
    if args.out:
        plots.save_samplers(f"{args.out}_samplers.png", settings.calls, curves, floor)
        if args.dims == 2:
            plots.save_guidance(f"{args.out}_guidance.png", law, exact, drawn)
            plots.save_inpainting(f"{args.out}_inpainting.png", law, shown)
    print(f"\n{time.monotonic() - _START:.0f} s")


if __name__ == "__main__":
    main()
