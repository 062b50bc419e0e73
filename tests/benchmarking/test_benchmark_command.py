"""The measured benchmark: what follows from seconds, and that every program runs and is counted."""

import json

import jax.numpy as jnp
import pytest

from ddpm_jax import benchmark
from ddpm_jax.benchmarking.startup_time import PHASES, startup
from ddpm_jax.runtime.devices import make_mesh
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.runtime.timing import product_peak, repeated, summary


def test_a_summary_follows_from_the_seconds():
    row = summary([0.5, 0.1, 0.2, 0.3, 0.4], num_images=6, flops=90.0, peak=1000.0)
    assert row["repeats"] == 5
    assert (row["seconds_low"], row["seconds"], row["seconds_high"]) == pytest.approx((0.2, 0.3, 0.4))
    assert row["images_per_second"] == pytest.approx(20)
    assert row["flops_per_second"] == pytest.approx(300)
    assert row["share_of_peak"] == pytest.approx(0.3)


def test_warm_up_is_not_counted():
    calls = []
    assert len(repeated(lambda: calls.append(1), repeats=3, warm_up=2)) == 3 and len(calls) == 5


def test_the_peak_is_of_a_product_on_every_device(monkeypatch):
    from ddpm_jax.runtime import timing

    monkeypatch.setattr(timing, "_SIDES", (8, 16))
    monkeypatch.setattr(timing, "repeated", lambda run, repeats: [1.0 if run().shape[1] == 8 else 2.0] * repeats)
    monkeypatch.setattr(timing, "_LONG_ENOUGH", 1.5)
    peak = product_peak(make_mesh(4), jnp.float32)
    assert peak == {"flops_per_second": 4 * 2 * 16**3 / 2, "side": 16}


def test_the_command_measures_and_writes(tiny_flags, tmp_path, capfd):
    flags = ["--what=train,forward,sample", "--repeats=3", f"--out={tmp_path}/new/measured.json"]
    more = ["--config.train.num_devices=2", "--config.mesh.fsdp=2", "--config.model.num_classes=3"]
    assert benchmark.main([*tiny_flags, *flags, *more]) == 0
    text = capfd.readouterr().out
    report = json.loads((tmp_path / "new" / "measured.json").read_text())
    assert report["devices"] == 2 and report["rows"].keys() == {"train", "forward", "sample"}
    for name, row in report["rows"].items():
        assert row["seconds_low"] <= row["seconds"] <= row["seconds_high"]
        assert row["images_per_second"] == pytest.approx(8 / row["seconds"])
        assert row["share_of_peak"] == pytest.approx(row["flops_per_second"] / report["peak"]["flops_per_second"])
        assert any(line.startswith(name) for line in text.splitlines())
    flops = {name: row["flops"] for name, row in report["rows"].items()}
    assert flops["forward"] < flops["sample"] < flops["train"]
    sample = report["rows"]["sample"]
    assert sample["samples_per_second"] == pytest.approx(sample["images_per_second"] / 20)
    assert "ancestral with 20 network calls" in text


def test_the_rate_of_the_data(tiny_flags, tmp_path, capfd):
    assert benchmark.main([*tiny_flags, "--what=data", "--repeats=3", f"--out={tmp_path}/data.json"]) == 0
    found = json.loads((tmp_path / "data.json").read_text())["data"]
    assert found["num_images"] > 0 and found["first_seconds"] > 0 and found["images_per_second"] > 0
    assert f"{found['num_images']:,} images" in capfd.readouterr().out


def test_the_second_start_finds_the_programs_of_the_first(tiny_config):
    """Whatever else the machine does: the warm start writes no program that the cold one did not."""
    found = startup(tiny_config())
    assert found.keys() == {"cold", "warm"}
    for seconds in found.values():
        assert seconds.keys() == {"total", "programs", *PHASES}
        assert seconds["total"] > sum(seconds[phase] for phase in PHASES[:-1])
    assert found["cold"]["programs"] == found["warm"]["programs"] > 0


def test_a_start_that_fails_is_told(tiny_config, monkeypatch):
    config = tiny_config().copy_and_resolve_references().unlock()
    config.train.batch_size = 0
    with pytest.raises(UserError, match="--what=compile: the start failed: .*train.batch_size must be"):
        startup(config)
