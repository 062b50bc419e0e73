"""Appends one row per release to docs/ledger.md: quality and time of the digits run, and time of the tests.

    python benchmarks/ledger.py --workdir=runs/ledger --ledger=docs/ledger.md --suite

trains `configs/digits.py` (or resumes it, or takes it as it is where it is finished), evaluates it, and with --suite
runs the tests. About 10 minutes on two CPU cores, and as long again as the tests take. Runs of other versions must be
made on the same machine to be compared in time.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import jax

import ddpm_jax
from ddpm_jax.training.run_log import read_metrics

HEAD = """# Ledger

One row per release, on one machine each: the digits run of that release, and its tests.

```bash
python benchmarks/ledger.py --workdir=runs/ledger --ledger=docs/ledger.md --suite
```

- `seconds`: all of training, compilation included, previews too.
- `distance`: Frechet distance of 1,797 samples to all 1,797 digits, raw pixels (0.0354 for fresh real digits).
- `bits/dim`: the variational bound of the 180 held-out digits.
- `tests`: seconds of `pytest`; `-` where they were not run.

| version | date | machine | JAX | seconds | distance | bits/dim | tests |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: |
"""
EVALUATE = ["--num_samples=1797", "--reference=digits:all", "--extractor=pixels"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the digits run")
    parser.add_argument("--ledger", required=True, metavar="FILE.md", help="a row is appended; made where missing")
    parser.add_argument("--suite", action="store_true", help="time the tests too")
    args = parser.parse_args()

    python_m = [sys.executable, "-m"]
    subprocess.run([*python_m, "ddpm_jax.train", "--config=digits", f"--workdir={args.workdir}"], check=True)
    out = os.path.join(args.workdir, "ledger")
    evaluate = [*python_m, "ddpm_jax.evaluate", f"--workdir={args.workdir}", f"--out={out}", "--what=bits,samples"]
    subprocess.run([*evaluate, *EVALUATE], check=True)
    report = json.loads(Path(out, "evaluation.json").read_text("utf-8"))
    tests = "-"
    if args.suite:
        start = time.perf_counter()
        subprocess.run([*python_m, "pytest", "-q"], check=True, cwd=Path(__file__).parent.parent)
        tests = f"{time.perf_counter() - start:.0f}"
    row = row_of(report, seconds=read_metrics(args.workdir)[-1]["seconds"], tests=tests)
    ledger = Path(args.ledger)
    ledger.write_text((ledger.read_text("utf-8") if ledger.exists() else HEAD) + row + "\n", "utf-8")
    print(row)
    return 0


def row_of(report: dict, *, seconds: float, tests: str) -> str:
    bits, numbers = report["bits_per_dim"], report["samples"][-1]["numbers"]
    cells = [
        ddpm_jax.__version__,
        datetime.date.today().isoformat(),
        f"{os.cpu_count()} cores, {platform.machine()}",
        jax.__version__,
        f"{seconds:.0f}",
        f"{numbers['frechet']:.4f}",
        f"{bits['total']['mean']:.3f} +- {bits['total']['standard_error']:.3f}",
        tests,
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
