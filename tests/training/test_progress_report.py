"""A run's numbers in metrics.jsonl, in TensorBoard events and on the screen; a resume leaves no doubles."""

import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.runtime import progress
from ddpm_jax.runtime.atomic_files import replace_file
from ddpm_jax.runtime.progress import ProgressBar, format_duration
from ddpm_jax.training.run_log import Reporter, num_damaged_lines, read_metrics


class Clock:
    """Seconds that only the test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def strict_lines(workdir):
    def refuse(constant):
        raise AssertionError(f"not strict JSON: {constant}")

    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events_of(workdir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(workdir))
    events.Reload()
    return events


def test_metrics_file(tmp_path):
    clock = Clock()
    with Reporter(tmp_path / "new", clock=clock, print_line=lambda line: None) as reporter:
        clock.now += 2.5
        reporter.log(10, {"loss": jnp.float32(0.5), "grad_norm": np.float32(1), "count": 3})
        # Readable while the run goes on.
        assert strict_lines(tmp_path / "new") == [
            {"step": 10, "seconds": 2.5, "loss": 0.5, "grad_norm": 1.0, "count": 3.0}
        ]


def test_values_that_json_lacks(tmp_path):
    with Reporter(tmp_path, print_line=lambda line: None) as reporter:
        reporter.log(1, {"loss": math.nan, "grad_norm": math.inf})
    line = strict_lines(tmp_path)[0]
    assert line["loss"] is None and line["grad_norm"] is None
    assert math.isnan(read_metrics(tmp_path)[0]["loss"])


def test_resume_drops_later_and_torn_lines(tmp_path):
    clock = Clock()
    with Reporter(tmp_path, clock=clock, print_line=lambda line: None) as reporter:
        for step in (10, 20, 30):
            clock.now += 1
            reporter.log(step, {"loss": math.nan if step == 10 else step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 15, "lo')
    with Reporter(tmp_path, start_step=20, clock=clock, print_line=lambda line: None) as reporter:
        clock.now += 5
        reporter.log(30, {"loss": 31.0})
    assert [(line["step"], line["seconds"], line["loss"]) for line in strict_lines(tmp_path)] == [
        (10, 1, None), (20, 2, 20.0), (30, 7, 31.0)
    ]
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_events(tmp_path):
    pytest.importorskip("tensorboardX")
    with Reporter(tmp_path, print_line=lambda line: None) as reporter:
        reporter.log(10, {"loss": 0.5})
        reporter.log(20, {"loss": 0.25})
        reporter.image("samples", np.zeros((8, 6, 3), np.uint8), 20)
        reporter.image("grey", np.zeros((8, 6), np.uint8), 20)
    events = events_of(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 0.5), (20, 0.25)]
    assert (events.Images("samples")[0].width, events.Images("samples")[0].height) == (6, 8)
    assert events.Images("grey")[0].step == 20


def test_events_after_resume_hold_each_step_once(tmp_path):
    pytest.importorskip("tensorboardX")
    with Reporter(tmp_path, print_line=lambda line: None) as reporter:
        for step in (10, 20, 30):
            reporter.log(step, {"loss": 1.0})
    with Reporter(tmp_path, start_step=10, print_line=lambda line: None) as reporter:
        reporter.log(20, {"loss": 2.0})
    assert [(e.step, e.value) for e in events_of(tmp_path).Scalars("loss")] == [(10, 1.0), (20, 2.0)]


def test_without_tensorboardx(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    lines = []
    with Reporter(tmp_path, print_line=lines.append) as reporter:
        reporter.image("samples", np.zeros((8, 6, 3), np.uint8), 20)
        reporter.log(1, {"loss": 1.0})
        reporter.log(2, {"loss": 1.0})
    assert [line for line in lines if "TensorBoard" in line] == [
        "no TensorBoard events, because tensorboardX is not installed: pip install tensorboardX"
    ]


def test_screen_lines(tmp_path):
    clock, lines = Clock(), []
    with Reporter(tmp_path, num_steps=1000, clock=clock, print_line=lines.append) as reporter:
        clock.now += 60  # compiles
        values = {"grad_norm": 0.51234, "loss": 1.03, "learning_rate": 2e-4, "images_per_second": 1834.2}
        reporter.log(100, values)
        clock.now += 10
        reporter.log(200, {"loss": 0.0312, "eval_loss": 0.5, "loss_t1of4": 0.1, "seconds_per_step": 0.1})
        clock.now += 10
        reporter.log(1000, {"loss": math.nan})
        reporter.note("done")
    assert lines == [
        "step  100/1000  loss 1.03000  lr 2.00e-04  grad norm 0.5123  images/s  1834",
        "step  200/1000  loss 0.03120  eval loss 0.50000  1 min 20 s left",
        "step 1000/1000  loss     nan",
        "done",
    ]


def test_time_left_counts_from_the_resumed_step(tmp_path):
    clock, lines = Clock(), []
    with Reporter(tmp_path, start_step=500, num_steps=1000, clock=clock, print_line=lines.append) as reporter:
        clock.now += 30  # compiles
        reporter.log(600, {})
        clock.now += 10
        reporter.log(700, {"seconds_per_step": 0.1})
    assert lines == ["step  600/1000", "step  700/1000  30 s left"]


def test_time_left_is_that_of_updates_and_of_the_checkpoints_to_come(tmp_path):
    """A report after a stop, with few steps and a long pause, does not count the pause for every step."""
    clock, lines = Clock(), []
    settings = dict(num_steps=6000, checkpoint_every_steps=1000, clock=clock, print_line=lines.append)
    with Reporter(tmp_path, **settings) as reporter:
        clock.now += 60
        reporter.log(100, {})
        clock.now += 3 * 0.7 + 23  # a stop: 3 steps, then the held-out loss
        reporter.log(103, {"seconds_per_step": 0.7})
        clock.now += 897 * 0.7
        reporter.log(1000, {"seconds_per_step": 0.7})
        clock.now += 1000 * 0.7 + 30
        reporter.log(2000, {"seconds_per_step": 0.7})
    found = read_metrics(tmp_path)
    assert "seconds_left" not in found[0]
    assert found[1]["seconds_left"] == pytest.approx(5897 * 0.7)
    assert found[2]["seconds_left"] == pytest.approx(5000 * 0.7)  # no pause at that checkpoint
    assert found[3]["seconds_left"] == pytest.approx(4000 * 0.7 + 4 * (0 + 30) / 2)
    assert found[3]["seconds_to_checkpoint"] == pytest.approx(1000 * 0.7)


def test_disabled_does_nothing(tmp_path, capsys):
    with Reporter(tmp_path / "other", enabled=False) as reporter:
        reporter.log(1, {"loss": object()})  # not even read: that would wait for the device
        reporter.image("samples", np.zeros((8, 6, 3), np.uint8), 1)
        reporter.note("hello")
    assert not (tmp_path / "other").exists()
    assert capsys.readouterr() == ("", "")


def test_close_twice_and_log_after(tmp_path):
    reporter = Reporter(tmp_path, print_line=lambda line: None)
    reporter.close()
    reporter.close()
    reporter.log(1, {"loss": 1.0})
    assert read_metrics(tmp_path) == []


def test_replace_file_keeps_the_old_one_after_an_error(tmp_path):
    path = tmp_path / "sub" / "file.txt"
    with replace_file(path, "w") as file:
        file.write("old")
    with pytest.raises(RuntimeError), replace_file(path, "w") as file:
        file.write("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (42.4, "42 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"),
     (3 * 86400 + 4 * 3600, "3 d 04 h")],
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text


def test_progress_lines_in_a_log(capsys):
    clock = Clock()
    with ProgressBar(100, "sampling", "image", every_seconds=30, clock=clock) as bar:
        for _ in range(100):
            clock.now += 1
            bar.update()
    assert capsys.readouterr().err.splitlines() == [
        "sampling:  30/100 images, 1 images/s, 1 min 10 s left",
        "sampling:  60/100 images, 1 images/s, 40 s left",
        "sampling:  90/100 images, 1 images/s, 10 s left",
        "sampling: 100/100 images, 1 images/s, took 1 min 40 s",
    ]


def test_progress_after_resume_and_disabled(capsys):
    clock = Clock()
    with ProgressBar(100, "training", initial=50, every_seconds=10, clock=clock) as bar:
        clock.now += 10
        bar.update(10)
        clock.now += 10
        bar.update(20)
    assert capsys.readouterr().err.splitlines() == [
        "training:  60/100 steps, time left unknown", "training:  80/100 steps, 2 steps/s, 10 s left",
    ]  # fmt: skip
    with ProgressBar(1, "training", enabled=False) as bar:
        bar.update()
        bar.write("hello")
    assert capsys.readouterr().err == ""


def test_the_rate_is_that_after_the_first_update(capsys):
    """Which waits for the compiler."""
    clock = Clock()
    with ProgressBar(5, "sampling", every_seconds=30, clock=clock) as bar:
        for seconds in (60, 2, 2, 2, 2):
            clock.now += seconds
            bar.update()
    assert capsys.readouterr().err.splitlines() == [
        "sampling: 1/5 steps, time left unknown", "sampling: 5/5 steps, 0.5 steps/s, took 1 min 08 s",
    ]  # fmt: skip
    with ProgressBar(2, "sampling", clock=clock) as bar:
        clock.now += 60
        bar.update(2)
    assert capsys.readouterr().err == "sampling: 2/2 steps, took 1 min 00 s\n"


def test_progress_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    with ProgressBar(4, "sampling", "image") as bar:
        bar.update(1)
        bar.update(3)
        bar.write("a line")
    err = capsys.readouterr().err
    assert "sampling: 100%" in err and "4/4" in err and "a line\n" in err


DAMAGED_LINES = [
    b'{"step": "x"}', b'{"step": 1, "loss": Infinity}', b'{"step": -1}', b"[" * 5000, b"\x80", b"5", b'{"a": 1}',
    b'{"step": true}', b'{"step": 1e400}', b"",
]  # fmt: skip


def test_damaged_lines_are_left_out_with_a_note(tmp_path):
    good = [b'{"step": 1, "loss": 0.5, "seconds": 3}', b'{"step": 2, "loss": null, "seconds": 4}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([good[0], *DAMAGED_LINES, good[1]]) + b"\n")
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert num_damaged_lines(tmp_path) == len(DAMAGED_LINES)
    printed = []
    with Reporter(tmp_path, start_step=2, print_line=printed.append):
        pass
    said = f"{len(DAMAGED_LINES)} damaged lines are left out, and kept in metrics.jsonl.damaged"
    assert printed == [f"note: {tmp_path}/metrics.jsonl: {said}"]
    kept = (tmp_path / "metrics.jsonl.damaged").read_bytes().split(b"\n")
    assert kept == [line for line in DAMAGED_LINES if line] + [b""]
    before = (tmp_path / "metrics.jsonl").stat().st_mtime_ns
    with Reporter(tmp_path, start_step=2, print_line=printed.append):
        pass
    assert len(printed) == 1 and (tmp_path / "metrics.jsonl").stat().st_mtime_ns == before  # nothing to do
    assert num_damaged_lines(tmp_path) == 0 and [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_no_flipped_bit_stops_a_log(tmp_path):
    """Each line but the one with the bit is read as before."""
    text = b"".join(b'{"step": %d, "loss": 0.%d, "seconds": 3.5}\n' % (step, step) for step in range(1, 4))
    for byte in range(len(text)):
        for bit in range(8):
            damaged = bytearray(text)
            damaged[byte] ^= 1 << bit
            (tmp_path / "metrics.jsonl").write_bytes(damaged)
            others = {step for step in range(1, 4) if step != text[:byte].count(b"\n") + 1}
            read = {line["step"] for line in read_metrics(tmp_path)}
            assert others <= read or text[byte : byte + 1] == b"\n"  # a line end that is lost joins two lines
