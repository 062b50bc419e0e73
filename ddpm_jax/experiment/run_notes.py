"""Notes for the user when a run starts: learning rate, sample grids and prediction."""

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.data import ImageSource
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.schedules import UNREAD
from ddpm_jax.experiment.build import Experiment
from ddpm_jax.experiment.packaged_configs import base_config
from ddpm_jax.experiment.sample_guidance import is_guided
from ddpm_jax.experiment.training_factory import build_learning_rate, learning_rate_steps
from ddpm_jax.models.parameters import num_params
from ddpm_jax.runtime.devices import platform_of

# If the noise level sqrt(1 - alpha-bar)/sqrt(alpha-bar) of the last step is above this, eps there says nothing about
# x_0: an error of 0.002 in eps is then as large as x_0.
HOPELESS_NOISE_LEVEL = 500.0
MANY_UPDATES = 50_000  # after this many, a network has learnt to keep the error small
MOST_PARAMS_ON_CPU = 10_000_000  # those of the configs for CPUs have at most 2 million
MOST_CLASSES = 12  # that are listed
MUCH_FOR_GRIDS = 20  # per cent of the network calls
FEWER_CALLS = "--config.sample.sampler=euler_ancestral --config.sample.num_sampler_steps=50 --config.sample.num_grid=16"
# Cost of one image in an update, in forward passes: the forward pass, and the backward pass, which costs two.
CALLS_OF_A_TRAINED_IMAGE = 3
FINE_TIME_SCALE = 100  # alpha-bar is in [0, 1]; t goes to 1000


def notes_on(experiment: Experiment, resumed_from: int | None) -> list[str]:
    """The notes; `resumed_from` is the step that a run resumes from (0: imported weights), None for a fresh run."""
    notes = _size_notes(experiment) + _noise_notes(experiment.config) + _schedule_notes(experiment.config.schedule)
    notes += _learning_rate_notes(experiment, resumed_from)
    train = experiment.config.train
    if not 0 < train.checkpoint_every_steps < train.num_steps:
        notes.append(
            "one checkpoint, at the end; more, in case the process is killed: --config.train.checkpoint_every_steps=N"
        )
    if experiment.sampler_table is not None:
        train, share = experiment.config.train, 100 * grids_share(experiment)
        when = f"every {train.sample_every_steps} steps and " if 0 < train.sample_every_steps < train.num_steps else ""
        percent = f"{share:.1f}" if share < 10 else f"{share:.0f}"
        line = f"grids of samples {when}at the end: {percent} % of the network calls"
        if share > MUCH_FOR_GRIDS and experiment.sampler_table.num_calls > 50:
            line += f"; fewer: {FEWER_CALLS}"
        notes.append(line)
        if resumed_from is None and train.num_steps < MANY_UPDATES:
            notes += _prediction_notes(experiment.process)
    return notes


def class_line(source: ImageSource, num_classes: int) -> str:
    """The classes of a source with their numbers, names and counts: "0 hat (123), 1 pants (468)"."""
    counts = np.bincount(source.labels, minlength=num_classes)
    names = dict(enumerate(source.class_names))
    shown = [f"{i} {names[i]} ({n})" if i in names else f"{i} ({n})" for i, n in enumerate(counts[:MOST_CLASSES])]
    return ", ".join(shown) + (f", ... {len(counts) - 1}" if len(counts) > MOST_CLASSES else "")


def _schedule_notes(schedule: ConfigDict) -> list[str]:
    """For fields that were set although the named schedule does not read them."""
    defaults = base_config().schedule
    unread = [field for field in UNREAD.get(schedule.name, ()) if schedule[field] != defaults[field]]
    names = " and ".join(f"schedule.{field}" for field in unread)
    return [f"{names} {'has' if len(unread) == 1 else 'have'} no effect on {schedule.name!r}"] if unread else []


