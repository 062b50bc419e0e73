"""The largest networks trace and shard for eight devices, without one of their parameters being made.

Compiled here is a network of as wide layers and of every kind, with fewer of them; the whole 114 M and 554 M networks
are compiled by `pytest -m slow tests/benchmarking/test_big_models.py`, some minutes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

HERE = Path(__file__).parent
# One picture on each device: the program is the same as of more, its buffers are smaller.
SETTINGS = ("train.num_devices=8", "mesh.fsdp=8", "train.batch_size=8", "sample.batch_size=8")


def result_of(tmp_path, until, config, *overrides):
    out = tmp_path / "result.json"
    path = os.pathsep.join([str(HERE.parents[1]), *sys.path])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    if jax.config.jax_compilation_cache_dir:
        environment["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    command = [sys.executable, str(HERE / "big_model.py"), str(out), until, config, *SETTINGS, *overrides]
    subprocess.run(command, env=environment, check=True, timeout=1200)
    return json.loads(out.read_text())


def check_shards(result, num_params):
    """Nearly all of it is cut into eighths."""
    assert result["num_params"] == num_params and result["partitions"] == 1
    assert result["cut_share"] > 0.999
    size = result["bytes"]
    assert num_params * 4 / 8 <= size["params"] < 1.01 * num_params * 4 / 8
    assert size["ema"] == size["gradients"] == size["params"]
    assert size["optimizer"] == pytest.approx(2 * size["params"], rel=1e-6)


def check_compiled(result):
    """The compiler holds what was predicted, and the key; and far from all parameters of all devices."""
    size = result["bytes"]
    assert result["arguments"] == sum(size[name] for name in ("params", "ema", "optimizer", "batch")) + 8
    assert result["temporaries"] > size["gradients"]
    assert result["peak_kib"] < 6 * 2**20


@pytest.mark.processes
def test_a_wide_network_compiles_for_eight_devices(tmp_path):
    fewer = ("unet.num_res_blocks=1", "unet.channel_mults=2,4", "unet.attention_resolutions=128")
    result = result_of(tmp_path, "compile", "celeba_hq_256", *fewer)
    check_shards(result, 41_274_883)
    check_compiled(result)


@pytest.mark.processes
def test_554_million_are_sharded_over_eight_devices(tmp_path):
    check_shards(result_of(tmp_path, "lower", "guided_imagenet256"), 553_838_086)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "num_params"), [("celeba_hq_256", 113_673_219), ("guided_imagenet256", 553_838_086)]
)
def test_whole_networks_compile_for_eight_devices(tmp_path, config, num_params):
    result = result_of(tmp_path, "compile", config)
    check_shards(result, num_params)
    check_compiled(result)
