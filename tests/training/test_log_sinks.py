"""Weights & Biases beside the run's own files, and profiler traces of chosen steps."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest

from ddpm_jax import train as train_command
from ddpm_jax.experiment.training import train
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.training import log_sinks
from ddpm_jax.training.log_sinks import check_wandb
from ddpm_jax.training.profiler import StepProfiler
from ddpm_jax.training.run_log import Reporter


@pytest.fixture
def fake_wandb(monkeypatch):
    """Stands in for the package, which needs an account; keeps what it is told."""
    told = []
    run = types.SimpleNamespace(
        log=lambda values, step: told.append((step, values)), finish=lambda: told.append("finish")
    )
    module = types.ModuleType("wandb")
    module.Image = lambda image: ("picture", image.shape)
    module.init = lambda **kwargs: told.append(kwargs) or run
    module.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


def test_wandb_gets_numbers_pictures_and_the_config(fake_wandb, tmp_path):
    workdir = tmp_path / "my run"
    with Reporter(
        workdir, start_step=0, wandb_project="digits", config={"train.seed": 3}, print_line=lambda line: None
    ) as reporter:
        reporter.log(4, {"loss": 0.5})
        reporter.image("samples/ema", np.zeros((2, 3, 3), np.uint8), 4)
    begun, numbers, picture, end = fake_wandb
    assert begun["project"] == "digits" and begun["name"] == "my run"
    assert begun["id"] == (workdir / "wandb_id").read_text() and len(begun["id"]) == 32
    assert begun["resume"] == "allow" and begun["config"] == {"train.seed": 3}
    assert numbers == (4, {"loss": 0.5}) and picture == (4, {"samples/ema": ("picture", (2, 3, 3))}) and end == "finish"


def test_without_a_project_wandb_is_not_touched(fake_wandb, tmp_path):
    with Reporter(tmp_path, print_line=lambda line: None) as reporter:
        reporter.log(4, {"loss": 0.5})
    assert fake_wandb == []


def test_wandb_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="^project='x' needs wandb: pip install wandb, or leave it empty$"):
        check_wandb("x")
    check_wandb("")


def test_a_trace_of_the_steps(tiny_config, tmp_path):
    assert train(tiny_config("train.num_steps=4"), str(tmp_path), profile_steps="1:3") is None
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_trace_that_this_start_does_not_reach_is_said(tiny_config, tmp_path, capsys):
    assert StepProfiler("", "").missed(0, 4) is StepProfiler("3:9", "").missed(3, 4) is None
    assert StepProfiler("2:3", "").missed(3, 4) and StepProfiler("4:5", "").missed(0, 4)
    train(tiny_config("train.num_steps=2"), str(tmp_path), profile_steps="7:9")
    assert "profile   --profile_steps=7:9 traces nothing: this start makes the updates 0:2" in capsys.readouterr().out
    assert not (tmp_path / "profile").exists()


def test_the_trace_holds_those_steps_alone(monkeypatch):
    events = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: events.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: events.append("stop"))
    profiler = StepProfiler("2:4", "")
    for step in range(6):
        profiler.before(step)
        events.append(step + 1)
        profiler.after(step + 1, ())
    profiler.close()
    assert events == [1, 2, "start", 3, 4, "stop", 5, 6]


def test_a_run_that_ends_in_a_trace_closes_it(tmp_path):
    profiler = StepProfiler("1:30", str(tmp_path))
    profiler.before(0)
    assert not (tmp_path / "profile").exists()
    profiler.before(1)
    profiler.after(2, ())
    profiler.close()
    profiler.close()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", ["5", "5:5", "7:3", "a:b", ":3", "-1:4"])
def test_profile_steps_that_do_not_fit(steps, tiny_flags, tmp_path, capsys):
    assert train_command.main([*tiny_flags, f"--workdir={tmp_path / 'run'}", f"--profile_steps={steps}"]) == 2
    assert capsys.readouterr().err == (
        f"error: --profile_steps must be FIRST:LAST with FIRST < LAST, such as 100:105; got '{steps}'\n"
    )
    assert not (tmp_path / "run").exists()


def test_tensorboard_does_not_import_pytorch(tmp_path):
    """Which takes seconds; whoever needs it later finds it."""
    (tmp_path / "torch.py").write_text("print('imported')")
    code = (
        "from ddpm_jax.training.tensorboard_events import TensorboardEvents\n"
        f"TensorboardEvents({str(tmp_path)!r}, 0).scalar('loss', 1.0, 1)\n"
        "print('written')\n"
        "import torch"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (0, "written\nimported\n"), run.stderr


def test_a_sink_of_your_own_gets_numbers_and_images(tmp_path, monkeypatch):
    class Own:
        def __init__(self, facts):
            self.seen = [(facts.workdir, facts.start_step, dict(facts.config))]
            opened.append(self)

        def numbers(self, step, numbers):
            self.seen.append((step, dict(numbers)))

        def image(self, name, image, step):
            self.seen.append((name, image.shape, step))

        def close(self):
            self.seen.append("closed")

    opened = []
    monkeypatch.setattr(log_sinks, "SINKS", [*log_sinks.SINKS, lambda facts: None, Own])
    with Reporter(tmp_path, start_step=3, config={"a.b": 1}, print_line=lambda line: None) as reporter:
        reporter.log(4, {"loss": 0.5})
        reporter.image("samples", np.zeros((2, 2, 3), np.uint8), 4)
    assert opened[0].seen == [
        (str(tmp_path), 3, {"a.b": 1}), (4, {"loss": 0.5}), ("samples", (2, 2, 3), 4), "closed"
    ]  # fmt: skip
