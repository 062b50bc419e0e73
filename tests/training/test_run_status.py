"""`train --status`: what a run's workdir says of it, from another terminal."""

import json
import os
import socket

import pytest

from ddpm_jax import train as train_command
from ddpm_jax.training.run_status import status_lines


def said(workdir, **kwargs):
    return {line.split(" ", 1)[0]: line[10:] for line in status_lines(str(workdir), **kwargs)}


def files_of(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_a_finished_run(straight_run, capsys):
    before = files_of(straight_run)
    assert train_command.main(["--status", f"--workdir={straight_run}"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"workdir   {straight_run}"
    assert out[1].startswith("state     finished, last report ")
    assert out[2] == "step      8 of 8 (100.0%)"
    assert any(line.startswith("saved     checkpoints of step 2, 4, 6, 8; the newest from 20") for line in out)
    assert files_of(straight_run) == before


def test_speed_time_and_losses_are_those_of_the_file(own_run):
    line = {
        "step": 6, "seconds": 125.0, "loss": 0.5, "loss_t1of4": 1.0, "loss_t2of4": 0.5, "loss_t3of4": 0.25,
        "loss_t4of4": 0.125, "eval_loss": 0.75, "images_per_second": 1234.0, "data_wait": 0.25, "share_of_peak": 0.125,
        "loader_images_per_second": 2000.0, "seconds_left": 62.0, "seconds_to_checkpoint": 31.0,
    }  # fmt: skip
    earlier = {"step": 4, "seconds": 1, "eval_loss": 0.5}
    (own_run / "metrics.jsonl").write_text(json.dumps(earlier) + "\n" + json.dumps(line))
    found = said(own_run, clock=lambda: os.path.getmtime(own_run / "metrics.jsonl") + 65)
    assert found["state"] == "not running; the same command resumes it, last report 1 min 05 s ago"
    assert found["step"] == "6 of 8 (75.0%)"
    assert found["speed"] == (
        "1234 images/s, 12.5% of the peak measured on these devices, 25% of the time waiting for data, "
        "data loader alone 2000 images/s"
    )
    assert found["time"] == "2 min 05 s so far, 1 min 02 s left, next checkpoint in 31 s (as of the last report)"
    assert found["loss"] == (
        "0.50000, by quarter of t 1.0000 0.5000 0.2500 0.1250, held out 0.75000 (best 0.50000 at step 4)"
    )
    assert "trouble" not in found


def test_who_trains(own_run):
    lock = own_run / "train.lock"

    def hold(pid, host):
        lock.write_text(json.dumps({"pid": pid, "host": host, "since": "2026-01-02T03:04:05+00:00"}))
        return said(own_run)["state"]

    here = socket.gethostname()
    assert hold(os.getpid(), here).startswith(f"running: process {os.getpid()} on {here}, since 2026-01-02T03:04:05+")
    assert hold(2**22 + 1, here).startswith("finished")  # above the largest process number: killed
    assert hold(7, "elsewhere").startswith("running: process 7 on elsewhere, since ")
    lock.write_text("")
    assert said(own_run)["state"].startswith("running: another run")


def test_trouble_is_said(own_run):
    (own_run / "nonfinite").mkdir()
    (own_run / "nonfinite" / "step_00000005.json").write_text("{}")
    (own_run / "rewinds.json").write_text("[]")
    (own_run / "damaged_checkpoints" / "6").mkdir(parents=True)
    assert said(own_run)["trouble"] == (
        "steps with NaN or infinite values: 1, listed in nonfinite/; rewinds, listed in rewinds.json; "
        "damaged checkpoints moved aside: 6"
    )


def test_a_run_that_has_just_begun(own_run):
    (own_run / "metrics.jsonl").unlink()
    found = said(own_run)
    assert found["step"] == "none reported yet, of 8" and "speed" not in found and "loss" not in found


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=/nowhere/at/all"], "error: --workdir must be the folder of a training run; there is no '/nowhere"),
        (["--workdir=/"], "error: --workdir / holds no training run: it has no config.json"),
        ([], "error: the following arguments are required: --workdir"),
    ],
)
def test_what_is_no_run(flags, message, capsys):
    assert train_command.main(["--status", *flags]) == 2
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"train": 3}', '{"train": {"num_steps": 0}}', "[" * 5000,
                                  '{"train": {"num_steps": 1e400}}'])  # fmt: skip
def test_a_damaged_config_is_one_line(text, own_run, capsys):
    (own_run / "config.json").write_text(text)
    assert train_command.main(["--status", f"--workdir={own_run}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {own_run}/config.json cannot be read (") and err.count("\n") == 1


def test_numbers_that_are_null_or_missing(own_run):
    nulls = {"loss": None, "seconds_left": None, "images_per_second": None}
    lines = [{"step": 4} | nulls, {"step": "damaged"}, {"step": 6} | nulls]
    (own_run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = said(own_run)
    assert found["step"].startswith("6 of 8") and "damaged lines in metrics.jsonl: 1" in found["trouble"]
