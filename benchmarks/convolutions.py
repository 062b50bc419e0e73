"""Times a U-Net's convolutions alone, forward pass and both gradients, in XLA as we compile it and in PyTorch.

    pip install -e '.[parity]'
    python benchmarks/convolutions.py --config=fashion_mnist --batch_size=32

Each kind of convolution in the network is timed separately, the two libraries in turn, and is counted as often as it
occurs in the network. The sums are lower bounds on a forward pass and a train step. PyTorch uses channels-last memory.
The gradient with respect to the input image of the first convolution is left out, because training does not need it.
"""

import argparse
import collections
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from roofline import equations

from ddpm_jax.experiment import config_checks, model_factory
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.models.parameters import init_params
from ddpm_jax.runtime.compilation import compiler_options

PARTS = ("forward", "grad input", "grad kernel")


class Kind(NamedTuple):
    """A convolution: shapes [B, H, W, C] and [h, w, C, C_out], strides, padding."""

    picture: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def flops(self) -> float:
        """FLOPs of the forward pass, ignoring the borders; each gradient has as many."""
        batch, height, width, channels = self.picture
        return 2.0 * np.prod(self.kernel) * batch * height * width / np.prod(self.strides)


def kinds_of(experiment: str, batch_size: int) -> dict[Kind, int]:
    """The kinds of convolution in the network of an experiment, with the number of each."""
    config = load_config(experiment)
    model, shape = model_factory.build_model(config), config_checks.image_shape_of(config)
    params = jax.eval_shape(lambda key: init_params(model, key, shape), jax.random.key(0))
    x_t, t = jnp.zeros((batch_size, *shape)), jnp.zeros(batch_size, jnp.int32)
    program = jax.make_jaxpr(lambda params, x_t: model.apply({"params": params}, x_t, t))(params, x_t)
    found = collections.Counter()
    for equation in equations(program.jaxpr, "cpu"):
        if equation.primitive.name == "conv_general_dilated":
            picture, kernel = (var.aval.shape for var in equation.invars)
            strides, padding = equation.params["window_strides"], equation.params["padding"]
            found[Kind(picture, kernel, tuple(strides), tuple(map(tuple, padding)))] += 1
    return found


def ours(kind: Kind, x: np.ndarray, w: np.ndarray, g: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The three parts in XLA."""

    def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, w, kind.strides, kind.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    programs = {
        "forward": lambda x, w, g: convolve(x, w),
        "grad input": lambda x, w, g: jax.vjp(lambda x: convolve(x, w), x)[1](g)[0],
        "grad kernel": lambda x, w, g: jax.vjp(lambda w: convolve(x, w), w)[1](g)[0],
    }
    arrays = [jnp.asarray(a) for a in (x, w, g)]
    compiled = {
        name: jax.jit(program, compiler_options=compiler_options()).lower(*arrays).compile()
        for name, program in programs.items()
    }
    return {name: lambda c=c: jax.block_until_ready(c(*arrays)) for name, c in compiled.items()}


def theirs(kind: Kind, x: np.ndarray, w: np.ndarray, g: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The three parts in PyTorch; asymmetric padding is applied beforehand and not timed."""
    padding = [0, 0]
    if all(before == after for before, after in kind.padding):
        padding = [before for before, _ in kind.padding]
    else:
        x = np.pad(x, ((0, 0), *kind.padding, (0, 0)))
    pictures, out = (
        torch.from_numpy(a.transpose(0, 3, 1, 2).copy()).contiguous(memory_format=torch.channels_last) for a in (x, g)
    )
    kernel = torch.from_numpy(w.transpose(3, 2, 0, 1).copy()).contiguous(memory_format=torch.channels_last)
    bias, strides = [kernel.shape[0]], list(kind.strides)

    def backward(mask: list[bool]) -> Callable[[], Any]:
        settings = (bias, strides, padding, [1, 1], False, [0, 0], 1, mask)
        return lambda: torch.ops.aten.convolution_backward(out, pictures, kernel, *settings)

    return {
        "forward": lambda: torch.nn.functional.conv2d(pictures, kernel, stride=strides, padding=padding),
        "grad input": backward([True, False, False]),
        "grad kernel": backward([False, True, False]),
    }


def timed(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call; the calls run in turn."""
    seconds = collections.defaultdict(list)
    for number in range(rounds + 2):
        for name, call in calls.items():
            call()  # brings the arrays of this call into the caches
            since = time.perf_counter()
            call()
            if number >= 2:
                seconds[name].append(time.perf_counter() - since)
    return {name: float(np.median(found)) for name, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="digits")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    rng, totals, flops = np.random.default_rng(0), collections.Counter(), collections.Counter()
    print(f"{'input':<20}{'kernel':<18}{'count':>6}  " + "".join(f"{part + ', ms':>22}" for part in PARTS))
    for kind, count in kinds_of(args.config, args.batch_size).items():
        x, w = (rng.standard_normal(shape).astype(np.float32) for shape in (kind.picture, kind.kernel))
        height, width = (-(-side // stride) for side, stride in zip(kind.picture[1:3], kind.strides, strict=True))
        g = rng.standard_normal((kind.picture[0], height, width, kind.kernel[-1])).astype(np.float32)
        sides = {"ours": ours(kind, x, w, g), "theirs": theirs(kind, x, w, g)}
        calls = {f"{part} {side}": sides[side][part] for part in PARTS for side in sides}
        found = timed(calls, args.rounds)
        if kind.kernel[2] == load_config(args.config).data.num_channels:
            for side in sides:
                found[f"grad input {side}"] = 0.0
        for name, seconds in found.items():
            totals[name] += count * seconds
            flops[name] += count * kind.flops * (seconds > 0)
        cells = [f"{1e3 * found[f'{part} ours']:.2f} / {1e3 * found[f'{part} theirs']:.2f}" for part in PARTS]
        shapes = ("x".join(map(str, shape)) for shape in (kind.picture, kind.kernel))
        print("{:<20}{:<18}".format(*shapes) + f"{count:>6}  " + "".join(f"{cell:>22}" for cell in cells), flush=True)
    print(f"\nall convolutions of {args.config} at batch size {args.batch_size}, ours / PyTorch:")
    for part in PARTS:
        one, other = (totals[f"{part} {side}"] for side in ("ours", "theirs"))
        rates = (flops[f"{part} ours"] / one / 1e9, flops[f"{part} theirs"] / other / 1e9)
        print(f"{part:<12}{1e3 * one:>9.1f} / {1e3 * other:.1f} ms, {rates[0]:.0f} / {rates[1]:.0f} GFLOP/s")
    one, other = (sum(totals[f"{part} {side}"] for part in PARTS) for side in ("ours", "theirs"))
    print(f"{'total':<12}{1e3 * one:>9.1f} / {1e3 * other:.1f} ms")


if __name__ == "__main__":
    main()
