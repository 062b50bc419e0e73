"""The host loop with a train step in plain Python: what is reported, saved and drawn, and when it ends."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.runtime.devices import make_mesh
from ddpm_jax.training.loop import EarlySpeed, LoopSettings, StopRequest, run_loop
from ddpm_jax.training.metrics_window import Binned, MetricsWindow
from ddpm_jax.training.nonfinite import NonFiniteError
from ddpm_jax.training.profiler import StepProfiler
from ddpm_jax.training.run_log import Reporter, read_metrics
from ddpm_jax.training.throughput import Throughput
from ddpm_jax.training.train_state import TrainState


def loop(
    tmp_path, *, num_steps=10, start=0, log=0, checkpoint=0, sample=0, snapshots=(), on_snapshot=None, bad=None,
    stop=None,
):  # fmt: skip
    """Runs the loop; step n has loss n, t bin 0 holds n of n images. Returns (last step, saved, drawn)."""
    saved, drawn = [], []

    def train_step(state, images, key):
        assert images.shape == (2, 1) and int(images[0, 0]) == state.step  # batch n goes to step n
        step = int(state.step) + 1
        if stop and step == stop[0]:
            stop[1].signal_number = signal.SIGTERM
        values = {"loss": step, "grad_norm": 2 * step} | (bad[1] if bad and step == bad[0] else {})
        metrics = {name: jnp.float32(value) for name, value in values.items()}
        metrics["loss_t"] = Binned(jnp.array([step, 0.0, 2.0, 0.0]), jnp.array([step, 0.0, 1.0, 0.0]))
        return TrainState(jnp.int32(step), {"w": jnp.ones(1)}, {}, (), primary="0.9"), metrics

    def save(state):
        saved.append(int(state.step))
        return {"eval_loss": 0.5}

    def preview(state):
        drawn.append(int(state.step))
        return {"sample_mean_c1": 3.0}

    first = TrainState(jnp.int32(start), {"w": jnp.ones(1)}, {}, (), primary="0.9")
    with Reporter(tmp_path, start_step=start, print_line=lambda line: None) as reporter:
        state = run_loop(
            first,
            train_step,
            iter(jnp.full((2, 1), n, jnp.uint8) for n in range(start, 100)),
            key_of_step=lambda step: jax.random.key(0),
            mesh=make_mesh(1),
            settings=LoopSettings(num_steps, 2, log, checkpoint, sample, snapshots),
            learning_rate=lambda n: jnp.float32(n),
            reporter=reporter,
            stop=stop[1] if stop else StopRequest(),
            snapshot=lambda state: on_snapshot(int(state.step), list(saved)),
            save=save,
            preview=preview,
            window=MetricsWindow(),
            rates=Throughput(2),
            profiler=StepProfiler("", str(tmp_path)),
        )
    return int(state.step), saved, drawn


def test_periods(tmp_path):
    assert loop(tmp_path, log=4, checkpoint=3, sample=5) == (10, [3, 6, 9, 10], [5])
    lines = {line["step"]: line for line in read_metrics(tmp_path)}
    assert list(lines) == [3, 4, 5, 6, 8, 9, 10]
    # Means since the line before; the learning rate of update n counts from 0.
    assert [lines[step]["loss"] for step in lines] == [2, 4, 5, 6, 7.5, 9, 10]
    assert lines[8]["grad_norm"] == 15 and lines[8]["learning_rate"] == 7
    # Sums over sums, not a mean of means; a quarter without images has no number.
    assert lines[8]["loss_t1of4"] == 1 and lines[8]["loss_t3of4"] == 2
    assert "loss_t2of4" not in lines[8]
    assert [step for step in lines if "eval_loss" in lines[step]] == [3, 6, 9, 10]
    assert "images_per_second" not in lines[3] and lines[8]["images_per_second"] > 0
    assert [step for step in lines if "sample_mean_c1" in lines[step]] == [5]
    assert [lines[step]["loss_max"] for step in lines] == [3, 4, 5, 6, 8, 9, 10]


def test_snapshots_come_before_the_checkpoint_of_their_step(tmp_path):
    taken = []
    loop(tmp_path, checkpoint=4, snapshots=(4, 5, 10), on_snapshot=lambda *step_and_saved: taken.append(step_and_saved))
    assert taken == [(4, []), (5, [4]), (10, [4, 8])]


def test_zero_means_never(tmp_path):
    assert loop(tmp_path) == (10, [10], [])
    assert [line["step"] for line in read_metrics(tmp_path)] == [10]


def test_goes_on_from_a_step(tmp_path):
    assert loop(tmp_path, start=6, checkpoint=4) == (10, [8, 10], [])


@pytest.mark.parametrize("start", [10, 12])
def test_nothing_left_to_do(tmp_path, start):
    assert loop(tmp_path, start=start) == (start, [], [])


def test_a_stop_ends_after_the_step_and_saves(tmp_path):
    assert loop(tmp_path, checkpoint=4, stop=(6, StopRequest())) == (6, [4, 6], [])


@pytest.mark.parametrize(("name", "value"), [("loss", np.nan), ("loss", -np.inf), ("grad_norm", np.inf)])
def test_not_finite_names_its_own_step(tmp_path, name, value):
    with pytest.raises(NonFiniteError, match=f"^{name} became {value} at step 6$"):
        loop(tmp_path, log=4, bad=(6, {name: value}))
    assert [line["step"] for line in read_metrics(tmp_path)] == [4]


def test_the_speed_is_said_before_the_first_report():
    times, said = iter([100.0, 104.0, 111.0]), []
    settings = LoopSettings(1003, 32, log_every_steps=100, checkpoint_every_steps=0, sample_every_steps=0)
    speed = EarlySpeed(said.append, settings, 0, clock=lambda: next(times))
    for step in range(1, 10):
        speed.after(step)  # the clock is read after steps 3, 4 and 5
    assert said == ["          about 5.5 s per step, 5.82 images/s: 1 h 31 min for the other 998 steps"]
    quick = EarlySpeed(said.append, settings, 0, clock=lambda: 0.0)
    quick.after(3)
    quick.cancel()
    quick.after(4)
    assert len(said) == 1
