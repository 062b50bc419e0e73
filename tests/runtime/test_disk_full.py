"""A disk without room: one line, exit code 74, everything that was committed stays, and with room it goes on."""

import errno
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ddpm_jax import train as train_command
from ddpm_jax.experiment import training, training_samples
from ddpm_jax.runtime import disk_space
from ddpm_jax.runtime.disk_space import DiskFullError, check_room, disk_full_as_user_error, folder_bytes, is_full
from ddpm_jax.training.jsonl_writer import JsonlWriter
from ddpm_jax.training.run_log import Reporter, read_metrics
from ddpm_jax.training.tensorboard_events import TensorboardEvents

FULL = OSError(errno.ENOSPC, "No space left on device", "/disk/file")
# Trains without asking for room first, so that Orbax's own threads find the disk full; or with a limit on the size of
# a file, which every system permits.
CHILD = """
import resource, sys
from ddpm_jax import train
from ddpm_jax.workdir import checkpoints
if sys.argv[1] == "unasked":
    checkpoints.check_room = lambda *args: None
if sys.argv[1] == "small files":
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
sys.exit(train.main(sys.argv[2:]))
"""


class SmallDisk:
    """A file system of its own in memory."""

    def __init__(self, path):
        self.path = path

    def mount(self, kilobytes, options="size"):
        command = ["mount", "-t", "tmpfs", "-o", f"{options}={kilobytes}k", "tmpfs", str(self.path)]
        return subprocess.run(command, capture_output=True, text=True)

    def grow(self, kilobytes):
        assert self.mount(kilobytes, "remount,size").returncode == 0

    def fill(self):
        with open(self.path / "filler", "wb", buffering=0) as file:
            with pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(bytes(4096))


@pytest.fixture
def small_disk(tmp_path):
    disk = SmallDisk(tmp_path / "disk")
    disk.path.mkdir()
    try:
        mounted = disk.mount(800)  # three checkpoints of 220 to 240 kB in pages and small files, and no fourth
    except FileNotFoundError:
        pytest.skip("no command `mount` here")
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk.path)], check=True)


