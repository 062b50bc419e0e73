"""Two real processes of two devices share a run: trained, stopped, killed, resumed, sampled, measured."""

import argparse
import json
import signal

import jax
import numpy as np
import pytest
from host_processes import HostOutput, HostProcesses

from ddpm_jax import evaluate
from ddpm_jax.experiment.training import train
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.runtime.multi_host_flags import _how_to_join
from ddpm_jax.training.run_log import read_metrics
from ddpm_jax.workdir.checkpoints import Checkpoints
from ddpm_jax.workdir.ema_snapshots import EmaSnapshots


@pytest.fixture(scope="module")
def flags(tiny_flags):
    return [flag for flag in tiny_flags if "num_devices" not in flag and "cache" not in flag]


@pytest.fixture(scope="module")
def shared_run(flags, made_once):
    """A run that two processes trained together without a stop: what they printed, and the workdir."""

    def make(folder):
        own = ["--config.optim.ema_stds=0.05,0.1", "--config.train.num_ema_snapshots=4", f"--workdir={folder / 'run'}"]
        processes = HostProcesses(folder, "train", [*flags, *own])
        assert processes.codes() == [0, 0], processes.all_output()

    folder = made_once("shared_by_hosts", make)
    return HostOutput(folder, "train"), folder / "run"


def weights(workdir, item="params"):
    checkpoints = Checkpoints(str(workdir))
    step, tree = checkpoints.restore_params(item)
    checkpoints.close()
    return step, jax.tree.leaves(tree)


