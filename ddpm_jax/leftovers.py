"""What a process that was killed leaves in a workdir, of files and checkpoints in the making."""

import os
import shutil
from pathlib import Path

from ddpm_jax import hosts

# Of Orbax, and of `replace_file`: names before they are the final ones. Only what training itself writes, since
# others may be writing into the workdir meanwhile.
_FOLDERS = "checkpoints/*.orbax-checkpoint-tmp*"
_FILES = (".config.json.*.part", ".metrics.jsonl.*.part", "checkpoints/*/.manifest.json.*.part",
          "samples/.step_*.part", "samples/.final_*.part", "samples/.denoising.*.part")  # fmt: skip


def delete_leftovers(workdir: str | os.PathLike) -> None:
    """Deletes them, on process 0; call it under the workdir's lock alone, and while nothing is being saved."""
    if not hosts.is_first():
        return
    for path in Path(workdir).glob(_FOLDERS):
        # A thread of a save that failed may still be at work in it; the next start deletes what stays.
        shutil.rmtree(path, ignore_errors=True)
    for pattern in _FILES:
        for path in Path(workdir).glob(pattern):
            path.unlink()