def train(how, flags, workdir):
    cache = str(jax.config.jax_compilation_cache_dir or workdir.parent / "cache")
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                        "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}  # fmt: skip
    flags = [flag for flag in flags if flag != "--nocompilation_cache"]
    command = [sys.executable, "-c", CHILD, how, *flags, f"--workdir={workdir}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("drawing ")]
    return done.returncode, lines


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.processes
def test_a_disk_that_fills_up_and_is_given_room(small_disk, tiny_flags, straight_run, state_of):
    workdir = small_disk.path / "run"
    code, lines = train("unasked", tiny_flags, workdir)
    saved = sorted(int(name) for name in names_in(workdir / "checkpoints"))  # and nothing unfinished
    assert code == 74 and saved and saved[-1] < 8 and len(lines) == 1, lines
    before = f"error: no room on the disk: the checkpoint after step {saved[-1]} "
    remedy = "; free some space, then the same command resumes from the last checkpoint"
    assert lines[0].startswith(before + "could not be saved, and ") and lines[0].endswith(remedy)
    left = folder_bytes(workdir)
    for _ in range(2):  # without room: at once, and nothing piles up
        code, lines = train("", tiny_flags, workdir)
        assert code == 74 and len(lines) == 1
        assert lines[0].startswith(before + "needs about ") and lines[0].endswith(remedy)
        assert folder_bytes(workdir) == left
    small_disk.grow(8000)
    assert train("", tiny_flags, workdir) == (0, [])
    one, other = state_of(workdir, 8), state_of(straight_run, 8)
    assert all(one[name].tobytes() == other[name].tobytes() for name in other)
    assert [line["step"] for line in read_metrics(workdir)] == [2, 4, 6, 8]


@pytest.mark.processes
def test_a_limit_on_the_size_of_files(tiny_flags, straight_run, tmp_path):
    """As a used-up quota: the disk says that it has room, and Orbax's threads find that it has not."""
    code, lines = train("small files", tiny_flags, tmp_path / "run")
    assert code == 74 and not any("Traceback" in line for line in lines), lines
    assert lines[-1].startswith("error: no room on the disk: the first checkpoint could not be saved, and ")
    assert names_in(tmp_path / "run" / "checkpoints") == []


def test_no_room_for_the_first_checkpoint(tiny_flags, tmp_path, monkeypatch, capsys):
    """Before any step, and with the figures: the arrays of the state and a margin."""
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    assert train_command.main([*tiny_flags, f"--workdir={tmp_path}"]) == 74
    shown = capsys.readouterr()
    assert "step 2/8" not in shown.out and not (tmp_path / "metrics.jsonl").exists()
    assert shown.err == (
        f"error: no room on the disk: the first checkpoint needs about 1.0 MB, and {tmp_path}/checkpoints has "
        "1.0 MB free (a quota may allow less); free some space, then the same command resumes from the last "
        "checkpoint\n"
    )


def test_a_finished_run_needs_no_room(own_run, tiny_flags, monkeypatch):
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    assert train_command.main([*tiny_flags, f"--workdir={own_run}"]) == 0


def test_room_is_compared(tmp_path):
    free = disk_space.shutil.disk_usage(tmp_path).free
    check_room(tmp_path, free // 2, "it")
    with pytest.raises(DiskFullError, match="^no room on the disk: it needs about .* TB, and"):
        check_room(tmp_path, 10**15 + free, "it")


def test_what_says_that_the_disk_is_full():
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert is_full(OSError(number, "")) and is_full(ValueError(f"a file: [os_error_code='{number}']"))
    try:
        try:
            raise FULL
        except OSError as error:
            raise RuntimeError("in between") from error
    except RuntimeError as error:
        assert is_full(error)
    assert not is_full(OSError(errno.EACCES, "")) and not is_full(ValueError("28"))
    with pytest.raises(PermissionError), disk_full_as_user_error("/"):
        raise PermissionError(errno.EACCES, "")
    with pytest.raises(DiskFullError, match="/disk/file could not be written, and / has"), \
            disk_full_as_user_error("/"):  # fmt: skip
        raise FULL


def test_sizes_are_written_for_a_person():
    assert [disk_space.size_text(n) for n in (0, 999, 1000, 1_234_567, 10**9, 2 * 10**15)] == [
        "0 bytes", "999 bytes", "1.0 kB", "1.2 MB", "1.0 GB", "2000.0 TB"
    ]  # fmt: skip


# Pictures, numbers, events


def fail(*args, **kwargs):
    raise FULL


def test_pictures_in_between_are_left_out(tiny_config, tmp_path, monkeypatch, capsys, straight_run, state_of):
    monkeypatch.setattr(training_samples, "save_picture", fail)
    monkeypatch.setattr(training, "draw_final", lambda *args, **sizes: None)
    assert training.train(tiny_config("train.sample_every_steps=4"), str(tmp_path)) is None
    warning = "warning: the images of step_00000004 could not be written, because the disk is full; training continues"
    assert warning in capsys.readouterr().err.splitlines()
    one, other = state_of(tmp_path, 8), state_of(straight_run, 8)
    assert all(one[name].tobytes() == other[name].tobytes() for name in other)


def test_the_last_pictures_are_drawn_by_the_next_start(own_run, tiny_flags, monkeypatch, capsys):
    (own_run / "samples" / "denoising.gif").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(training_samples, "save_picture", fail)
        assert train_command.main([*tiny_flags, f"--workdir={own_run}"]) == 74
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: no room on the disk: /disk/file could not be ")
    assert train_command.main([*tiny_flags, f"--workdir={own_run}"]) == 0
    assert (own_run / "samples" / "denoising.gif").exists()


def test_lines_wait_for_room(small_disk, capsys):
    path = small_disk.path / "lines"
    lines = JsonlWriter(path)
    lines.append("a" * 3000)
    small_disk.fill()
    for letter in "bcd":  # the first of them goes over the end of a block
        lines.append(letter * 3000)
    assert path.read_text() == "a" * 3000 + "\n"  # not a part of a line
    assert capsys.readouterr().err == (
        f"warning: {path} cannot be written (No space left on device): its lines are kept in memory until it can\n"
    )
    (small_disk.path / "filler").unlink()
    lines.append("e")
    lines.close()
    lines.close()
    assert path.read_text().split("\n") == ["a" * 3000, "b" * 3000, "c" * 3000, "d" * 3000, "e", ""]
    assert capsys.readouterr().err == f"warning: {path} can be written again, and is complete\n"


def test_lines_that_never_find_room(small_disk, capsys):
    lines = JsonlWriter(small_disk.path / "lines")
    small_disk.fill()
    lines.append("b" * 5000)
    lines.append("c")
    lines.close()
    assert capsys.readouterr().err.splitlines()[1:] == [
        f"warning: {small_disk.path}/lines lacks its last 2 lines (No space left on device)"
    ]


def test_events_end_and_do_not_hold_up_the_run(small_disk, capsys):
    """tensorboardX's own writer waits for ever here: its thread has died, and nobody empties its queue."""
    pytest.importorskip("tensorboardX")
    ticks = iter(range(0, 10**9, 1000))  # each event is flushed
    events = TensorboardEvents(small_disk.path, 0, clock=lambda: next(ticks))
    events.scalar("loss", 1.0, 1)
    small_disk.fill()
    for step in range(1000):
        events.scalar("loss", 1.0, step)
        events.image("noise", np.zeros((8, 8), np.uint8), step)
    events.close()
    assert capsys.readouterr().err == (
        "warning: no more TensorBoard events, because they cannot be written (No space left on device); "
        "metrics.jsonl has the same numbers\n"
    )


def test_a_reporter_on_a_full_disk(small_disk, capsys):
    small_disk.fill()
    with Reporter(small_disk.path, print_line=lambda line: None) as reporter:
        for step in range(50):
            reporter.log(step, {"loss": 1.0})
        (small_disk.path / "filler").unlink()
        reporter.log(50, {"loss": 1.0})
    assert [line["step"] for line in read_metrics(small_disk.path)] == list(range(51))
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_the_bytes_of_a_folder_that_is_being_deleted(tmp_path, monkeypatch):
    """As retention does to a checkpoint while `--status` looks: what is gone counts nothing, and no error comes."""
    for name in ("a/x", "b/y", "b/z"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    assert folder_bytes(tmp_path) == 15
    real = os.scandir

    def scandir(path):
        if path != os.fspath(tmp_path) and (tmp_path / "b").exists():  # the folders are listed, and not yet looked into
            monkeypatch.undo()
            shutil.rmtree(tmp_path / "b")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert folder_bytes(tmp_path) == 5


def test_a_disk_without_inodes_is_said(monkeypatch, tmp_path):
    found = os.statvfs(tmp_path)
    fake = type("Found", (), {"f_files": 1000, "f_favail": 0})
    monkeypatch.setattr(disk_space.os, "statvfs", lambda folder: fake)
    message = str(disk_space.full_error(tmp_path, "the first checkpoint could not be saved"))
    assert f"the disk of {tmp_path} has no inode left for another file; delete some files, then" in message
    monkeypatch.setattr(disk_space.os, "statvfs", lambda folder: found)
    assert "free (a quota may allow less)" in str(disk_space.full_error(tmp_path, "it"))
