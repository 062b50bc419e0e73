"""Arrays filled row by row into files: after a stop, a kill or damage they go on to the same rows."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from ddpm_jax.runtime import resumable_arrays
from ddpm_jax.runtime.resumable_arrays import ResumableArrays

ROWS = {"a": ((3,), np.float32), "b": ((2, 2), np.uint8)}


def open_files(folder, facts=None, num_rows=10):
    return ResumableArrays(str(folder / "x"), facts or {"seed": 0}, ROWS, num_rows)


def make(first, num=4):
    n = np.arange(first, first + num)
    return {"a": np.stack([n, n + 0.5, -n], axis=1).astype(np.float32), "b": np.stack([[n, n], [n, n]]).T % 256}


def expected(num_rows=10):
    return {name: np.asarray(rows, ROWS[name][1]) for name, rows in make(0, num_rows).items()}


def check(files):
    assert files.complete
    for name, rows in expected().items():
        np.testing.assert_array_equal(files.arrays[name], rows)
        np.testing.assert_array_equal(np.load(f"{files.folder}/{name}.npy"), rows)


class Stop(BaseException):
    pass


def test_they_are_filled_in_batches_and_end_as_plain_npy_files(tmp_path):
    files, counted = open_files(tmp_path), []
    assert not files.complete and files.num_done == 0
    files.fill(make, on_rows=counted.append)
    check(files)
    assert counted == [4, 4, 2]  # what is beyond the end is left out
    again = open_files(tmp_path)
    check(again)
    again.fill(lambda first: pytest.fail("nothing is missing"))


def test_after_a_stop_they_go_on_and_do_not_begin_anew(tmp_path):
    calls = []

    def stopped(first):
        calls.append(first)
        if first == 8:
            raise Stop
        return make(first)

    files = open_files(tmp_path)
    with pytest.raises(Stop):
        files.fill(stopped)
    # Nobody takes the unfinished file for a finished one.
    assert sorted(p.name for p in (tmp_path / files.folder).iterdir()) == [
        "a.partial.npy", "b.partial.npy", "progress.json"
    ]  # fmt: skip
    # Other facts are another folder.
    assert open_files(tmp_path, {"seed": 1}).num_done == open_files(tmp_path, num_rows=9).num_done == 0
    files = open_files(tmp_path)
    assert files.num_done == 8
    files.fill(lambda first: calls.append(first) or make(first))
    assert calls == [0, 4, 8, 8]
    check(files)


def test_a_kill_loses_what_was_not_kept_and_nothing_else(tmp_path, monkeypatch):
    """The file on disk says 4 rows, whatever lies behind them."""
    monkeypatch.setattr(resumable_arrays, "KEEP_EVERY_SECONDS", 0)
    files = open_files(tmp_path)
    files.write(make(0))  # kept
    monkeypatch.setattr(resumable_arrays, "KEEP_EVERY_SECONDS", 1000)
    files.write({name: np.full_like(rows, 77) for name, rows in make(4).items()})  # not kept, and wrong
    del files
    files = open_files(tmp_path)
    assert files.num_done == 4
    files.fill(make)
    check(files)


def test_a_real_kill(tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(resumable_arrays.__file__.split("/ddpm_jax/")[0])!r})
import numpy as np
from ddpm_jax.runtime import resumable_arrays
resumable_arrays.KEEP_EVERY_SECONDS = 0
rows = {{"a": ((3,), np.float32), "b": ((2, 2), np.uint8)}}
files = resumable_arrays.ResumableArrays({str(tmp_path / "x")!r}, {{"seed": 0}}, rows, 10)
n = np.arange(4)
files.write({{"a": np.stack([n, n + 0.5, -n], axis=1), "b": np.stack([[n, n], [n, n]]).T}})
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    files = open_files(tmp_path)
    assert files.num_done == 4
    files.fill(make)
    check(files)


@pytest.mark.parametrize("harm", ["missing", "cut", "other_shape", "progress"])
def test_what_is_damaged_begins_anew(tmp_path, harm):
    files = open_files(tmp_path)
    files.fill(make)
    path = tmp_path / files.folder / "b.npy"
    if harm == "missing":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:50])
    elif harm == "other_shape":
        np.save(path, np.zeros((3, 2, 2), np.uint8))
    else:
        (tmp_path / files.folder / "progress.json").write_text('{"num_done": "')
    del files
    for _ in range(2):  # also where a process ended before it had kept anything
        files = open_files(tmp_path)
        assert files.num_done == 0
        del files
    files = open_files(tmp_path)
    files.fill(make)
    check(files)
    assert json.loads((tmp_path / files.folder / "progress.json").read_text())["num_done"] == 10


@pytest.mark.parametrize("ending", (".npy", ".partial.npy"))
@pytest.mark.parametrize("size", (130, -10))
def test_a_file_that_was_cut_off_begins_again(tmp_path, ending, size):
    files = open_files(tmp_path)
    with files:
        files.write(make(0))
        files.keep()
        if ending == ".npy":
            files.write(make(4, 6))
    path = f"{files.folder}/a{ending}"
    whole = os.path.getsize(path)
    del files
    os.truncate(path, size % whole)
    again = open_files(tmp_path)
    assert again.num_done == 0
    again.fill(make)
    check(again)


def test_more_rows_done_than_there_are_is_not_believed(tmp_path):
    files = open_files(tmp_path)
    files.write(make(0))
    files.keep()
    path = f"{files.folder}/progress.json"
    found = json.loads(open(path).read())
    open(path, "w").write(json.dumps(found | {"num_done": 100}))
    del files
    assert open_files(tmp_path).num_done == 0


@pytest.mark.processes
def test_another_process_cannot_write_the_same_arrays(tmp_path):
    files = open_files(tmp_path)
    files.write(make(0))
    files.keep()
    code = f"""
import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
from pathlib import Path
from test_resumable_arrays import open_files
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.runtime.resumable_arrays import remove_unused
try:
    open_files(Path({str(tmp_path)!r}))
except UserError as error:
    print(error)
remove_unused({files.folder!r})
"""
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out == f"{files.folder} is written by another process: wait until it ends, or stop it\n"
    files.fill(make)
    check(files)
    folder = files.folder
    del files
    resumable_arrays.remove_unused(folder)
    assert not os.path.exists(folder)
