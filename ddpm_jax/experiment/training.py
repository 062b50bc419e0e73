"""A whole training run from a config: data, state, loop, checkpoints, images."""

import os
import shlex
import signal
import tempfile

from ml_collections import ConfigDict

from ddpm_jax.data import ImageSource
from ddpm_jax.experiment import data_factory, run_notes
from ddpm_jax.experiment.build import Experiment, build_experiment
from ddpm_jax.experiment.codec_factory import data_dtype_of
from ddpm_jax.experiment.config_checks import fields_named, image_shape_of, is_image
from ddpm_jax.experiment.config_json import config_to_json
from ddpm_jax.experiment.config_overrides import flatten
from ddpm_jax.experiment.objective_factory import draws_images
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.experiment.resume import resumed_state, saved_length
from ddpm_jax.experiment.task_fields import check_fields_are_read
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.experiment.trainer import Trainer
from ddpm_jax.experiment.training_factory import build_power_averages, ema_snapshot_steps
from ddpm_jax.experiment.training_samples import draw_final, last_file
from ddpm_jax.models.parameters import num_params
from ddpm_jax.runtime import multi_host
from ddpm_jax.runtime.atomic_files import replace_file
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.runtime.json_files import is_count, read_json
from ddpm_jax.training.eval_loss import EvalLoss
from ddpm_jax.training.log_sinks import check_wandb
from ddpm_jax.training.nonfinite import Rewinds
from ddpm_jax.training.profiler import StepProfiler
from ddpm_jax.training.run_log import Reporter, read_metrics
from ddpm_jax.training.stop_request import StopRequest
from ddpm_jax.training.train_state import TrainState
from ddpm_jax.workdir.checkpoints import Checkpoints
from ddpm_jax.workdir.class_names import write_class_names
from ddpm_jax.workdir.ema_snapshots import EmaSnapshots, snapshot_bytes
from ddpm_jax.workdir.workdir_path import check_workdir

FEW_CALLS = 50  # of a sampler: fewer are not much quicker
QUICKER = f", quicker with --config.sample.sampler=euler_ancestral --config.sample.num_sampler_steps={FEW_CALLS}"


def train(config: ConfigDict, workdir: str, *, profile_steps: str = "") -> int | None:
    """Trains as `config` says, resuming from the newest checkpoint in `workdir`.

    Leaves in `workdir`: checkpoints/, with optim.ema_stds ema_snapshots/, config.json, metrics.jsonl, TensorBoard
    events, and in samples/ the grids of raw and EMA weights, the strip and the animation of a batch being denoised.

    Args:
      profile_steps: "FIRST:LAST" writes a JAX profiler trace of these updates into <workdir>/profile.

    Returns:
      None at the end of training, or the number of the signal that stopped it (after saving).

    Raises:
      UserError: what does not fit in the config, the data or the workdir, or a loss that is not finite.
      DiskFullError: no room for a checkpoint; those before it stay.
    """
    check_workdir(workdir)
    workdir = os.path.abspath(workdir)
    # Where the images are may differ between the hosts.
    same = {name: repr(value) for name, value in flatten(config).items() if name not in ("data.path", "data.data_dir")}
    multi_host.check_same(same, "config")
    experiment = build_experiment(config)
    if not os.path.isdir(os.path.join(workdir, "checkpoints")):
        check_fields_are_read(config)
    with fields_named("train", {"project": "train.wandb_project"}):
        check_wandb(config.train.wandb_project)
    profiler = StepProfiler(profile_steps, workdir)
    source = experiment.source()
    held_out = build_eval_loss(experiment)
    _check_writable(workdir)
    rewinds, snapshots = Rewinds(workdir), EmaSnapshots(workdir)
    checkpoints = Checkpoints(workdir, keep=config.train.keep_checkpoints, create=True)
    try:
        if not checkpoints.steps():
            _check_nothing_is_lost(workdir)
        length_before = saved_length(checkpoints)
        state = resumed_state(experiment, checkpoints)
        resumed = state is not None
        if not resumed or int(state.step) < config.train.num_steps:
            # Before hours of work, not at the first save.
            checkpoints.check_room(experiment.abstract_state, _bytes_of_snapshots(experiment, state))
        beyond = resumed and int(state.step) > config.train.num_steps  # nothing of the run becomes shorter
        if multi_host.is_first() and not beyond:
            with replace_file(os.path.join(workdir, "config.json"), "w") as file:
                file.write(config_to_json(config))
            if config.model.num_classes:  # also no names, in place of those of other data
                write_class_names(workdir, source.class_names)
        if state is None:
            state = experiment.fresh_state()
        first_step = int(state.step)
        drawn = _samples(workdir, last_file(image_shape_of(config), data_dtype_of(config)))
        draws = draws_images(config)
        draws = draws and (first_step < config.train.num_steps or not os.path.exists(drawn))
        draws = bool(multi_host.broadcast_from_first(draws))  # as process 0 sees the file: all draw, or none
        if multi_host.is_first() and draws and os.path.exists(drawn):
            os.remove(drawn)  # of an earlier, shorter run: a stop below must not leave it as the final one
        with Reporter(
            workdir,
            multi_host.is_first(),
            start_step=first_step,
            num_steps=config.train.num_steps,
            checkpoint_every_steps=config.train.checkpoint_every_steps,
            wandb_project=config.train.wandb_project,
            config=flatten(config),
        ) as reporter:
            training = Trainer(
                experiment, source, held_out, checkpoints, snapshots, reporter, rewinds, profiler, workdir
            )
            with StopRequest() as stop:
                _introduce(
                    reporter, experiment, source, held_out, workdir, first_step if resumed else None, length_before
                )
                if missed := profiler.missed(first_step, config.train.num_steps):
                    reporter.note(f"profile   {missed}")
                state = training.run(state, stop)
                checkpoints.wait()
                if stopped_by := multi_host.max_over_hosts(stop.signal_number or 0):
                    return stopped_by
            # All is saved: from here on a signal ends the process at once, and the next start draws.
            if draws:
                num_grid = config.sample.num_grid
                try:
                    draw_final(training.generator, state, reporter, _samples(workdir), num_samples=num_grid)
                except KeyboardInterrupt:
                    reporter.note("interrupted while drawing the final images: all training is saved; the same command")
                    quicker = training.generator.num_rows > FEW_CALLS
                    reporter.note(f"draws them{QUICKER if quicker else ''}")
                    raise
        return None
    finally:
        checkpoints.close()


