"""kill -9 at any moment: the run goes on from the last committed step and ends where an undisturbed one ends."""

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.training import train
from ddpm_jax.training.run_log import read_metrics
from ddpm_jax.workdir.checkpoint_manifest import MANIFEST, verify
from ddpm_jax.workdir.checkpoints import Checkpoints

ITEMS = ("params", "ema_params", "opt_state", "config")
CHILD = Path(__file__).parent / "killed_run.py"
FEWER = ("data.eval_split=", "train.checkpoint_every_steps=2", "train.keep_checkpoints=2")


class KilledRun:
    """One run that is started again after each kill, and the checks that hold at every start."""

    def __init__(self, flags, folder, num_steps):
        self.workdir = folder / "run"
        self.flags = [flag for flag in flags if flag != "--nocompilation_cache"]
        self.flags += [f"--config.{override}" for override in (*FEWER, f"train.num_steps={num_steps}")]
        cache = str(jax.config.jax_compilation_cache_dir or folder / "cache")
        self.env = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                                 "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}  # fmt: skip
        self.unchecked = 0  # starts from a step without a manifest

    def committed(self):
        folder = self.workdir / "checkpoints"
        return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())

    def start(self, *kill):
        """A process with its output in files; where it shall kill itself: see killed_run.py."""
        self.output = [open(self.workdir.with_suffix(f".{name}"), "w+") for name in ("out", "err")]
        command = [sys.executable, str(CHILD), *map(str, kill), *self.flags, f"--workdir={self.workdir}"]
        env = self.env | {"PYTHONPATH": os.pathsep.join([str(CHILD.parents[2]), os.environ.get("PYTHONPATH", "")])}
        return subprocess.Popen(command, env=env, stdout=self.output[0], stderr=self.output[1])

    def said(self):
        texts = []
        for file in self.output:
            file.seek(0)
            texts.append(file.read())
        return texts

    def go_on(self, *kill, after_steps=None):
        """Starts, checks where it starts from, and returns the exit code; -9 is a kill."""
        before = self.committed()
        for step in before[-1:]:  # whatever was committed is whole, and its manifest is there whole or not at all
            compared = verify(self.workdir / "checkpoints" / str(step), ITEMS)
            self.unchecked += not compared
        process = self.start(*kill)
        if after_steps is not None:  # from outside, in the middle of whatever it does then
            end = time.monotonic() + 120
            while self.said()[0].count("\nstep ") < 1 and process.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(after_steps)
            process.kill()
        code = process.wait(timeout=300)
        out, err = self.said()
        assert code in (0, -9), err
        assert "warning:" not in err and "Traceback" not in err and "error:" not in err, err
        if "training " in out:
            begin = f"resuming from step {before[-1]}" if before else "from the start"
            assert begin in out, (before, out)
        return code

    def final(self, workdir, config):
        """The state of the last step, as bytes by name."""
        checkpoints = Checkpoints(str(workdir))
        state = checkpoints.restore_state(build_experiment(config).abstract_state)
        assert int(state.step) == checkpoints.steps()[-1] == config.train.num_steps
        checkpoints.close()
        return {jax.tree_util.keystr(path): leaf.tobytes()
                for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state))}  # fmt: skip

    def check_end(self, config):
        """No kill from here on: it ends as an undisturbed run does, and leaves nothing half-written."""
        straight = self.workdir.with_name("straight")
        train(config, str(straight))
        assert self.go_on("never", 0, "before") == 0
        one, other = self.final(self.workdir, config), self.final(straight, config)
        assert one == other and {name.split("[")[0].split(".")[1] for name in one} >= {"params", "ema"}
        losses = [[(line["step"], line["loss"]) for line in read_metrics(path)] for path in (self.workdir, straight)]
        assert losses[0] == losses[1]
        names = [path.name for path in self.workdir.rglob("*")]
        assert not [name for name in names if re.search(r"tmp|\.part$|\.lock$", name)]
        assert not (self.workdir / "damaged_checkpoints").exists()
        last = self.workdir / "checkpoints" / str(config.train.num_steps)
        assert (last / MANIFEST).exists() and verify(last, ITEMS)


@pytest.mark.processes
def test_killed_at_chosen_points(tiny_flags, tiny_config, tmp_path):
    run = KilledRun(tiny_flags, tmp_path, num_steps=14)
    for kill in (
        ("step", 3, "after"),  # the save of step 2 is on its way or done
        ("manifest", 2, "before"),  # committed, without a manifest
        ("fsync", 2, "before"),  # the manifest is there under another name
        ("rename", 3, "before"),  # in the midst of what Orbax commits
        ("delete", 40, "after"),  # an old checkpoint is gone in part
    ):
        assert run.go_on(*kill) == -9, kill
    assert run.go_on("never", 0, "before", after_steps=0.05) == -9
    assert run.unchecked > 0
    run.check_end(tiny_config(*FEWER, "train.num_steps=14"))


@pytest.mark.slow
def test_killed_fifty_times(tiny_flags, tiny_config, tmp_path, capsys):
    """`pytest -m slow -n 0 tests/workdir/test_killed.py`: one run, killed at 50 moments; ten minutes."""
    num_steps, random_moment = 400, random.Random(0)
    run, begins, points = KilledRun(tiny_flags, tmp_path, num_steps), [], []
    for _ in range(50):
        if random_moment.random() < 0.2:
            kill = {"after_steps": random_moment.uniform(0, 0.5)}
            code = run.go_on("never", 0, "before", **kill)
        else:
            point = random_moment.choice(["any", "any", "step", "save", "rename", "manifest", "fsync", "delete"])
            # A checkpoint passes some 6 renames, and 75 deletions when an earlier one goes.
            most = {"any": 150, "step": 10, "rename": 30, "delete": 150}.get(point, 5)
            kill = (point, random_moment.randint(1, most), random_moment.choice(["before", "after"]))
            code = run.go_on(*kill)
        assert code == -9, kill
        points.append(kill)
        begins.append((run.committed() or [0])[-1])
    run.check_end(tiny_config(*FEWER, f"train.num_steps={num_steps}"))
    with capsys.disabled():
        print(f"\nkilled {len(points)} times; last committed step after each: {begins}; "
              f"{run.unchecked} starts from a step without a manifest")
