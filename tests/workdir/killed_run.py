"""`python tests/workdir/killed_run.py POINT COUNT WHEN FLAGS...`: `ddpm_jax.train FLAGS`, which kills itself (SIGKILL).

At the COUNT-th passage of POINT, "before" or "after" it (WHEN):
  step      a train step
  save      the call that starts a save; Orbax then works in the background
  rename    of a file or folder of the workdir: Orbax's commit of an item or a step, the manifest, config.json
  manifest  the writing of a manifest, which follows the commit
  fsync     inside that: the manifest is written, under another name
  delete    of a file or folder of the workdir, as when an old checkpoint goes
  any       any of these
  never
"""

import os
import signal
import sys
import threading

POINT, COUNT, WHEN = sys.argv[1], int(sys.argv[2]), sys.argv[3]
WORKDIR = next(flag.partition("=")[2] for flag in sys.argv if flag.startswith("--workdir="))
_lock, _passed = threading.Lock(), 0


def killing(point, function, counts=lambda *args, **kwargs: True):
    """`function`, which counts as a passage of `point` where counts says so of its arguments."""

    def wrapped(*args, **kwargs):
        global _passed
        kills = False
        if POINT in (point, "any") and counts(*args, **kwargs):
            with _lock:
                _passed += 1
                kills = _passed == COUNT
        if kills and WHEN == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return function(*args, **kwargs)
        finally:  # also where it failed, as the deletion of what is gone already
            if kills:
                os.kill(os.getpid(), signal.SIGKILL)

    return wrapped


def in_workdir(path, *others, dir_fd=None):
    """Names relative to an open folder are those of shutil.rmtree."""
    return dir_fd is not None or (isinstance(path, str | os.PathLike) and os.fspath(path).startswith(WORKDIR))


def patch():
    from ddpm_jax.experiment import build
    from ddpm_jax.workdir import checkpoint_manifest, checkpoints

    for name in ("rename", "replace"):
        setattr(os, name, killing("rename", getattr(os, name), in_workdir))
    for name in ("unlink", "remove", "rmdir"):
        setattr(os, name, killing("delete", getattr(os, name), in_workdir))
    checkpoints.write_manifest = killing("manifest", checkpoints.write_manifest)
    checkpoint_manifest.os.fsync = killing("fsync", os.fsync)
    manager = checkpoints.ocp.CheckpointManager
    manager.save = killing("save", manager.save)
    make_step = build.Experiment.jitted_step

    def jitted_step(self):
        step_fn = make_step(self)
        wrapped = killing("step", step_fn)
        wrapped.lower = step_fn.lower  # its operations are counted before it runs
        return wrapped

    build.Experiment.jitted_step = jitted_step


if __name__ == "__main__":
    patch()
    from ddpm_jax.train import main

    sys.exit(main(sys.argv[4:]))
