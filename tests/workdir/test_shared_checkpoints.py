"""Two real processes share a workdir: damage and a held lock are one answer for both."""

import jax
import pytest
from host_processes import HostProcesses

from ddpm_jax.workdir.checkpoint_manifest import MANIFEST, verify
from ddpm_jax.workdir.lock import LOCK_FILE, WorkdirLock


@pytest.fixture(scope="module")
def flags(tiny_flags):
    return [flag for flag in tiny_flags if "num_devices" not in flag and "cache" not in flag]


@pytest.mark.processes
def test_both_fall_back_and_one_writes_the_manifest(own_run, flags, tmp_path):
    assert jax.process_count() == 1  # here; below there are two
    path = max((own_run / "checkpoints" / "8" / "params" / "d").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    processes = HostProcesses(tmp_path / "two", "train", [*flags, f"--workdir={own_run}"])
    assert processes.codes() == [0, 0], processes.all_output()
    warning = f"warning: the checkpoint of step 8 in {own_run}/checkpoints cannot be read (params/d/"
    assert warning in processes.errors(0)
    assert any("resuming from step 6" in line for line in processes.lines(0))
    saved = own_run / "checkpoints" / "8"
    assert (saved / MANIFEST).exists() and verify(saved, ("params", "ema_params", "opt_state", "config", "metrics"))
    assert not (own_run / LOCK_FILE).exists()


@pytest.mark.processes
def test_both_are_refused(own_run, flags, tmp_path):
    lock = WorkdirLock(own_run)
    processes = HostProcesses(tmp_path / "two", "train", [*flags, f"--workdir={own_run}"])
    codes = processes.codes()
    lock.release()
    assert codes == [2, 2], processes.all_output()
    assert f"error: --workdir {own_run} is in use: process " in processes.errors(0)
