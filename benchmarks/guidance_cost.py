"""Cost of a guided sampler step versus an unguided one, with the same network and the same images.

    python benchmarks/guidance_cost.py --config=cifar10 --batch_size=8

Runs one row of DDIM without guidance and with each kind of it, in turn in one process, and prints the median of
--repeats calls of each, the median of the ratios to the first program in the same round (not the ratio of the medians),
and the range of these ratios. The weaker network of autoguidance has half the channels, in as many groups as fit. The
classifier has the config's own settings; its forward and backward pass alone is a program as well.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from one_line import check_counts, run

from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.gradient_guidance import class_log_prob, gradient_guidance
from ddpm_jax.diffusion.guidance import Guide, autoguidance, classifier_free_guidance, make_guidance
from ddpm_jax.diffusion.process import Prediction
from ddpm_jax.diffusion.projected_guidance import make_projection
from ddpm_jax.diffusion.samplers import ddim_table
from ddpm_jax.diffusion.samplers.sampling_loop import init_sampler_state, scan_rows
from ddpm_jax.experiment.build import Experiment, build_experiment
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.runtime.compilation import compiler_options
from ddpm_jax.runtime.errors import UserError

SCALE, NUM_CLASSES = 3.0, 10


def programs(config: str, batch_size: int) -> dict[str, Callable[[], jax.Array]]:
    """Name -> one call. The weights are random: time does not depend on them."""
    classes = [f"model.num_classes={NUM_CLASSES}", f"sample.batch_size={batch_size}"]
    main = built(config, [*classes, "condition.drop_rate=0.1"])
    weak = built(config, [*classes, "condition.drop_rate=0.1", *half_as_wide(config)])
    classifier = built(config, [*classes, "objective.name=classifier"])
    process, null = main.process, jnp.full(batch_size, NUM_CLASSES)
    label = jnp.arange(batch_size) % NUM_CLASSES
    steps = np.array([process.num_steps // 2, process.num_steps // 4])
    row = ddim_table(process.schedule, steps=steps).rows(0, 1)
    x_t = jax.random.normal(jax.random.key(0), (batch_size, *main.x_0_shape))
    keys = jax.random.split(jax.random.key(1), batch_size)

    def free(**settings) -> Guide:
        return classifier_free_guidance(process, make_guidance({"label": null}, **{"scale": SCALE} | settings))

    def away_from(weak_params: dict) -> Guide:
        def weak_predict_fn(x_t: jax.Array, t: jax.Array, condition: dict) -> Prediction:
            return process.predict(lambda x, t: weak.model.apply({"params": weak_params}, x, t, condition), x_t, t)

        return autoguidance(process, make_guidance({}, scale=SCALE), weak_predict_fn)

    def log_prob_of(params: dict) -> Callable:
        return class_log_prob(lambda x, t: classifier.model.apply({"params": params}, x, t), label)

    guides: dict[str, Callable[[dict, dict], Guide | None]] = {
        "without guidance": lambda weak, classifier: None,
        "classifier-free": lambda weak, classifier: free(),
        "outside of an interval": lambda weak, classifier: free(interval=(500.0, 1000.0)),
        "rescale": lambda weak, classifier: free(rescale=0.7),
        "APG": lambda weak, classifier: free(projection=make_projection(eta=0.0, norm_limit=5.0)),
        "CFG++": lambda weak, classifier: free(scale=0.5, renoises=True),
        "autoguidance": lambda weak, classifier: away_from(weak),
        "classifier": lambda weak, classifier: gradient_guidance(process, log_prob_of(classifier), scale=SCALE),
    }
    of_main, of_weak, of_classifier = (experiment.fresh_state().params for experiment in (main, weak, classifier))

    def step(guide_of: Callable[[dict, dict], Guide | None]) -> Callable[[], jax.Array]:
        def advance(params: dict, weak_params: dict, classifier_params: dict, x_t: jax.Array) -> jax.Array:
            def model_fn(x_t: jax.Array, t: jax.Array, condition: dict) -> jax.Array:
                return main.model.apply({"params": params}, x_t, t, condition)

            guide = guide_of(weak_params, classifier_params)
            denoise_fn = make_denoiser(process, model_fn, condition={"label": label}, guide=guide)
            return scan_rows(denoise_fn, row, init_sampler_state(row, x_t), keys).x_t

        jitted = jax.jit(advance, compiler_options=compiler_options())
        return lambda: jitted(of_main, of_weak, of_classifier, x_t)

    def gradient(params: dict, x_t: jax.Array) -> jax.Array:
        log_prob_fn = log_prob_of(params)
        return jax.grad(lambda x_t: jnp.sum(log_prob_fn(x_t, jnp.full(batch_size, row.t[0]))))(x_t)

    alone = jax.jit(gradient, compiler_options=compiler_options())
    return {name: step(guide_of) for name, guide_of in guides.items()} | {
        "the classifier's gradient alone": lambda: alone(of_classifier, x_t)
    }


def half_as_wide(config: str) -> list[str]:
    """The fields of a network with half of the channels, and as many groups as fit them."""
    given = load_config(config, [])
    if given.model.name != "unet" or given.condition.task:
        raise UserError(
            f"--config must be of a unet without a condition.task; got model.name={given.model.name!r} and "
            f"condition.task={given.condition.task!r}: take cifar10 or fashion_mnist"
        )
    channels = given.unet.channels // 2
    groups = math.gcd(given.unet.num_groups, *(int(channels * mult) for mult in given.unet.channel_mults))
    return [f"unet.channels={channels}", f"unet.num_groups={groups}"]


def built(config: str, changes: list[str]) -> Experiment:
    """The experiment on one device."""
    return build_experiment(load_config(config, changes), jax.devices()[:1])


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="cifar10")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    return parser


def main(args: argparse.Namespace) -> None:
    check_counts(args, "batch_size", "repeats")
    calls = programs(args.config, args.batch_size)
    seconds = {name: [] for name in calls}
    for repeat in range(args.repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if repeat:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    first = np.array(seconds["without guidance"])
    print("| | seconds | ratio |\n| --- | --- | --- |")
    for name, taken in seconds.items():
        ratios = np.array(taken) / first
        spread = f"{ratios.min():.3f} to {ratios.max():.3f}"
        print(f"| {name} | {np.median(taken):.3f} | {np.median(ratios):.3f} ({spread}) |")


if __name__ == "__main__":
    sys.exit(run(main, flags()))