def train_model(config: ConfigDict, workdir: str | os.PathLike) -> TrainedRun:
    """Trains as `config` says, or resumes the run in `workdir`, and opens it at its newest checkpoint.

    The same as `python -m ddpm_jax.train`, as a function: it prints the same lines and writes the same files.

    Args:
      config: of `load_config`.
      workdir: folder of the run; made where it is missing.

    Raises:
      UserError: what does not fit in the config, the data or the workdir, or a loss that is not finite.
      DiskFullError: no room for a checkpoint; earlier ones are kept.
      KeyboardInterrupt: Ctrl-C, or another signal that stops a run, after a checkpoint was saved.

    Example:
      import ddpm_jax as dj

      run = dj.train_model(dj.load_config("digits", ["train.num_steps=300"]), "runs/short")
      dj.save_grid("digits.png", run.sample(64))
    """
    if not isinstance(config, ConfigDict):
        raise UserError(f"config must be a config of load_config; got {config!r}")
    if not draws_images(config):
        raise UserError(
            f"train_model opens the run to sample it, and objective.name={config.objective.name!r} draws no images: "
            "train it with ddpm_jax.experiment.training.train"
        )
    workdir = os.fspath(workdir)
    stopped_by = train(config, workdir)
    if stopped_by is not None:
        raise KeyboardInterrupt(f"stopped by {signal.Signals(stopped_by).name}; the run is saved in {workdir}")
    return open_run(workdir)


def last_lines(config: ConfigDict, workdir: str) -> list[str]:
    """What is said when the training is done, such as the command that draws as many samples as the grids have."""
    if not draws_images(config):
        return [f"done: checkpoints in {workdir}/checkpoints"]
    guided = ""
    if config.model.num_classes:
        guided = "--guidance_scale=1.5 --guidance_interval=-2,4 " if config.condition.drop_rate else ""
    return [
        f"done: {'images' if is_image(image_shape_of(config)) else 'samples'} in {workdir}/samples",
        f"next: python -m ddpm_jax.sample --workdir={shlex.quote(workdir)} --num_samples={config.sample.num_grid} "
        f"--seed=1 {guided}--out={shlex.quote(f'{workdir}/samples/new')}",
    ]


def _bytes_of_snapshots(experiment: Experiment, state: TrainState | None) -> int:
    """The bytes of the snapshots of averages that are still to come."""
    first = 0 if state is None else int(state.step)
    num_left = sum(step > first for step in ema_snapshot_steps(experiment.config))
    averages = {name: experiment.abstract_state.ema[name] for name in build_power_averages(experiment.config)}
    return num_left * snapshot_bytes(averages)


