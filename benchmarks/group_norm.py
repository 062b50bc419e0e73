"""Times a train step and a network call with our GroupNorm versus Flax's, at the same accuracy.

    python benchmarks/group_norm.py --config=digits --batch_size=64

Ours sums over the pixels of a channel first and then over the channels of a group; Flax's, with
`use_fast_variance=False`, sums over both at once. The two programs run in turn. A ratio is our median seconds divided
by Flax's within one round: below 1, ours is faster. Printed are the median, lowest and highest ratio over the rounds.
"none" has no norm at all and shows how much time there is to gain.
"""

import argparse
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ddpm_jax.benchmarking.timed_programs import prepare_call
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.models import layers
from ddpm_jax.runtime.timing import repeated


def flaxs(num_groups: int, epsilon: float, name: str) -> nn.Module:
    """Flax's GroupNorm, with the variance of x - mean."""
    return nn.GroupNorm(num_groups, epsilon=epsilon, use_fast_variance=False, name=name)


class NoNorm(nn.Module):
    """x * scale + bias."""

    num_groups: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return x * scale + self.param("bias", nn.initializers.zeros, (x.shape[-1],))


NORMS = {"ours": layers.GroupNorm, "flax": flaxs, "none": NoNorm}


def call_with(norm: Callable[..., nn.Module], what: str, config: Any) -> Callable[[], Any]:
    """A compiled program of the network with `norm` in place of our GroupNorm."""
    ours, layers.GroupNorm = layers.GroupNorm, norm
    try:
        return prepare_call(what, build_experiment(config)).run
    finally:
        layers.GroupNorm = ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="digits")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=3, help="calls of a program per round")
    args = parser.parse_args()
    sizes = [f"{group}.batch_size={args.batch_size}" for group in ("train", "sample")]
    config = load_config(args.config, [*sizes, "train.num_devices=1"])
    for what in ("train", "forward"):
        calls = {name: call_with(norm, what, config) for name, norm in NORMS.items()}
        medians = {name: [] for name in calls}
        for _ in range(args.rounds):
            for name, call in calls.items():
                medians[name].append(np.median(repeated(call, args.repeats, warm_up=1)))
        for name in ("ours", "none"):
            ratios = np.array(medians[name]) / np.array(medians["flax"])
            seconds, low, high = np.median(medians[name]), ratios.min(), ratios.max()
            ratio = f"{np.median(ratios):.2f} ({low:.2f} to {high:.2f}) of Flax's"
            print(f"{args.config} batch {args.batch_size} {what:8} {name}: {1e3 * seconds:.1f} ms, {ratio}", flush=True)


if __name__ == "__main__":
    main()
