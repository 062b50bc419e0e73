"""What a person should know of a run before it starts: its learning rate, its samples and its prediction, in lines."""

import numpy as np

from ddpm_jax.diffusion.process import Process
from ddpm_jax.experiment.build import Experiment
from ddpm_jax.experiment.training_factory import build_learning_rate, learning_rate_steps

# The noise level sqrt(1 - alpha-bar)/sqrt(alpha-bar) of the last step from which on eps says nothing of x_0: an error
# of 0.002 in eps is then as large as x_0.
HOPELESS_NOISE_LEVEL = 500.0
# Forward passes of one image that its share of an update costs: itself, and twice as much for the backward pass.
CALLS_OF_A_TRAINED_IMAGE = 3


def notes_on(experiment: Experiment, first_step: int) -> list[str]:
    """The lines, for a run that goes on from `first_step`."""
    notes = _learning_rate_notes(experiment, first_step)
    if experiment.sampler_table is not None:
        share, every = grids_share(experiment), experiment.config.train.sample_every_steps
        when = f"every {every} steps and at the end" if 0 < every < experiment.config.train.num_steps else "at the end"
        notes.append(f"grids of samples {when}: about {100 * share:.2g} % of the network calls")
        notes += _prediction_notes(experiment.process)
    return notes


def grids_share(experiment: Experiment) -> float:
    """The part of the run's network calls, image by image, that its grids of samples take, of raw and EMA weights."""
    train, sample = experiment.config.train, experiment.config.sample
    every = train.sample_every_steps
    num_previews = (train.num_steps - 1) // every if every else 0
    rows = num_previews * experiment.preview_table.num_calls + experiment.sampler_table.num_calls
    of_grids = 2 * rows * sample.num_grid * (1 if sample.guidance_scale == 1 else 2)
    return of_grids / (of_grids + CALLS_OF_A_TRAINED_IMAGE * train.num_steps * train.batch_size)


def _learning_rate_notes(experiment: Experiment, first_step: int) -> list[str]:
    config = experiment.config
    num_steps = config.train.num_steps
    warmup, decay = learning_rate_steps(config, "warmup"), learning_rate_steps(config, "decay")
    line = f"learning rate {config.optim.learning_rate:g}"
    if warmup:
        line += f", warm-up over {warmup} steps"
    if decay:
        line += f", cosine decay to 0 at step {decay}"
    if 0 < first_step < num_steps:
        line += f"; now {float(build_learning_rate(config)(first_step)):.3g}"
    notes = [line]
    if warmup > num_steps:
        notes.append(
            f"the run ends within its warm-up, at {num_steps / warmup:.2g} of this learning rate; for a short run: "
            "--config.optim.warmup_steps=0 --config.optim.warmup_share=0.08"
        )
    if decay and decay != num_steps:
        what = f"the learning rate is 0 from step {decay} on" if decay < num_steps else "the run ends before its decay"
        notes.append(f"{what}; to fit the run: --config.optim.decay_steps=0 --config.optim.decay_share=1")
    return notes


def _prediction_notes(process: Process) -> list[str]:
    """Of an eps network on a schedule whose first x_0_hat is hopeless: x_0_hat = (x_t - sqrt(1 - a) eps)/sqrt(a)."""
    alpha_bar = float(np.asarray(process.schedule.alphas_bar, np.float64)[-1])
    level = np.sqrt((1 - alpha_bar) / max(alpha_bar, 1e-30))
    if process.prediction != "eps" or level < HOPELESS_NOISE_LEVEL:
        return []
    return [
        f"predicts eps on a schedule that ends at the noise level {level:,.0f}, by which errors of eps are multiplied "
        "in x_0: young networks draw better with --config.diffusion.prediction=v or x_0 (docs/recipes.md)"
    ]
