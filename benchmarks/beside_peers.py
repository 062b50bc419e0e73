"""Compares the speed of ddpm_jax with PyTorch U-Nets of the same weights: forward pass, sampler and train step.

    pip install -e '.[parity]'
    python benchmarks/beside_peers.py --nets digits fashion_mnist --out=beside.json

First, every contestant computes a prediction, a gradient and a few sampler steps from the same weights and noise, and
the numbers are compared. A peer that differs is left out; if only its gradient differs, it is left out of the train
rows. Then, for each row, every contestant is built in a process of its own. The processes run in turn, one at a time,
in an order that rotates from round to round.
A ratio is our median seconds divided by theirs, within one round: below 1, ddpm_jax is faster. The table shows the
median of the ratio over the rounds, with the lowest and the highest. The best peer is the one with the lowest median of
seconds. Two memory columns show the peak of the whole process while it runs, and its peak until then, including
compilation. `sample` is 20 steps in one call, the chunk length of a sampling run; `train` is one whole update.
lucidrains is denoising-diffusion-pytorch's own U-Net: a different network with other weights. Its numbers are not
compared, and it never counts as the best peer.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "beside"
sys.path.insert(0, str(HERE))

from nets import NETS, WORKS, Job  # noqa: E402

OURS = "ddpm_jax"
FORMS = ("plain", "channels_last", "compile")
# Memory that malloc keeps after each step instead of returning it; for both sides, glibc only.
KEEP = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
# Float32 rounding, accumulated over some 60 layers; each of the five sampler steps divides it by sqrt(alpha-bar).
TOLERANCES = {"prediction": 1e-4, "loss": 1e-5, "gradient_norm": 1e-4, "walk": 1e-3}


class Contestant:
    """A process that waits for the driver."""

    def __init__(self, job: Job, keep: bool):
        script = HERE / ("ours.py" if job.variant == OURS else "peer.py")
        env = os.environ | (KEEP if keep else {}) | {"OMP_NUM_THREADS": str(job.threads)}
        self._process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(asdict(job))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip
        self.name, self.rounds = job.variant, []
        self.about = self._answer()

    def wake(self, seconds: float) -> None:
        """Measures for about `seconds`."""
        print(seconds, file=self._process.stdin, flush=True)
        self.rounds.append(self._answer())

    def end(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def medians(self) -> np.ndarray:
        """Median seconds per call, one number per round."""
        return np.array([np.median(measured["seconds"]) for measured in self.rounds])

    def summary(self) -> dict:
        """The numbers for the table and the file."""
        return {
            "about": self.about,
            "seconds": float(np.median(self.medians())),
            "round_seconds": self.medians().tolist(),
            "cores": float(np.median([measured["cores"] for measured in self.rounds])),
            "faults": float(np.median([measured["faults"] for measured in self.rounds])),
            "start_bytes": self.about["peak_bytes"],
            "running_bytes": self.rounds[-1]["running_bytes"],
        }

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"error: {self.name} ended with code {self._process.wait()}; its output is above")
        return json.loads(line)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["digits"], choices=list(NETS), metavar="NAME")
    parser.add_argument("--work", nargs="+", default=list(WORKS), choices=WORKS, metavar="WORK")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8, 32], metavar="N")
    parser.add_argument("--forms", nargs="+", default=["plain", "channels_last"], choices=FORMS, metavar="FORM")
    parser.add_argument("--lucidrains", action="store_true", help="also time denoising-diffusion-pytorch's own U-Net")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of PyTorch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="time of one contestant in one round")
    parser.add_argument("--keep_memory", action="store_true", help="malloc keeps all freed memory, on both sides")
    parser.add_argument("--out", metavar="FILE", help="write all numbers to this JSON file")
    parser.add_argument("--table", nargs="+", metavar="FILE", help="only print a Markdown table of these result files")
    args = parser.parse_args()
    if args.table:
        print(markdown([row for name in args.table for row in json.loads(Path(name).read_text())["rows"]]))
        return 0
    rows = []
    for net in args.nets:
        with prepared(net) as folder:
            job = Job(net, "check", 2, OURS, folder, args.threads, "float32")
            same = names_of(net, args.forms)
            agreeing = check(job, same, args.dtype)
            print(HEADER, flush=True)
            others = [f"lucidrains:{form}" for form in args.forms if form != "compile"] if args.lucidrains else []
            for work in args.work:
                if not agreeing[work]:
                    raise SystemExit(f"error: no peer computes what {OURS} does for {work}: see the lines above")
                for batch_size in args.batch_sizes:
                    row_job = replace(job, work=work, batch_size=batch_size, dtype=args.dtype)
                    rows.append(measure(row_job, [OURS, *agreeing[work], *others], args))
                    print(line_of(rows[-1]), flush=True)
                    if args.out:
                        write(args, rows)
    return 0


@contextmanager
def prepared(net: str) -> Iterator[str]:
    """A folder with the input files of all contestants of a net."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(HERE / "prepare.py"), net, folder], check=True)
        yield folder


