"""The prediction before a run: bytes and operations against closed forms, real arrays and the compiler."""

import json

import jax
import jax.numpy as jnp
import pytest

from ddpm_jax import benchmark
from ddpm_jax.benchmarking.memory_variants import build_variants
from ddpm_jax.benchmarking.text_tables import counted, mebibytes
from ddpm_jax.benchmarking.virtual_devices import use_virtual_devices
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_files import changed
from ddpm_jax.experiment.program_costs import (
    flops,
    lower_forward,
    sampler_step_flops,
    step_memory,
    train_step_flops,
)
from ddpm_jax.experiment.state_sizes import average_bytes, kept_bytes, residual_bytes, state_bytes
from ddpm_jax.runtime.errors import UserError

WIDE = ("conv_net.channels=32",)  # of the small run: arrays that are large enough to be cut by FSDP
CUT = (*WIDE, "train.num_devices=8", "mesh.fsdp=4")


def on_first_device(tree):
    """Bytes of real arrays on the first device."""
    shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == jax.devices()[0])


def test_state_bytes_are_those_of_the_arrays(tiny_config):
    experiment = build_experiment(tiny_config(*CUT))
    state, sizes = experiment.fresh_state(), state_bytes(experiment)
    assert sizes["params"] == sizes["gradients"] == on_first_device(state.params)
    assert sizes["ema"] == on_first_device(state.ema)
    assert sizes["optimizer"] == on_first_device((state.step, state.opt_state, state.extra))
    assert sizes["batch"] == 1 * 8 * 8 * 1  # one picture of eight on each device
    whole = state_bytes(build_experiment(tiny_config(*WIDE, "train.num_devices=8")))
    assert 0.25 * whole["params"] < sizes["params"] < 0.5 * whole["params"]


def test_each_average_costs_a_copy_of_the_parameters(tiny_config):
    experiment = build_experiment(tiny_config(*CUT, "optim.ema_decays=0.5,0.999,0.9"))
    sizes, averages = state_bytes(experiment), average_bytes(experiment)
    assert list(averages) == ["0.5", "0.999", "0.9"]  # as in the config
    assert set(averages.values()) == {sizes["params"]} and sizes["ema"] == 3 * sizes["params"]
    one = state_bytes(build_experiment(tiny_config(*CUT)))
    assert one | {"ema": 3 * one["ema"]} == sizes