def assert_same_run(one, other):
    """To the rounding of sums over devices, which Adam magnifies where a gradient is noise."""
    for item in ("params", "ema_params"):
        (step, these), (other_step, those) = weights(one, item), weights(other, item)
        assert step == other_step
        for a, b in zip(these, those, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
    pairs = list(zip(read_metrics(one), read_metrics(other), strict=True))
    for here, there in pairs:
        assert here["step"] == there["step"]
        for name in ("loss", "eval_loss", "grad_norm"):
            assert here.get(name, 0) == pytest.approx(there.get(name, 0), rel=2e-6)
    assert pairs


@pytest.mark.processes
def test_two_processes_train_what_one_does(shared_run, straight_run):
    processes, workdir = shared_run
    assert_same_run(workdir, straight_run)
    names = {path.name for path in (workdir / "samples").iterdir()}
    assert names == {"denoising.gif", "denoising.png", "final_ema.png", "final_raw.png"}
    assert "model     1,393 parameters on 4 x cpu" in processes.lines(0)
    snapshots = EmaSnapshots(workdir)  # written by process 0
    assert snapshots.steps() == [2, 4, 6, 8]
    _, of_checkpoint = weights(workdir, "ema_std_0.1")
    of_snapshot = jax.tree.leaves(snapshots.read(8, "std_0.1"))
    assert all(np.array_equal(a, b) for a, b in zip(of_snapshot, of_checkpoint, strict=True))


@pytest.mark.processes
def test_process_0_alone_speaks(shared_run):
    processes, workdir = shared_run
    assert [line for line in processes.lines(1) if line.strip()] == [] and processes.errors(1) == ""
    assert len(list(workdir.glob("events.out.tfevents*"))) == 1


@pytest.mark.processes
def test_stopped_and_killed_on_one_host_alone(flags, tiny_config, tmp_path, capsys):
    """SIGTERM to process 1, kill -9 to process 1: all end, and go on from the same step. The last part is trained by
    one process of two devices; the result is that of one device without a stop."""
    settings = ("train.num_steps=160", "train.checkpoint_every_steps=40", "train.log_every_steps=1")
    flags = [*flags, *(f"--config.{setting}" for setting in settings), f"--workdir={tmp_path / 'run'}"]
    stops = []
    for number, victim in ((signal.SIGTERM, 1), (signal.SIGKILL, 1)):
        processes = HostProcesses(tmp_path / number.name, "train", flags)
        processes.wait_for(f"step {(stops[-1] if stops else 0) + 10:>3}/160")
        if stops:
            assert any(f"resuming from step {stops[-1]}" in line for line in processes.lines())
        processes.processes[victim].send_signal(number)
        codes = processes.codes()
        if number == signal.SIGKILL:
            assert codes[1] == -9 and codes[0] not in (0, 2), processes.all_output()
            continue
        assert codes == [128 + number] * 2, processes.all_output()
        stops.append(Checkpoints(str(tmp_path / "run")).steps()[-1])
        assert read_metrics(tmp_path / "run")[-1]["step"] == stops[-1] < 160
        assert processes.lines()[-2] == f"stopped by {number.name}, all is saved; the same command resumes from here"
    train(tiny_config(*settings, "train.num_devices=2"), str(tmp_path / "run"))
    assert "resuming from step" in capsys.readouterr().out
    train(tiny_config(*settings), str(tmp_path / "straight"))
    (_, these), (_, those) = weights(tmp_path / "run"), weights(tmp_path / "straight")
    losses = [{line["step"]: line["loss"] for line in read_metrics(tmp_path / name)} for name in ("run", "straight")]
    both = sorted(losses[0].keys() & losses[1].keys())
    assert both == list(range(1, 161))
    # Rounding differs between the device counts, and training spreads it: 1e-6 after 8 steps, more after 160. Of a
    # parameter by one update of Adam, 1e-3, at the most.
    np.testing.assert_allclose([losses[0][s] for s in both], [losses[1][s] for s in both], rtol=1e-4)
    for a, b in zip(these, those, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3)


@pytest.mark.processes
def test_samples_and_bits_of_two_processes(shared_run, sample_main, tmp_path):
    _, workdir = shared_run
    outputs = {}
    for count in (2, 1):
        out = tmp_path / str(count)
        for verb, main, own in (
            ("sample", sample_main, [f"--out={out}/new", "--num_samples=11"]),
            ("evaluate", evaluate.main, [f"--out={out}", "--what=bits,samples", "--extractor=pixels",
                                         "--num_samples=12", "--max_images=20", "--num_reference=16",
                                         "--reference=digits:test"]),
        ):  # fmt: skip
            command = [f"--workdir={workdir}", *own]
            if count == 1:
                assert main([*command, "--nocompilation_cache"]) == 0
                continue
            processes = HostProcesses(tmp_path / verb, verb, command)
            assert processes.codes() == [0, 0], processes.all_output()
            assert [line for line in processes.lines(1) if line.strip()] == [] and processes.errors(1) == ""
        outputs[count] = {
            "new": np.load(out / "new.npz")["arr_0"].astype(int),
            "found": json.loads((out / "evaluation.json").read_text()),
        }
    two, one = outputs[2], outputs[1]
    np.testing.assert_allclose(two["new"], one["new"], atol=1)
    assert np.mean(two["new"] != one["new"]) < 0.01
    bits = [found["found"]["bits_per_dim"]["total"] for found in (two, one)]
    assert bits[0]["mean"] == pytest.approx(bits[1]["mean"], rel=1e-5)
    # A grey level in 2 % of 12 pictures moves a distance of pixels by far less.
    scores = [found["found"]["samples"][0]["numbers"]["frechet"] for found in (two, one)]
    assert scores[0] == pytest.approx(scores[1], rel=0.02)


class TestFlags:
    def how(self, environ=None, **flags):
        given = dict(coordinator=None, num_processes=None, process_id=None, heartbeat_seconds=100) | flags
        return _how_to_join(argparse.Namespace(**given), environ or {})

    def test_alone_unless_told(self):
        assert self.how() is None
        # In a batch script, outside srun: SLURM_NTASKS is that of the job, and nobody else was started.
        assert self.how({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None
        assert self.how({"TPU_WORKER_HOSTNAMES": "localhost"}) is None

    @pytest.mark.parametrize(
        "environ",
        [
            {"SLURM_STEP_NUM_TASKS": "4"},
            {"OMPI_COMM_WORLD_SIZE": "2"},
            {"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"},
            {"MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1:8080"},
        ],
    )
    def test_a_launcher_is_recognised(self, environ):
        assert self.how(environ) == {}
        assert self.how(environ, coordinator="none") is None

    def test_by_hand(self):
        assert self.how(coordinator="auto") == {}
        assert self.how(coordinator="node1:1234", num_processes=2, process_id=1) == {
            "coordinator_address": "node1:1234",
            "num_processes": 2,
            "process_id": 1,
        }

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (dict(num_processes=2), "^--num_processes=2 needs --coordinator=HOST:PORT, where process 0 listens$"),
            (dict(process_id=0), "^--process_id=0 needs --coordinator=HOST:PORT"),
            (dict(coordinator="node1"), "^--coordinator must be HOST:PORT, 'auto' or 'none'; got 'node1'$"),
            (dict(coordinator="node1:99", process_id=0), "^--coordinator=node1:99 needs --num_processes$"),
            (dict(coordinator="node1:99", num_processes=2), "^--coordinator=node1:99 needs --process_id$"),
            (
                dict(coordinator="node1:99", num_processes=2, process_id=2),
                r"^--process_id must be in 0..1, below --num_processes; got 2$",
            ),
            (dict(coordinator="node1:99999", num_processes=1, process_id=0), "^--coordinator must be HOST:PORT"),
            (dict(coordinator="h:99", num_processes=0, process_id=0), "^--num_processes must be at least 1; got 0$"),
            (dict(heartbeat_seconds=10**9), "^--heartbeat_seconds must be at most 86400; got 1000000000$"),
            (dict(heartbeat_seconds=1), "^--heartbeat_seconds must be at least 10; got 1$"),
        ],
    )
    def test_what_does_not_fit(self, flags, message):
        with pytest.raises(UserError, match=message):
            self.how(**flags)