def names_of(net: str, forms: list[str]) -> list[str]:
    """The peers that can use our weights."""
    peer = "improved" if net.startswith("improved") else "diffusers"
    return [f"{peer}:{form}" for form in forms]


def check(job: Job, peers: list[str], dtype: str) -> dict[str, list[str]]:
    """The peers whose results agree with ours, by work; a peer with a different gradient is left out of training only.

    The comparison is in float32, whatever is timed afterwards.
    """
    found = {}
    for name in (OURS, *peers):
        Contestant(replace(job, variant=name), keep=False).end()
        found[name] = np.load(Path(job.folder) / f"check_{name.replace(':', '_')}.npz")
    agreeing = {work: [] for work in WORKS}
    for name in peers:
        errors = {}
        for quantity in TOLERANCES:
            ours, theirs = (np.asarray(found[side][quantity], np.float64) for side in (OURS, name))
            errors[quantity] = float(np.max(np.abs(ours - theirs)) / max(1.0, np.max(np.abs(theirs))))
        differs = {quantity for quantity, tolerance in TOLERANCES.items() if not errors[quantity] <= tolerance}
        for work in WORKS:
            if not differs or (work != "train" and differs == {"gradient_norm"}):
                agreeing[work].append(name)
        rows = "train rows" if name in agreeing["forward"] else "all rows"
        verdict = f"DIFFERS in {', '.join(sorted(differs))} and is left out of {rows}" if differs else "agrees"
        print(f"{job.net}: {name} {verdict}: " + ", ".join(f"{k} {v:.1g}" for k, v in errors.items()), flush=True)
    if dtype != "float32":
        print(f"(compared in float32; timed in {dtype})", flush=True)
    return agreeing


def measure(job: Job, names: list[str], args: argparse.Namespace) -> dict:
    """One row: builds every contestant, then runs them in turn."""
    contestants = [Contestant(replace(job, variant=name), args.keep_memory) for name in names]
    for number in range(args.rounds):
        turn = number % len(contestants)
        for contestant in contestants[turn:] + contestants[:turn]:
            contestant.wake(args.seconds)
    for contestant in contestants:
        contestant.end()
    ours, peers = contestants[0], contestants[1:]
    row = {"job": asdict(job), "contestants": {c.name: c.summary() for c in contestants}, "ratios": {}}
    for peer in peers:
        ratios = ours.medians() / peer.medians()
        row["ratios"][peer.name] = [float(f(ratios)) for f in (np.median, np.min, np.max)]
    comparable = [peer for peer in peers if not peer.name.startswith("lucidrains")]
    row["best"] = min(comparable, key=lambda peer: np.median(peer.medians())).name
    return row


HEADER = (
    f"\n{'net':<18}{'work':<9}{'batch':>5}{'ours ms':>10}{'best ms':>10}  {'ratio':<20}{'memory':>7}{'start':>7}"
    f"{'cores':>12}  best"
)


def line_of(row: dict) -> str:
    """A row of the table."""
    job, ours, best = row["job"], row["contestants"][OURS], row["contestants"][row["best"]]
    middle, low, high = row["ratios"][row["best"]]
    ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    cores = f"{ours['cores']:.1f} / {best['cores']:.1f}"
    running, start = (ours[name] / best[name] for name in ("running_bytes", "start_bytes"))
    line = (
        f"{job['net']:<18}{job['work']:<9}{job['batch_size']:>5}{1e3 * ours['seconds']:>10.1f}"
        f"{1e3 * best['seconds']:>10.1f}  {ratio:<20}{running:>7.2f}{start:>7.2f}{cores:>12}  "
        f"{row['best']}"
    )
    for name, (middle, low, high) in row["ratios"].items():
        if name.startswith("lucidrains"):
            line += f"\n{'':<32}versus {name}: {middle:.2f} ({low:.2f} to {high:.2f})"
    return line


def markdown(rows: list[dict]) -> str:
    """The rows as a Markdown table for the documentation; 1 MB is 10^6 bytes."""
    lines = ["| net | work | batch | ours, ms | best peer, ms | ratio | memory running, MB | at most, MB | cores |"]
    lines += ["| --- | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |"]
    for row in rows:
        job, (ours, best) = row["job"], (row["contestants"][name] for name in (OURS, row["best"]))
        middle, low, high = row["ratios"][row["best"]]
        pairs = [f"{ours[name] / 1e6:,.0f} / {best[name] / 1e6:,.0f}" for name in ("running_bytes", "start_bytes")]
        lines.append(
            f"| {job['net']} | {job['work']} | {job['batch_size']} | {1e3 * ours['seconds']:,.1f} | "
            f"{1e3 * best['seconds']:,.1f} ({row['best'].split(':')[1]}) | {middle:.2f} ({low:.2f} to {high:.2f}) | "
            f"{pairs[0]} | {pairs[1]} | {ours['cores']:.1f} / {best['cores']:.1f} |"
        )
    return "\n".join(lines)


def write(args: argparse.Namespace, rows: list[dict]) -> None:
    """Writes all numbers so far."""
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    report = {"arguments": vars(args), "machine": machine, "python": platform.python_version(), "rows": rows}
    Path(args.out).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.exit(main())
