"""Predicted versus measured memory of training on CPU: `python -m ddpm_jax.benchmark --dry_run` and a real run.

    python benchmarks/memory_prediction.py --out=runs/memory

For each size there are two separate processes. One predicts the memory: state, batch and the compiler's temporaries.
The other creates the state, trains three steps on random images, and reports how far its resident memory rose above the
value before the state was created. Linux with glibc only. The measured rise includes memory that no buffer plan has:
pages of the compiled code that are touched for the first time, and internal allocations of the libraries for
convolutions and matrix products.
"""

import argparse
import ctypes
import json
import platform
import subprocess
import sys
from pathlib import Path

import jax
import jaxlib
import numpy as np

from ddpm_jax.data.batch import Batch
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.program_costs import lower_step
from ddpm_jax.experiment.state_sizes import state_bytes

SIZES = {
    "digits, 64 pictures": ("digits", "train.batch_size=64"),
    "fashion_mnist, 32 pictures": ("fashion_mnist", "train.batch_size=32"),
    "fashion_mnist, 128 pictures": ("fashion_mnist", "train.batch_size=128"),
    "fashion_mnist, 128 pictures, remat": ("fashion_mnist", "train.batch_size=128", "model.remat=true"),
    "fashion_mnist, 128 pictures, 4 parts": ("fashion_mnist", "train.batch_size=128", "train.grad_accum_steps=4"),
    "cifar10, 32 pictures": ("cifar10", "train.batch_size=32"),
    "cifar10, 32 pictures, remat": ("cifar10", "train.batch_size=32", "model.remat=true"),
}
NUM_STEPS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of the results; existing results are not run again")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES), metavar="NAME")
    parser.add_argument("--child", choices=("predict", "measure"), help="used internally by this script")
    args = parser.parse_args()
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    if args.child:
        (name,) = args.sizes
        config, *overrides = SIZES[name]
        experiment = build_experiment(load_config(config, ["train.num_devices=1", *overrides]))
        result = {"predict": predict, "measure": measure}[args.child](experiment)
        path_of(folder, name, args.child).write_text(json.dumps(result, indent=2), encoding="utf-8")
        return 0

    print(f"{platform.machine()}, jax {jax.__version__}, jaxlib {jaxlib.__version__}, MiB\n")
    print("| what | state and batch | temporaries | predicted | measured | measured / predicted |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in args.sizes:
        for child in ("predict", "measure"):
            if not path_of(folder, name, child).exists():
                command = [sys.executable, __file__, f"--out={folder}", f"--child={child}", "--sizes", name]
                subprocess.run(command, check=True)
        found = {child: json.loads(path_of(folder, name, child).read_text()) for child in ("predict", "measure")}
        arguments, temporaries = (found["predict"][key] / 2**20 for key in ("arguments", "temporaries"))
        measured, predicted = found["measure"]["rise"] / 2**20, arguments + temporaries
        cells = [arguments, temporaries, predicted, measured]
        print(f"| {name} | {' | '.join(f'{cell:,.1f}' for cell in cells)} | {measured / predicted:.3f} |", flush=True)
    return 0


def path_of(folder: Path, name: str, child: str) -> Path:
    return folder / f"{name.replace(', ', '-').replace(' ', '_')}.{child}.json"


def predict(experiment) -> dict:
    memory = lower_step(experiment).compile().memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "state": state_bytes(experiment),
    }


def measure(experiment) -> dict:
    """Bytes by which a few steps raise the peak of the resident memory, counted from the end of compilation."""
    config, rng = experiment.config, np.random.default_rng(0)
    shape = (config.train.batch_size, *config.data.image_size, config.data.num_channels)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    step = lower_step(experiment).compile()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # otherwise the step could reuse memory that the compiler freed, unnoticed
    before = resident("VmRSS")
    reset_peak()
    # All parameters are 1: drawing them would take memory of its own, and the step takes the same for any values.
    state = jax.tree.map(lambda leaf: jax.device_put(np.ones(leaf.shape, leaf.dtype)), experiment.abstract_state)
    for _ in range(NUM_STEPS):
        state, _ = jax.block_until_ready(step(state, Batch(images), experiment.keys.train, experiment.frozen))
    return {"rise": resident("VmHWM") - before, "before": before}


def reset_peak() -> None:
    """Resets the kernel's record of the highest resident memory."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def resident(field: str) -> int:
    """VmRSS, the resident memory now, or VmHWM, its highest, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    sys.exit(main())
