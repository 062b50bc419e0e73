"""`python -m ddpm_jax`, and `ddpm_jax` where it is installed: lists the commands, or runs one."""

import importlib
import sys
from collections.abc import Sequence

from ddpm_jax import __version__
from ddpm_jax.runtime.errors import did_you_mean
from ddpm_jax.runtime.output import tolerant_output

# Name -> (module with a `main`, the first of its arguments, what it does).
COMMANDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "train": ("ddpm_jax.train", (), "trains a model from a config, or resumes a run"),
    "sample": ("ddpm_jax.sample", (), "draws images from a run"),
    "edit": ("ddpm_jax.edit", (), "edits images with a run: inpainting, colour, super-resolution"),
    "evaluate": ("ddpm_jax.evaluate", (), "bits/dim, FID and other measures of a run or of images"),
    "convert": ("ddpm_jax.convert", (), "imports and exports weights: diffusers, OpenAI, Ho et al."),
    "benchmark": ("ddpm_jax.benchmark", (), "predicts or measures the speed and memory of a config"),
    "pack": ("ddpm_jax.data.__main__", ("pack",), "packs a folder of images into one file"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names; returns its exit code, 2 for an unknown one."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("--help", "-h", "help", "--version"):
        with tolerant_output() as output:
            print(f"ddpm_jax {__version__}" if name == "--version" else _help())
        return 0 if output.error is None or isinstance(output.error, BrokenPipeError) else 74  # EX_IOERR
    if name not in COMMANDS:
        print(
            f"error: unknown command {name!r}; must be one of {', '.join(COMMANDS)}{did_you_mean(name, COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    module, first, _ = COMMANDS[name]
    return importlib.import_module(module).main([*first, *rest])


def _help() -> str:
    lines = [f"  {name:<10} {what}" for name, (_, _, what) in COMMANDS.items()]
    return "\n".join([
        f"ddpm_jax {__version__}: denoising diffusion probabilistic models in JAX and Flax",
        "",
        "usage: python -m ddpm_jax COMMAND [flags]",
        "",
        *lines,
        "",
        "python -m ddpm_jax COMMAND --help explains a command. To begin:",
        "  python -m ddpm_jax train --config=configs/digits.py --workdir=runs/digits",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
