"""Training of a run: the loop with its data loader, checkpoints and previews, and NaN handling."""

import functools
import gc
import math
import os

import jax

from ddpm_jax.data import ImageSource
from ddpm_jax.data.shuffling import batch_indices
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.experiment import sampler_factory, training_factory
from ddpm_jax.experiment.build import Experiment
from ddpm_jax.experiment.config_json import config_to_json
from ddpm_jax.experiment.generator import Generator
from ddpm_jax.experiment.model_factory import DTYPES
from ddpm_jax.experiment.program_costs import train_step_flops
from ddpm_jax.experiment.resume import saved_state
from ddpm_jax.experiment.training_samples import draw_samples
from ddpm_jax.runtime import multi_host
from ddpm_jax.runtime.devices import local_mesh
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.runtime.timing import product_peak
from ddpm_jax.training.eval_loss import EvalLoss
from ddpm_jax.training.loop import LoopSettings, run_loop
from ddpm_jax.training.metrics_window import MetricsWindow
from ddpm_jax.training.nonfinite import NonFiniteError, Rewinds, write_record
from ddpm_jax.training.profiler import StepProfiler
from ddpm_jax.training.run_log import Reporter
from ddpm_jax.training.stop_request import StopRequest
from ddpm_jax.training.throughput import Throughput
from ddpm_jax.training.train_state import TrainState
from ddpm_jax.workdir.checkpoints import BEST_METRIC, Checkpoints
from ddpm_jax.workdir.ema_snapshots import EmaSnapshots


