"""Measures the round trip image -> noise -> image of DDIM on a trained run.

    python benchmarks/ddim_inversion.py --workdir=runs/digits

Held-out images are encoded over N steps with the given number of fixed-point iterations per step, and then decoded by
DDIM (eta = 0, x_0_hat not clipped) over the same steps. Prints the root mean squared error on the scale 0..255, and the
mean and standard deviation of the noise. For a good model and many steps these are those of N(0, 1).
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.codecs.pixels import to_model_scale
from ddpm_jax.diffusion.rng import sample_keys
from ddpm_jax.diffusion.samplers import ddim_inversion_table
from ddpm_jax.diffusion.samplers.ddim import ddim_table
from ddpm_jax.diffusion.samplers.sampling_loop import sample_loop
from ddpm_jax.diffusion.timestep_spacing import spaced_steps
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.runtime.compilation import compiler_options


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--num_images", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50, 200])
    parser.add_argument("--fixed_point", type=int, nargs="+", default=[0, 1, 5, 20])
    args = parser.parse_args()

    trained = open_run(args.workdir)
    schedule, source = trained.process.schedule, trained.source(trained.held_out_split or None)
    x_0 = to_model_scale(jnp.asarray(source.load(np.arange(min(args.num_images, len(source))))))
    keys = sample_keys(jax.random.key(0), jnp.arange(len(x_0)))  # unused: sigma = 0 in every row, no noise is drawn

    denoiser_of = trained.denoiser_of(clip_x_0=False, dynamic_threshold=0.0)
    go = jax.jit(
        lambda params, table, x: sample_loop(denoiser_of(params, {}), table, x, keys),
        compiler_options=compiler_options(),
    )
    print("| steps | iterations | network calls, there and back | RMSE (0..255) | mean and std of the noise |")
    print("| --- | --- | --- | --- | --- |")
    for num_steps in args.steps:
        # Only steps with alpha >= 0.01: the last steps of a cosine schedule shrink the image to 1/20,000, and neither
        # float32 nor a network can recover it from there.
        with_signal = int(np.sum(schedule.host_alphas_bar >= 0.01**2))
        steps = spaced_steps(with_signal, num_steps)
        for num_fixed_point in args.fixed_point:
            there = ddim_inversion_table(schedule, steps=steps, num_fixed_point=num_fixed_point)
            back = ddim_table(schedule, steps=steps)
            noise = go(trained.params, there, x_0)
            error = float(jnp.sqrt(jnp.mean((go(trained.params, back, noise) - x_0) ** 2))) * 127.5
            calls = there.num_calls + back.num_calls
            moments = f"{float(noise.mean()):.3f}, {float(noise.std()):.3f}"
            print(f"| {num_steps} | {num_fixed_point} | {calls} | {error:.3g} | {moments} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
