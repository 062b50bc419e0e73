"""A contestant: ddpm_jax, with the programs that training and sampling run."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from contestant import serve
from nets import CHECKED_ROWS, NETS, Job

from ddpm_jax.benchmarking.timed_programs import prepare_call
from ddpm_jax.diffusion.forward_process import q_sample
from ddpm_jax.diffusion.rng import sample_keys
from ddpm_jax.diffusion.samplers.sampling_loop import sample_loop
from ddpm_jax.experiment import model_factory, sampler_factory
from ddpm_jax.experiment.build import Experiment, build_experiment
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.interchange.native_files import read_npz
from ddpm_jax.runtime.compilation import compiler_options

VARIANTS = ("ddpm_jax",)


def setup(job: Job) -> tuple[Callable[[], None] | None, dict]:
    """The compiled call of the job; None for a check, which writes its numbers to a file."""
    experiment, changes = NETS[job.net]
    sizes = (f"train.batch_size={job.batch_size}", f"sample.batch_size={job.batch_size}", f"model.dtype={job.dtype}")
    experiment = build_experiment(load_config(experiment, [*changes, "train.num_devices=1", *sizes]))
    about = {"versions": {"jax": jax.__version__}, "device": jax.devices()[0].device_kind}
    about["settings"] = {"compiler_options": compiler_options(), "threads": "all cores"}
    if job.work == "check":
        _check(job, experiment)
        return None, about
    call = prepare_call(job.work, experiment, num_rows=job.num_rows)
    about |= {"compile_seconds": call.costs.trace_seconds + call.costs.compile_seconds}
    return lambda: jax.block_until_ready(call.run()), about


def _check(job: Job, experiment: Experiment) -> None:
    """Prediction, gradient norms by parameter, and a short noise-free sampler run, compiled like the timed programs."""
    folder = Path(job.folder)
    inputs, params = np.load(folder / "inputs.npz"), read_npz(folder / "ours.npz").params
    x, t, eps = (jnp.asarray(inputs[name]) for name in ("x", "t", "eps"))
    table = sampler_factory.build_table(experiment.config, experiment.process)
    middle = table.num_calls // 2
    table = table.rows(middle, middle + CHECKED_ROWS).replace(sigma=jnp.zeros(CHECKED_ROWS))
    denoiser_of = model_factory.build_denoiser(experiment.config, experiment.process, experiment.model)

    def predict(params: dict, x_t: jax.Array) -> jax.Array:
        return experiment.model.apply({"params": params}, x_t, t)

    def loss(params: dict) -> jax.Array:
        return jnp.mean((eps - predict(params, q_sample(experiment.process.schedule, x_0=x, t=t, eps=eps))) ** 2)

    def numbers(params: dict) -> dict[str, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params)
        keys = sample_keys(jax.random.key(0), jnp.arange(len(x)))
        return {
            "prediction": predict(params, x),
            "loss": value,
            "gradient_norm": jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads))),
            "walk": sample_loop(denoiser_of(params, {}), table, eps, keys),
        }

    found = jax.jit(numbers, compiler_options=compiler_options())(params)
    np.savez(folder / f"check_{job.variant}.npz", **found)


if __name__ == "__main__":
    serve(setup)