class Trainer:
    """run(state, stop): trains from a state to the end of the config, or until `stop`."""

    def __init__(
        self,
        experiment: Experiment,
        source: ImageSource,
        held_out: EvalLoss | None,
        checkpoints: Checkpoints,
        snapshots: EmaSnapshots,
        reporter: Reporter,
        rewinds: Rewinds,
        profiler: StepProfiler,
        workdir: str,
    ):
        self._experiment, self._source, self._held_out = experiment, source, held_out
        self._checkpoints, self._snapshots, self._reporter = checkpoints, snapshots, reporter
        self._rewinds, self._profiler, self._workdir = rewinds, profiler, workdir
        self._config = experiment.config
        self._config_json = config_to_json(experiment.config)
        self._step_fn = experiment.jitted_step()

    def run(self, state: TrainState, stop: StopRequest) -> TrainState:
        """Trains, and returns the last state, which has been saved.

        Raises:
          UserError: a loss is not finite, and the policy is to stop or its limit is reached.
        """
        train = self._config.train
        if int(state.step) >= train.num_steps:
            return state
        self._snapshots.move_aside_after(int(state.step))  # now that every check has passed
        while True:
            try:
                return self._run_until_nonfinite(state, stop)
            except NonFiniteError as error:
                self._checkpoints.wait()
                path = self._record(error)
                if train.nonfinite != "rewind" or len(self._rewinds) >= train.nonfinite_limit:
                    raise UserError(self._advice(error, path)) from error
                # A new error: the traceback of the old one references the whole state of the failed loop.
                found = NonFiniteError(error.step, error.what)
            finally:
                self._profiler.close()
            del state  # the restored state needs the memory
            gc.collect()  # frames of the failed loop, which reference its last state, may reference each other
            state = self._rewound(found)

    def _run_until_nonfinite(self, state: TrainState, stop: StopRequest) -> TrainState:
        experiment, train = self._experiment, self._config.train
        with experiment.batches(
            self._source, first_step=int(state.step), batch_of_step=self._rewinds.batch_of_step
        ) as batches:
            return run_loop(
                state,
                self._step_fn,
                batches,
                key_of_step=functools.partial(self._rewinds.key_of_step, experiment.keys.train),
                mesh=experiment.mesh,
                settings=LoopSettings(
                    num_steps=train.num_steps,
                    batch_size=train.batch_size,
                    log_every_steps=train.log_every_steps,
                    checkpoint_every_steps=train.checkpoint_every_steps,
                    sample_every_steps=train.sample_every_steps,
                    snapshot_steps=frozenset(training_factory.ema_snapshot_steps(self._config)),
                ),
                learning_rate=training_factory.build_learning_rate(self._config),
                window=MetricsWindow(
                    skip_limit=train.nonfinite_limit if train.nonfinite == "skip" else 0,
                    on_skip=self._note_skip,
                    on_spike=self._note_spike,
                ),
                reporter=self._reporter,
                stop=stop,
                snapshot=self._snapshot,
                save=self._save,
                preview=self._preview,
                rates=Throughput(
                    train.batch_size,
                    take_counts=batches.take_counts,
                    num_processes=jax.process_count(),
                    step_flops=lambda: self._step_flops,
                    peak=lambda: self._peak,
                ),
                profiler=self._profiler,
            )

    def _snapshot(self, state: TrainState) -> None:
        names = training_factory.build_power_averages(self._config)
        self._snapshots.write(int(state.step), {name: state.ema[name] for name in names})

    def _save(self, state: TrainState) -> dict[str, float]:
        metrics = {BEST_METRIC: self._held_out.mean_loss(state.ema_params)} if self._held_out else None
        if metrics and not math.isfinite(metrics[BEST_METRIC]):
            raise NonFiniteError(int(state.step), f"{BEST_METRIC} became {metrics[BEST_METRIC]}")
        self._checkpoints.save(state, self._config_json, metrics)
        return metrics or {}

    @functools.cached_property
    def _step_flops(self) -> float:
        return train_step_flops(self._experiment, self._step_fn)

    @functools.cached_property
    def _peak(self) -> float:
        """FLOP/s of all devices: those of this process, times the processes; 0 if there is no memory to measure it."""
        try:
            peak = product_peak(local_mesh(self._experiment.mesh), DTYPES[self._config.model.dtype])
        except jax.errors.JaxRuntimeError:  # the run fills its devices; the number is not worth ending the run
            return 0.0
        return peak["flops_per_second"] * jax.process_count()

    @functools.cached_property
    def generator(self) -> Generator:
        """The generator of the final images, with the config's sampler; that of the previews shares its programs."""
        return self._generator_of(self._experiment.sampler_table)

    def _generator_of(self, table: SamplerTable) -> Generator:
        experiment = self._experiment
        generator = sampler_factory.build_generator(
            self._config, experiment.process, table, experiment.model, experiment.mesh
        )
        return generator.allowing_nonfinite()

    @functools.cached_property
    def _previewer(self) -> Generator:
        final, preview = self._experiment.sampler_table, self._experiment.preview_table
        if self._config.sample.classifier and (final.c_shift is None) != (preview.c_shift is None):
            return self._generator_of(preview)  # the classifier guides it by another rule, in another program
        return self.generator.with_table(preview)

    def _preview(self, state: TrainState) -> dict[str, float]:
        if self._experiment.preview_table is None:
            return {}
        name, num_samples = f"step_{int(state.step):08d}", self._config.sample.num_grid
        path = os.path.join(self._workdir, "samples", name)
        return draw_samples(self._previewer, state, self._reporter, path, num_samples=num_samples)

    # Non-finite values

    def _note_spike(self, step: int, loss: float, mean: float, deviation: float) -> None:
        self._reporter.note(
            f"step {step}: the loss is {loss:.5f}, a spike: it was {mean:.5f} +- {deviation:.5f} in the steps before"
        )

    def _note_skip(self, error: NonFiniteError) -> None:
        path = self._record(error)
        self._reporter.note(f"{error}: the update is skipped; its images are listed in {path}")

    def _record(self, error: NonFiniteError) -> str:
        """Writes which images the step used; returns the path of the file."""
        train, batch = self._config.train, self._rewinds.batch_of_step(error.step - 1)
        indices = batch_indices(
            seed=train.seed, step=batch, batch_size=train.batch_size, num_examples=len(self._source)
        )
        return write_record(self._workdir, error, train.nonfinite, batch, indices, write=multi_host.is_first())

    def _advice(self, error: NonFiniteError, path: str) -> str:
        saved = self._checkpoints.steps()
        last = f"the last good checkpoint is step {saved[-1]}" if saved else "nothing was saved yet"
        policy = self._config.train.nonfinite
        if policy == "stop":
            remedy = (
                "train in a new --workdir with a lower optim.learning_rate, or resume here without these batches by "
                "--config.train.nonfinite=rewind"
            )
        elif policy == "skip" and not error.is_of_an_update:
            remedy = (
                "train.nonfinite=skip leaves out updates, and this was found between updates: train in a new --workdir "
                "with a lower optim.learning_rate, or resume here with --config.train.nonfinite=rewind"
            )
        else:
            limit = self._config.train.nonfinite_limit
            remedy = (
                f"train.nonfinite={policy} has reached train.nonfinite_limit={limit}: train in a new --workdir with a "
                "lower optim.learning_rate"
            )
        return f"{error}; {last} in {self._workdir}; the images of that step are listed in {path}; {remedy}"

    def _rewound(self, error: NonFiniteError) -> TrainState:
        """Returns to the newest saved state, or to the initial one; training continues from it with other batches."""
        state = saved_state(self._experiment, self._checkpoints)
        if state is None:
            state = self._experiment.fresh_state()
        step = int(state.step)
        self._rewinds.add(at=error.step, to=step, write=multi_host.is_first())
        self._snapshots.move_aside_after(step)
        self._reporter.rewind(step)
        left_out = error.step - step
        self._reporter.note(
            f"{error}: rewinding to step {step}, leaving out the {left_out} batch{'es' * (left_out > 1)} since "
            f"(rewind {len(self._rewinds)} of at most {self._config.train.nonfinite_limit})"
        )
        return state
