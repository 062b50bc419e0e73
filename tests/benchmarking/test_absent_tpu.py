"""Plans for a TPU that is not here: with its compiler where libtpu is, and without it.

libtpu says things whenever JAX starts on a machine without a TPU, so it is best put where these tests alone find it:

    pip install --no-deps --target=/tmp/libtpu libtpu
    PYTHONPATH=/tmp/libtpu pytest tests/benchmarking/test_absent_tpu.py
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from ddpm_jax import benchmark
from ddpm_jax.benchmarking.tpu_topology import absent_tpu
from ddpm_jax.runtime.compilation import compiler_options, quick_compile_options, remat_options
from ddpm_jax.runtime.errors import UserError

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.mark.parametrize(
    "flags,message",
    [
        (("--what=train", "--tpu=v5e:2x2"), "--tpu needs --dry_run: leave it out"),
        (("--dry_run", "--tpu=v5e:2x2", "--devices=4"), "--tpu=v5e:2x2 already sets the number of devices"),
    ],
)
def test_mistakes_are_one_line(tiny_flags, capfd, flags, message):
    assert benchmark.main([*tiny_flags, *flags]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"error: {message}") and len(err.splitlines()) == 1, err


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--tpu needs the TPU's compiler, the package libtpu: pip install"):
        absent_tpu("v5e:2x2")


def test_a_program_for_another_platform_takes_no_option_of_the_cpu():
    for options in (compiler_options, remat_options, quick_compile_options):
        assert options("cpu") == options() and options("tpu") == options("gpu") == {}


@needs_libtpu
def test_no_such_slice():
    with pytest.raises(UserError, match="--tpu must be a slice such as v5e:2x4, v6e:1x1, v4:2x2x1; got 'v5litepod-8'"):
        absent_tpu("v5litepod-8")


@needs_libtpu
def test_the_train_step_compiles_for_a_slice(tiny_flags, tmp_path):
    """Of two hosts of four chips; the TPU's compiler plans the state in parts, and at least the bytes of it."""
    out = tmp_path / "plan.json"
    flags = ["--dry_run", "--tpu=v5e:2x4", "--rows=given", "--config.mesh.fsdp=8", "--dtype=bfloat16", f"--out={out}"]
    command = [sys.executable, "-m", "ddpm_jax.benchmark", *tiny_flags, *flags]
    # libtpu ends the process over a flag of ours that it does not know.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "arning" not in done.stderr, done.stderr
    assert "8 devices of TPU v5 lite: data 1 x fsdp 8" in done.stdout
    report = json.loads(out.read_text())
    row = report["rows"]["given"]
    assert row["arguments"] >= row["params"] + row["ema"] + row["optimizer"] and row["temporaries"] > 0
    assert report["train_step_flops"] > 0
