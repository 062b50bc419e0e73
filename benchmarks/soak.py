"""A long run that is stopped and killed every few minutes: its memory must stay flat and its disk use bounded.

    python benchmarks/soak.py --minutes=60 --every=4 --workdir=/tmp/soak --out=soak.json

Trains a small digits network without an end. Every few minutes the process gets SIGTERM or SIGKILL, in turn, and is
started again. Every second the resident memory of the process and the bytes of its checkpoints are recorded. The
questions are whether memory still grows late in the life of a process, and whether disk use grows from process to
process. For processes that live longer: `--every=30`.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ddpm_jax.runtime.disk_space import folder_bytes
from ddpm_jax.training.run_log import read_metrics

SETTINGS = (
    "train.num_steps=100000000", "train.checkpoint_every_steps=500", "train.log_every_steps=100",
    "train.sample_every_steps=2000", "sample.num_preview_steps=10", "sample.num_grid=16", "train.batch_size=16",
    "unet.channels=16", "optim.decay_steps=0",
)  # fmt: skip


def resident_bytes(pid: int) -> int:
    """Resident memory of a process on this machine (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0  # it has just ended


def live(command: list[str], number: signal.Signals, seconds: float, workdir: Path, log: Path) -> dict:
    """Runs one process from start to signal, and returns its memory and disk use."""
    with open(log, "a") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    begun, memory, disk = time.monotonic(), [], []
    while time.monotonic() - begun < seconds and process.poll() is None:
        time.sleep(1)
        if process.poll() is None:
            memory.append((time.monotonic() - begun, resident_bytes(process.pid)))
            disk.append(checkpoint_bytes(workdir))
    process.send_signal(number)
    code = process.wait(timeout=300)
    expected = -signal.SIGKILL if number == signal.SIGKILL else 128 + number
    if code != expected:
        raise SystemExit(f"exit code {code} after {number.name}, expected {expected}; see {log}")
    times, sizes = np.array(memory).T
    late = times >= times[-1] / 2  # after compilation, the first images and the first saves
    by_minute = [float(sizes[times >= 60 * i][0]) / 1e6 for i in range(int(times[-1] / 60) + 1)]
    slope = np.polyfit(times[late] / 60, sizes[late] / 1e6, 1)[0]
    return {
        "signal": number.name,
        "seconds": round(times[-1], 1),
        "last_step": read_metrics(workdir)[-1]["step"],
        "memory_mb_by_minute": [round(size, 1) for size in by_minute],
        "memory_mb_a_minute_in_the_last_half": round(float(slope), 3),
        "checkpoints_mb_largest": round(max(disk) / 1e6, 2),
    }


def checkpoint_bytes(workdir: Path) -> int:
    """Bytes of the kept checkpoints and those being written, without images and logs, which grow with the run."""
    return folder_bytes(workdir / "checkpoints") + folder_bytes(workdir / "damaged_checkpoints")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=4, help="minutes between two signals")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--out", required=True, help="JSON")
    args = parser.parse_args()
    workdir = Path(args.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ddpm_jax.train", "--config=digits", f"--workdir={workdir}"]
    command += [f"--config.{setting}" for setting in SETTINGS]
    end, lives = time.monotonic() + 60 * args.minutes, []
    for number in itertools.cycle((signal.SIGTERM, signal.SIGKILL)):
        if time.monotonic() > end:
            break
        lives.append(live(command, number, 60 * args.every, workdir, workdir / "soak.log"))
        print(json.dumps(lives[-1]), flush=True)
        Path(args.out).write_text(json.dumps({"cpus": os.cpu_count(), "lives": lives}, indent=1))
    steps = [line["step"] for line in read_metrics(workdir)]
    assert steps == sorted(set(steps)), "a step was reported twice"
    print(f"{len(lives)} processes, {steps[-1]:,} steps")


if __name__ == "__main__":
    main()
