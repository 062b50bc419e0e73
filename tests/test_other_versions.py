"""A run begun with other versions of JAX goes on with these, and the other way round.

    DDPM_JAX_OTHER_PYTHON=~/other_env/bin/python pytest -n 0 tests/test_other_versions.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OTHER = os.environ.get("DDPM_JAX_OTHER_PYTHON")
ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not OTHER, reason="DDPM_JAX_OTHER_PYTHON names no Python with other versions of the libraries")
@pytest.mark.parametrize("other_begins", [True, False])
def test_begun_with_one_and_ended_with_the_other(other_begins, tiny_flags, tmp_path):
    def train(python, num_steps):
        # The other Python brings its own libraries.
        path = str(ROOT) if python == OTHER else os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        command = [python, "-m", "ddpm_jax.train", *tiny_flags, f"--config.train.num_steps={num_steps}",
                   f"--workdir={tmp_path / 'run'}"]  # fmt: skip
        env = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0 and "warning:" not in done.stderr, done.stderr
        item = json.loads((tmp_path / "run" / "checkpoints" / str(num_steps) / "config" / "metadata").read_text())
        return done.stdout, item["written_by"]

    _, first = train(OTHER if other_begins else sys.executable, 4)
    said, second = train(sys.executable if other_begins else OTHER, 8)
    assert "resuming from step 4" in said and first != second
