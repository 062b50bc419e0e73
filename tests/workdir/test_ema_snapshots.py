"""Snapshots of averages: complete or absent, the same bits however they are sharded, and never of other updates."""

import errno
import os
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.runtime import disk_space, multi_host
from ddpm_jax.runtime.disk_space import DiskFullError
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.workdir import ema_snapshots
from ddpm_jax.workdir.cleanup import delete_unfinished
from ddpm_jax.workdir.ema_snapshots import EmaSnapshots, due_steps, snapshot_bytes

RNG = np.random.default_rng(0)
TREE = {"conv": {"kernel": RNG.standard_normal((8, 3)), "bias": RNG.standard_normal(3)}, "scale": np.float32(2)}
TREE = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), TREE)
AVERAGES = {"std_0.05": TREE, "std_0.1": jax.tree.map(lambda leaf: leaf + 1, TREE)}


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b))


def files_in(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_written_is_read(tmp_path):
    snapshots = EmaSnapshots(tmp_path)
    assert snapshots.steps() == []
    for step in (10, 9, 100):
        snapshots.write(step, AVERAGES)
    assert snapshots.steps() == [9, 10, 100]
    assert all(same(snapshots.read(10, name), tree) for name, tree in AVERAGES.items())
    assert snapshot_bytes(AVERAGES) == 2 * 4 * (8 * 3 + 3 + 1)


def test_arrays_over_eight_devices_give_the_same_files(tmp_path):
    EmaSnapshots(tmp_path / "one").write(3, AVERAGES)
    mesh = Mesh(np.array(jax.devices()), "x")

    def spread(leaf):
        axes = PartitionSpec("x") if leaf.ndim == 2 else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, axes))

    EmaSnapshots(tmp_path / "eight").write(3, jax.tree.map(spread, AVERAGES))
    assert files_in(tmp_path / "one") == files_in(tmp_path / "eight")


def test_snapshots_after_a_step_are_moved_aside(tmp_path, capsys):
    snapshots = EmaSnapshots(tmp_path)
    snapshots.move_aside_after(0)  # there are none
    for step in (4, 8, 12):
        snapshots.write(step, AVERAGES)
    content = files_in(tmp_path / "ema_snapshots" / "12")
    snapshots.move_aside_after(12)
    assert capsys.readouterr().err == ""
    snapshots.move_aside_after(8)
    aside = tmp_path / "superseded_ema_snapshots"
    assert capsys.readouterr().err == f"note: moved the EMA snapshots [12], later than step 8, to {aside}\n"
    assert snapshots.steps() == [4, 8]
    snapshots.write(12, dict(reversed(AVERAGES.items())))
    snapshots.move_aside_after(0)
    assert snapshots.steps() == []
    assert sorted(path.name for path in aside.iterdir()) == ["12", "12_1", "4", "8"]
    assert files_in(aside / "12") == content


@pytest.mark.parametrize("point", ["folder", "save", "manifest", "move"])
def test_any_error_of_process_0_is_told_to_the_others(tmp_path, monkeypatch, point):
    """They wait for its broadcast: without it they would wait for ever."""
    told = []
    monkeypatch.setattr(multi_host, "broadcast_from_first", lambda number: told.append(int(number)) or number)

    def fails(*args, **kwargs):
        raise TypeError("of a library")

    snapshots = EmaSnapshots(tmp_path)
    snapshots.write(4, AVERAGES)
    assert set(told) == {0}
    module, name = {"folder": (os, "makedirs"), "save": (ema_snapshots, "save"),
                    "manifest": (ema_snapshots, "write_manifest"), "move": (shutil, "move")}[point]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fails)
        with pytest.raises(TypeError, match="^of a library$"):
            snapshots.move_aside_after(0) if point == "move" else snapshots.write(8, AVERAGES)
    assert told[-1] == 1 and snapshots.steps() == [4]
    monkeypatch.setattr(multi_host, "is_first", lambda: False)  # another process, which is told the same
    monkeypatch.setattr(multi_host, "broadcast_from_first", lambda number: 1)
    with pytest.raises(OSError, match=" could not be written by process 0$"):
        snapshots.move_aside_after(0) if point == "move" else snapshots.write(8, AVERAGES)


@pytest.mark.parametrize("damage", ["bit", "short", "gone", "manifest", "folder"])
def test_damage_is_one_line(tmp_path, damage):
    snapshots = EmaSnapshots(tmp_path)
    snapshots.write(7, AVERAGES)
    folder = tmp_path / "ema_snapshots" / "7"
    file = folder / "std_0.1" / "arrays.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "short":
        file.write_bytes(content[:-4])
    elif damage == "gone":
        file.unlink()
    elif damage == "manifest":
        (folder / "manifest.json").unlink()
    else:
        shutil.rmtree(file.parent)
    with pytest.raises(UserError, match="^the EMA snapshot of step 7 in .* cannot be read ") as caught:
        snapshots.read(7, "std_0.1")
    assert "\n" not in str(caught.value) and "move it away" in str(caught.value)
    if damage != "manifest":
        assert same(snapshots.read(7, "std_0.05"), TREE)


@pytest.mark.parametrize("point", ["arrays", "manifest", "rename"])
def test_a_kill_while_writing_leaves_nothing_that_is_believed(tmp_path, monkeypatch, point):
    class Killed(BaseException):
        """Not an error that the code could answer."""

    def killed(*args):
        raise Killed

    snapshots = EmaSnapshots(tmp_path)
    snapshots.write(2, AVERAGES)
    replace = os.replace
    module, name, function = {
        "arrays": (ema_snapshots, "save", killed),
        "manifest": (ema_snapshots, "write_manifest", killed),
        # The manifest is renamed too.
        "rename": (os, "replace", lambda a, b: killed() if str(b).endswith("4") else replace(a, b)),
    }[point]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, function)
        with pytest.raises(Killed):
            snapshots.write(4, AVERAGES)
    assert snapshots.steps() == [2]
    assert (tmp_path / "ema_snapshots" / ".4.part").exists()
    delete_unfinished(tmp_path)
    assert [path.name for path in (tmp_path / "ema_snapshots").iterdir()] == ["2"]
    snapshots.write(4, AVERAGES)
    assert same(snapshots.read(4, "std_0.1"), AVERAGES["std_0.1"])


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    snapshots = EmaSnapshots(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(ema_snapshots, "save", full)
        with pytest.raises(DiskFullError, match="^no room on the disk: the EMA snapshot of step 4 could not be "):
            snapshots.write(4, AVERAGES)
    assert os.listdir(tmp_path / "ema_snapshots") == []
    free = type("Usage", (), {"free": 1_000_100})
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(DiskFullError, match="the EMA snapshot of step 4 needs about 1.0 MB, and"):
        snapshots.write(4, AVERAGES)
    assert snapshots.steps() == []


@pytest.mark.parametrize(("num_snapshots", "num_steps"), [(1, 10), (4, 10), (7, 100), (50, 2400), (12, 12), (50, 8)])
def test_snapshots_are_evenly_spaced(num_snapshots, num_steps):
    steps = due_steps(num_snapshots, num_steps)
    assert steps[-1] == num_steps and len(steps) == min(num_snapshots, num_steps) and steps[0] >= 1
    gaps = np.diff([0, *steps])
    assert gaps.min() >= num_steps // num_snapshots and gaps.max() <= -(-num_steps // num_snapshots)