def _check_writable(workdir: str) -> None:
    """Makes the folder; raises UserError where that, or a file in it, is impossible."""
    try:
        os.makedirs(os.path.join(workdir, "checkpoints"), exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
        for name, of_kind, kind in (("samples", os.path.isdir, "folder"), ("config.json", os.path.isfile, "file"),
                                    ("metrics.jsonl", os.path.isfile, "file")):  # fmt: skip
            path = os.path.join(workdir, name)
            if os.path.lexists(path) and not of_kind(path):
                raise UserError(f"{path} must be a {kind}: move it away, or give another --workdir")
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} cannot be written ({error.strerror}: {error.filename}): give another folder"
        ) from error


def _check_nothing_is_lost(workdir: str) -> None:
    """Raises UserError where a run without checkpoints would begin anew in the place of something else."""
    try:
        saved = read_json(os.path.join(workdir, "config.json"), dict)
    except (FileNotFoundError, ValueError):  # a damaged one is written anew
        return
    train = saved.get("train")
    if not isinstance(train, dict) or not is_count(train.get("num_steps"), least=1):
        raise UserError(f"--workdir {workdir} holds a config.json of something else: give another folder")
    lines, every = read_metrics(workdir), train.get("checkpoint_every_steps")
    last = max((line["step"] for line in lines), default=0)
    # A run may be killed while the first checkpoint is being written, or learn of a full disk at the second save.
    if is_count(every, least=1) and last > 2 * every:
        raise UserError(
            f"{workdir} has the log of a run of {last} steps, which saved every {every}, and no checkpoint: restore "
            "its folder checkpoints/, give another --workdir, or remove its metrics.jsonl to start anew"
        )


def build_eval_loss(experiment: Experiment) -> EvalLoss | None:
    """The eval loss of the held-out split, or None where the config names none."""
    config = experiment.config
    if not config.data.eval_split:
        return None
    try:
        source = data_factory.build_source(config, config.data.eval_split, "data.eval_split")
    except UserError as error:
        if "selects none" in str(error):
            raise UserError(
                f"{error}; to hold out none give --config.data.split=train --config.data.eval_split="
            ) from error
        raise UserError(
            f"{error}; to hold out a part of the training images give --config.data.split='train[:95%]' "
            "--config.data.eval_split='train[95%:]', to hold out none --config.data.eval_split="
        ) from error
    return EvalLoss(
        source,
        experiment.objective.eval_losses,
        key=experiment.keys.eval,
        mesh=experiment.mesh,
        batch_size=config.eval.batch_size,
        max_images=config.eval.max_images,
        spec=experiment.condition,
        frozen=experiment.objective.frozen,
    )


def _introduce(
    reporter: Reporter,
    experiment: Experiment,
    source: ImageSource,
    held_out: EvalLoss | None,
    workdir: str,
    resumed_from: int | None,
    length_before: int | None,
) -> None:
    config, shape = experiment.config, "x".join(map(str, source.image_shape))
    images = "images" if is_image(source.image_shape) else "arrays"
    device = experiment.mesh.devices.flat[0]
    reporter.note(f"workdir   {workdir}")
    held = f", {held_out.num_images} held out" if held_out else ""
    reporter.note(f"data      {config.data.name}: {len(source)} {images} of {shape}{held}")
    for note in dict.fromkeys((*source.notes, *(held_out.notes if held_out else ()))):
        reporter.note(f"          {note}")
    if config.model.num_classes:
        reporter.note(f"classes   {run_notes.class_line(source, config.model.num_classes)}")
    devices = f"{experiment.mesh.size} x {device.device_kind}"
    reporter.note(f"model     {num_params(experiment.abstract_state.params):,} parameters on {devices}")
    start = "from the start" if resumed_from is None else f"resuming from step {resumed_from}"
    if resumed_from == 0:
        start = "from the imported weights"
    if resumed_from is not None and resumed_from >= config.train.num_steps:
        start = f"already finished at step {resumed_from}"
    reporter.note(f"training  {config.train.num_steps} steps of {config.train.batch_size} {images}, {start}")
    if resumed_from and length_before not in (None, config.train.num_steps):
        reporter.note(
            f"          the run had {length_before} steps; to keep them: --config.train.num_steps={length_before}"
        )
    if (resumed_from or 0) < config.train.num_steps:
        for note in run_notes.notes_on(experiment, resumed_from):
            reporter.note(f"          {note}")
    if not resumed_from:
        reporter.note("          the first step waits for the compiler")


def _samples(workdir: str, *name: str) -> str:
    """<workdir>/samples/NAME."""
    return os.path.join(workdir, "samples", *name)
