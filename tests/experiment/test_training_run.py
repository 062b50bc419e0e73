"""Whole runs: resumed, stopped by signals, killed, diverged; each must end where the straight run ends."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import train as train_command
from ddpm_jax.experiment import training
from ddpm_jax.experiment.build import Experiment, build_experiment
from ddpm_jax.experiment.training import train
from ddpm_jax.training.metrics_window import MetricsWindow
from ddpm_jax.training.run_log import read_metrics
from ddpm_jax.workdir.checkpoints import Checkpoints


def same_bits(one, other):
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def losses(workdir):
    return [(line["step"], line["loss"], line.get("eval_loss")) for line in read_metrics(workdir)]


def test_a_run_leaves_its_files(straight_run, tiny_config, state_of):
    names = {path.name for path in straight_run.iterdir()}
    assert {"checkpoints", "config.json", "metrics.jsonl", "samples"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert json.loads((straight_run / "config.json").read_text())["train"]["batch_size"] == 8
    assert sorted(path.name for path in (straight_run / "samples").iterdir()) == [
        "denoising.gif", "denoising.png", "final_ema.png", "final_raw.png"
    ]  # fmt: skip
    with Image.open(straight_run / "samples" / "denoising.gif") as gif:
        assert gif.n_frames > 5
    assert [step for step, *_ in losses(straight_run)] == [2, 4, 6, 8]
    trained = state_of(straight_run, 8)
    assert len(trained) == len(jax.tree.leaves(build_experiment(tiny_config()).abstract_state))
    assert not np.array_equal(trained[".params['conv_in']['kernel']"], trained[".ema['0.995']['conv_in']['kernel']"])


def test_resumed_equals_straight(straight_run, tiny_config, state_of, tmp_path, capsys):
    train(tiny_config("train.num_steps=4"), str(tmp_path))
    assert not same_bits(state_of(tmp_path, 4), state_of(straight_run, 8))
    drawn = (tmp_path / "samples" / "final_raw.png").read_bytes()
    capsys.readouterr()
    train(tiny_config(), str(tmp_path))
    assert "resuming from step 4" in capsys.readouterr().out
    assert same_bits(state_of(tmp_path, 8), state_of(straight_run, 8))
    assert losses(tmp_path) == losses(straight_run)
    for name in ("final_raw.png", "final_ema.png", "denoising.png", "denoising.gif"):
        files = [folder / "samples" / name for folder in (tmp_path, straight_run)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert (tmp_path / "samples" / "final_raw.png").read_bytes() != drawn
    assert json.loads((tmp_path / "config.json").read_text())["train"]["num_steps"] == 8


def test_hybrid_with_importance_sampling_resumes_bit_for_bit(tiny_config, tmp_path):
    """The history of losses is in the checkpoint; T = 2, so that it is full after some steps of 8 images."""
    settings = ("diffusion.loss=hybrid", "diffusion.variance=learned_range", "train.time_sampler=loss_second_moment",
                "schedule.num_steps=2", "sample.num_preview_steps=2", "train.checkpoint_every_steps=8")  # fmt: skip
    abstract = build_experiment(tiny_config(*settings)).abstract_state
    states = []
    for stops in ((8,), (6, 8)):
        workdir = str(tmp_path / str(len(stops)))
        for stop in stops:
            train(tiny_config(*settings, f"train.num_steps={stop}"), workdir)
        checkpoints = Checkpoints(workdir)
        states.append(jax.device_get(checkpoints.restore_state(abstract)))
        checkpoints.close()
        lines = read_metrics(workdir)
        assert [line["step"] for line in lines] == [2, 4, 6, 8]
        for line in lines:
            assert line["loss"] == pytest.approx(line["simple"] + 0.001 * line["vlb"], rel=1e-5)
            assert line["vlb"] > 0
    assert states[0].extra["t_history"].counts.sum() >= 20
    for one, other in zip(jax.tree.leaves(states[0]), jax.tree.leaves(states[1]), strict=True):
        assert one.tobytes() == other.tobytes()


def test_finished_run_is_left_alone(own_run, tiny_config, capsys):
    before = {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file() and "tfevents" not in path.name}
    assert train(tiny_config(), str(own_run)) is None
    assert "already finished at step 8" in capsys.readouterr().out
    after = {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file() and "tfevents" not in path.name}
    assert after == before


def test_a_run_that_is_longer_than_asked_is_left_alone(own_run, tiny_config, capsys):
    before = (own_run / "config.json").read_bytes()
    assert train(tiny_config("train.num_steps=6"), str(own_run)) is None
    assert "already finished at step 8" in capsys.readouterr().out
    assert (own_run / "config.json").read_bytes() == before


def test_missing_last_pictures_are_drawn(own_run, straight_run, tiny_config):
    (own_run / "samples" / "denoising.gif").unlink()
    train(tiny_config(), str(own_run))
    drawn = own_run / "samples" / "denoising.gif"
    assert drawn.read_bytes() == (straight_run / "samples" / "denoising.gif").read_bytes()


def test_old_last_pictures_go_when_a_longer_run_begins(own_run, tiny_config, monkeypatch):
    """Else a run that is stopped before its end would pass them off as its own."""
    monkeypatch.setattr(training, "draw_final", lambda *args, **sizes: pytest.fail("stopped before"))
    stop_at(monkeypatch, 9, signal.SIGTERM)
    assert train(tiny_config("train.num_steps=12"), str(own_run)) == signal.SIGTERM
    assert not (own_run / "samples" / "denoising.gif").exists()


def wrap_step(monkeypatch, change):
    """Makes every train step end in change(step, state, metrics) -> (state, metrics)."""
    real = Experiment.jitted_step

    def jitted_step(parts):
        step_fn = real(parts)

        def wrapped(state, images, key):
            state, metrics = step_fn(state, images, key)
            return change(int(state.step), state, metrics)

        wrapped.lower = step_fn.lower
        return wrapped

    monkeypatch.setattr(Experiment, "jitted_step", jitted_step)


def stop_at(monkeypatch, at, number):
    def change(step, state, metrics):
        if step == at:
            os.kill(os.getpid(), number)
        return state, metrics

    wrap_step(monkeypatch, change)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(number, straight_run, tiny_config, state_of, tmp_path, monkeypatch):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    config = tiny_config("train.checkpoint_every_steps=8")
    with monkeypatch.context() as patch:
        stop_at(patch, 3, number)
        assert train(config, str(tmp_path)) == number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert [step for step, *_ in losses(tmp_path)] == [2, 3]
    state_of(tmp_path, 3)
    train(config, str(tmp_path))
    assert same_bits(state_of(tmp_path, 8), state_of(straight_run, 8))


def test_the_command_ends_with_what_to_do_next(own_run, tiny_flags, capsys, monkeypatch):
    assert train_command.main([*tiny_flags, f"--workdir={own_run}"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"next: python -m ddpm_jax.sample --workdir={own_run} ")
    stop_at(monkeypatch, 9, signal.SIGTERM)
    assert train_command.main([*tiny_flags, "--config.train.num_steps=10", f"--workdir={own_run}"]) == 143
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "stopped by SIGTERM, all is saved; the same command resumes from here"


def diverge(monkeypatch, where):
    """From step 5 on `where` is NaN."""

    def change(step, state, metrics):
        if step < 5:
            return state, metrics
        if where in metrics:
            return state, metrics | {where: jnp.float32(np.nan)}
        broken = jax.tree.map(lambda leaf: leaf * jnp.inf, getattr(state, where))
        return dataclasses.replace(state, **{where: broken}), metrics

    wrap_step(monkeypatch, change)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("loss", "loss became nan at step 5"),
        ("grad_norm", "grad_norm became nan at step 5"),
        ("params", "params became NaN or infinite at step 6"),
        ("ema", "ema/0.995 became NaN or infinite at step 6"),
    ],
)
def test_divergence(where, message, tiny_flags, state_of, tmp_path, monkeypatch, capsys):
    diverge(monkeypatch, where)
    if where in ("params", "ema"):  # the loss stays finite; only what is saved is looked at
        monkeypatch.setattr(MetricsWindow, "_is_finite", lambda self, step, metrics: True)
    assert train_command.main([*tiny_flags, f"--workdir={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert err == (
        f"error: {message}; the last good checkpoint is step 4 in {tmp_path}; the images of that step are listed in "
        f"{tmp_path}/nonfinite/step_{message[-1]:0>8}.json; train in a new --workdir with a lower optim.learning_rate, "
        "or resume here without these batches by --config.train.nonfinite=rewind\n"
    )
    state = state_of(tmp_path, 4)
    assert all(np.all(np.isfinite(leaf)) for leaf in state.values())


def test_divergence_before_the_first_checkpoint(tiny_config, tmp_path, monkeypatch):
    wrap_step(monkeypatch, lambda step, state, metrics: (state, metrics | {"loss": jnp.float32(np.inf)}))
    with pytest.raises(training.UserError, match="^loss became inf at step 1; nothing was saved yet in "):
        train(tiny_config(), str(tmp_path))
    assert Checkpoints(str(tmp_path)).steps() == []


def test_eval_loss_that_is_not_finite_is_not_saved(tiny_config, tmp_path, monkeypatch):
    results = iter([1.0, float("nan")])
    monkeypatch.setattr(training.EvalLoss, "mean_loss", lambda self, params: next(results))
    with pytest.raises(training.UserError, match="^eval_loss became nan at step 4; the last good .* step 2 in "):
        train(tiny_config(), str(tmp_path))
    assert Checkpoints(str(tmp_path)).steps() == [2]


def test_previews(tiny_config, tmp_path, straight_run, state_of):
    """Pictures during training change nothing in the training."""
    train(tiny_config("train.sample_every_steps=4", "train.checkpoint_every_steps=8"), str(tmp_path))
    names = {path.name for path in (tmp_path / "samples").iterdir()}
    assert {"step_00000004_ema.png", "step_00000004_raw.png"} <= names
    assert same_bits(state_of(tmp_path, 8), state_of(straight_run, 8))


# Real processes


def start(flags, workdir):
    env = os.environ | {
        "JAX_NUM_CPU_DEVICES": "8",  # as here
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir or workdir / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    flags = [flag for flag in flags if flag != "--nocompilation_cache"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ddpm_jax.train", *flags, f"--workdir={workdir}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip
    try:
        import fcntl

        # A small pipe: the run waits for its reader, so it cannot be over before the signal arrives.
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    except (ImportError, AttributeError):
        pass
    return process


def wait_for_step(process, num_lines):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if sum(seen.startswith("step") for seen in lines) >= num_lines:
            return lines
    raise AssertionError("".join(lines) + process.stderr.read())


@pytest.mark.processes
def test_signals_and_a_kill_in_real_processes(tiny_flags, tmp_path):
    flags = [*tiny_flags, "--config.train.num_steps=150", "--config.train.log_every_steps=1",
             "--config.train.checkpoint_every_steps=25", "--config.train.keep_checkpoints=3"]  # fmt: skip
    steps = []
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = start(flags, tmp_path / "run")
        lines = wait_for_step(process, 5)
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
        lines += out.splitlines(keepends=True)
        if steps:
            assert any(f"resuming from step {steps[-1]}" in line for line in lines)
        if number == signal.SIGKILL:
            assert process.returncode == -9
            continue
        assert process.returncode == 128 + number
        assert err.startswith("SIGTERM: stopping after this step, then") and err.count("\n") == 1
        assert lines[-1] == f"stopped by {number.name}, all is saved; the same command resumes from here\n"
        steps.append(Checkpoints(str(tmp_path / "run")).steps()[-1])
        assert 5 <= steps[-1] < 150 and read_metrics(tmp_path / "run")[-1]["step"] == steps[-1]
    process = start(flags, tmp_path / "run")
    assert "resuming from step" in process.communicate(timeout=300)[0] and process.returncode == 0
    assert train_command.main([*flags, f"--workdir={tmp_path / 'straight'}"]) == 0
    final = []
    for name in ("run", "straight"):
        assert [line["step"] for line in read_metrics(tmp_path / name)] == list(range(1, 151))
        checkpoints = Checkpoints(str(tmp_path / name))
        final.append([checkpoints.restore_params(item, 150)[1] for item in ("params", "ema_params")])
        assert not [p for p in (tmp_path / name / "checkpoints").iterdir() if "tmp" in p.name]
    assert [leaf.tobytes() for leaf in jax.tree.leaves(final[0])] == [
        leaf.tobytes() for leaf in jax.tree.leaves(final[1])
    ]
    assert [line["loss"] for line in read_metrics(tmp_path / "run")] == [
        line["loss"] for line in read_metrics(tmp_path / "straight")
    ]