def test_residuals_are_what_the_way_back_needs():
    """Of sin(x W): cos(x W) [6, 5], and x, which is an input; of a sum of W nothing."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 5), (6, 3))]
    assert residual_bytes(lambda weight, x: jnp.sin(x @ weight), *shapes) == 6 * 5 * 4
    assert residual_bytes(lambda weight, x: jnp.sum(weight) + jnp.sum(x), *shapes) == 0


def test_kept_bytes_are_of_the_pictures_that_a_device_has_at_once(tiny_config):
    def kept(*overrides):
        return kept_bytes(build_experiment(tiny_config("train.batch_size=64", *overrides)))

    half = kept("train.batch_size=32")
    assert half == kept("train.grad_accum_steps=2") == kept("train.num_devices=2")
    # But for what is of no picture: the frequencies of the embedding and the like.
    assert half == pytest.approx(kept() / 2, rel=0.01)


def test_remat_and_bfloat16_keep_less(tiny_config):
    plain, remat, low = (
        kept_bytes(build_experiment(tiny_config("model.name=unet", "unet.channels=16", *override)))
        for override in ((), ("model.remat=true",), ("model.dtype=bfloat16",))
    )
    assert remat < 0.4 * plain and low < plain


def test_a_multiply_add_is_two_operations():
    product = jax.jit(jnp.matmul).lower(jnp.zeros((7, 11)), jnp.zeros((11, 13)))
    assert flops(product) == flops(product.compile()) == 2 * 7 * 11 * 13


def test_operations_of_a_step(tiny_config):
    """As many in one part as in four, as many on one device as on eight, and per picture the same."""
    step = train_step_flops(build_experiment(tiny_config(*WIDE)))
    for same in (("train.grad_accum_steps=4",), ("train.num_devices=8",)):
        assert train_step_flops(build_experiment(tiny_config(*WIDE, *same))) == step
    call = sampler_step_flops(build_experiment(tiny_config(*WIDE)))
    twice = sampler_step_flops(build_experiment(tiny_config(*WIDE, "sample.batch_size=16")))
    assert twice == pytest.approx(2 * call, rel=0.01)  # but for what is done once for all
    # Both batches are of 8: the backward pass is twice the forward pass, but for the first layer's input.
    assert step == pytest.approx(3 * call, rel=0.1)


def test_operations_with_self_conditioning(tiny_config):
    """A step is three forward passes; half of the steps make one more."""
    wide = (*WIDE, "diffusion.self_conditioning=true")
    experiment = build_experiment(tiny_config(*wide))
    forward = flops(lower_forward(experiment)) / experiment.sample_batch_size * experiment.batch_size
    for rate in (0.5, 1.0):
        counted = train_step_flops(build_experiment(tiny_config(*wide, f"diffusion.self_conditioning_rate={rate}")))
        # The optimiser and the losses are some percent of it.
        assert counted / forward == pytest.approx(3 + rate, rel=0.05)


def test_the_compiler_agrees_about_the_state(tiny_config):
    experiment = build_experiment(tiny_config(*CUT))
    memory, sizes = step_memory(experiment), state_bytes(experiment)
    key = 2 * 4
    assert memory.arguments == sum(sizes[name] for name in ("params", "ema", "optimizer", "batch")) + key
    assert memory.temporaries > 0


def test_accumulation_divides_the_temporaries(tiny_config):
    """A narrow network on many pictures, whose temporaries are its activations."""
    whole, parts = (
        step_memory(build_experiment(tiny_config("train.batch_size=512", f"train.grad_accum_steps={n}"))).temporaries
        for n in (1, 4)
    )
    # What does not shrink is the batch in float32, x_0 and eps: under a tenth of the activations.
    assert whole / 4 < parts < whole / 4 + 0.1 * whole


def test_rows_that_do_not_fit_say_why(tiny_config):
    config = tiny_config("train.num_devices=2")
    variants, left_out = build_variants(config)
    assert [variant.name for variant in variants] == [
        "given", "remat", "bfloat16", "remat_bfloat16", "accum_2", "accum_4", "fsdp_2"
    ]  # fmt: skip
    assert left_out["plain"] == left_out["fsdp_1"] == "the same as given"
    assert left_out["accum_8"].startswith("train.batch_size must be a multiple of 16 (2 devices times 8 parts); got 8")
    assert left_out["fsdp_4"].startswith("mesh.fsdp must divide the number of devices, 2")
    assert variants[1].experiment.config.model.remat and not config.model.remat
    chosen, _ = build_variants(config, ["fsdp_2", "given"])
    assert [variant.name for variant in chosen] == ["fsdp_2", "given"]
    assert changed(config, variants[1].changes).to_json() == variants[1].experiment.config.to_json()


def test_devices_are_chosen_before_jax_starts():
    use_virtual_devices(8)  # as many as the tests have
    with pytest.raises(UserError, match="--devices=9 needs a process of its own: JAX already runs here, on 8 cpu dev"):
        use_virtual_devices(9)
    with pytest.raises(UserError, match=r"--devices must be in 1\.\.1024; got 0"):
        use_virtual_devices(0)


def test_numbers_as_text():
    assert [mebibytes(number) for number in (0, 1, 2**20, 1234 * 2**20)] == ["0", "0.1", "1.0", "1,234.0"]
    assert [counted(number) for number in (94_464_995_491_840, 999, 1e15)] == ["94.46 T", "999 ", "1 P"]


@pytest.fixture
def command(tiny_flags, capfd):
    def command(*flags):
        code = benchmark.main([*tiny_flags, *flags])
        return code, *capfd.readouterr()

    return command


def test_the_command_prints_and_writes(command, tmp_path):
    out = tmp_path / "new" / "dry.json"
    flags = ("--config.mesh.fsdp=8", "--config.optim.ema_decays=0.995,0.9", "--rows=given,remat", f"--out={out}")
    code, text, _ = command("--dry_run", "--devices=8", *flags)
    assert code == 0
    report = json.loads(out.read_text())
    assert report["rows"].keys() == {"given", "remat"} and report["mesh"] == {"data": 1, "fsdp": 8}
    row = report["rows"]["given"]
    assert row["total"] == row["arguments"] + row["temporaries"] > row["params"]
    assert f"{report['num_params']:,} parameters" in text and "data 1 x fsdp 8" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert list(report["averages"]) == ["0.995", "0.9"] and sum(report["averages"].values()) == row["ema"]
    for name, num_bytes in report["averages"].items():
        assert f"ema/{name} {mebibytes(num_bytes)} MiB on each device" in lines
    state, step = ("params", "ema", "optimizer", "batch", "gradients", "kept"), ("arguments", "temporaries", "total")
    for columns in (state, step):
        wanted = " ".join(["given", *(mebibytes(row[column]) for column in columns)])
        assert any(line.startswith(wanted) for line in lines), wanted
    assert f"{counted(report['train_step_flops'])} for 8 images" in text


def test_the_command_without_a_compilation(command):
    """Without --rows it is of the config as given alone."""
    code, text, progress = command("--dry_run", "--nocompile")
    assert code == 0 and "FLOPs" in text and "compile s" not in text and "temporaries" not in text
    assert [line for line in progress.splitlines() if "tracing" in line] == ["tracing given ..."]
    code, text, progress = command("--dry_run", "--nocompile", "--rows=all")
    assert code == 0 and "tracing remat_bfloat16 ..." in progress


@pytest.mark.parametrize(
    "flags,message",
    [
        ((), "what to do? give either --dry_run, to predict, or --what=train,forward,sample, to measure"),
        (("--dry_run", "--what=train"), "what to do? give either --dry_run"),
        (("--what=train", "--rows=given"), "--rows needs --dry_run: leave it out"),
        (("--what=train", "--devices=2"), "--devices needs --dry_run: leave it out"),
        (("--what=",), "--what must name something to measure, from ['compile', 'data', 'forward', 'sample', 'train']"),
        (("--what=speed",), "--what must be one of ['compile', 'data', 'forward', 'sample', 'train']; got 'speed'"),
        (("--what=train", "--dtype=half"), "model.dtype must be one of ['bfloat16', 'float32']; got 'half'"),
        (("--what=train", "--batch_size=0"), "train.batch_size must be"),
        (("--what=train", "--repeats=2"), "--repeats must be at least 3, for a median with quartiles; got 2"),
        (("--dry_run", "--rows=remats"), "--rows must be one of"),
        (("--dry_run", "--devices=3"), "train.batch_size must be a multiple of 3 (3 devices); got 8: take 6"),
        (("--dry_run", "--devices=0"), "--devices must be in 1..1024; got 0"),
        (("--dry_run", "--config.mesh.fsdp=3"), "mesh.fsdp must divide the number of devices, 1"),
        (("--dry_run", "--out=/proc/none/x.json"), "--out: the folder /proc/none cannot be written"),
    ],
)
def test_mistakes_are_one_line(command, flags, message):
    code, _, err = command(*flags)
    assert code == 2 and err.startswith(f"error: {message}") and len(err.splitlines()) == 1, err