def _size_notes(experiment: Experiment) -> list[str]:
    """For a network that is too large for a CPU, and for images that are mirrored although nobody may have asked."""
    notes, config = [], experiment.config
    size = num_params(experiment.abstract_state.params)
    if platform_of(experiment.mesh) == "cpu" and size > MOST_PARAMS_ON_CPU:
        notes.append(
            f"a network of {size / 1e6:.0f} M parameters is for a GPU or TPU: a step on a CPU takes seconds to "
            "minutes, and Ctrl-C waits for it; for a CPU there is --config=image_folder_small"
        )
    if config.data.flip and config.data.name in ("image_folder", "array"):
        notes.append("half of the images are mirrored left-right at random; none: --config.data.flip=false")
    return notes


def _noise_notes(config: ConfigDict) -> list[str]:
    """For alpha-bar that is embedded too coarsely to tell noise levels apart."""
    if config.diffusion.network_input != "alpha_bar" or (
        config.model.name == "unet" and config.unet.time_scale >= FINE_TIME_SCALE
    ):
        return []
    remedy = ": give --config.unet.time_scale=1000" if config.model.name == "unet" else ""
    return [f"diffusion.network_input='alpha_bar' is embedded as coarsely as t in 0..1{remedy}"]


def grids_share(experiment: Experiment) -> float:
    """The share of the run's network calls, counted per image, that its grids of raw and EMA samples take."""
    if experiment.sampler_table is None:
        return 0.0
    train, sample = experiment.config.train, experiment.config.sample
    every = train.sample_every_steps
    num_previews = (train.num_steps - 1) // every if every else 0
    rows = num_previews * experiment.preview_table.num_calls + experiment.sampler_table.num_calls
    of_grids = 2 * rows * sample.num_grid * (2 if is_guided(experiment.config) else 1)
    return of_grids / (of_grids + CALLS_OF_A_TRAINED_IMAGE * train.num_steps * train.batch_size)


def _learning_rate_notes(experiment: Experiment, resumed_from: int | None) -> list[str]:
    config = experiment.config
    num_steps, peak, first_step = config.train.num_steps, config.optim.learning_rate, resumed_from or 0
    warmup, decay = learning_rate_steps(config, "warmup"), learning_rate_steps(config, "decay")
    rate_at = build_learning_rate(config)
    now, last = float(rate_at(first_step)), float(rate_at(num_steps - 1))
    line = f"learning rate {peak:g}"
    if warmup:
        line += f", warm-up over {warmup} step{'s' * (warmup > 1)}"
    if decay:
        line += f", cosine decay to 0 at step {decay}"
    if first_step:
        line += f"; now {now:.3g}"
    notes = [line]
    # A resumed run keeps its schedule unless the schedule has ended: see `config_changes`.
    may_change = not resumed_from or now == 0
    if warmup > num_steps:
        remedy = "--config.optim.warmup_steps=0 --config.optim.warmup_share=0.08"
        what = f"the warm-up is longer than the run, whose last learning rate is {last:.3g}"
        notes.append(f"{what}; to fit it to the run: {remedy}" if may_change else what)
    if decay and decay != num_steps:
        remedy = "--config.optim.decay_steps=0 --config.optim.decay_share=1"
        what = f"the learning rate is 0 after step {decay}"
        if decay > num_steps:
            what = f"the decay is longer than the run, whose last learning rate is {last:.3g}"
        notes.append(f"{what}; to fit it to the run: {remedy}" if may_change else what)
    return notes


def _prediction_notes(process: Process) -> list[str]:
    """For eps on a schedule whose first x_0_hat is useless, since x_0_hat = (x_t - sqrt(1 - a) eps)/sqrt(a)."""
    alpha_bar = float(np.asarray(process.schedule.alphas_bar, np.float64)[-1])
    level = np.sqrt((1 - alpha_bar) / max(alpha_bar, 1e-30))
    if process.prediction != "eps" or level < HOPELESS_NOISE_LEVEL:
        return []
    return [
        f"predicts eps on a schedule that ends at noise level {level:,.0f}, which multiplies errors of eps in x_0: "
        "in such a short run --config.diffusion.prediction=v often gives better samples (docs/recipes.md)"
    ]
