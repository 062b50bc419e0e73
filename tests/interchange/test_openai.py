"""OpenAI's checkpoints by the names of the models: what each config says, and what is refused.

That the weights give the same output, and the counts, is tests/parity/test_parity_openai.py.
"""

import jax
import numpy as np
import pytest
from test_torch_files import Stored, tensor, zip_file

from ddpm_jax import convert
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.classifier import open_classifier
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.model_factory import build_network
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.experiment.resume import saved_state
from ddpm_jax.interchange.imported_model import shapes_of
from ddpm_jax.interchange.openai import MODELS, REFUSED, openai_matches, read_openai, read_openai_as
from ddpm_jax.interchange.tensor_mapping import tensors_from
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.workdir.checkpoints import Checkpoints

SMALL = [
    "unet.channels=8", "unet.num_groups=4", "unet.num_res_blocks=1", "unet.attention_resolutions=4",
    "unet.channel_mults=1,2", "data.image_size=8,8", "unet.num_heads=2",
]  # fmt: skip
CONFIG = load_config("improved_cifar10", SMALL)


@pytest.fixture(scope="module")
def matches():
    return openai_matches(build_network(CONFIG), shapes_of(CONFIG), "heads_first")


@pytest.fixture(scope="module")
def tensors():
    return random_tensors(CONFIG)


def random_tensors(config):
    """Random ones under their names; q, k and v as one."""
    rng, found, shapes = np.random.default_rng(0), {}, shapes_of(config)
    for match in openai_matches(build_network(config), shapes, "heads_first"):
        shape = shapes[match.ours]
        if "qkv" in match.theirs:
            shape = (3 * shape[-1], shape[0], 1) if len(shape) == 2 else (3 * shape[0],)
        else:
            shape = match.layout.to_theirs(np.zeros(shape)).shape
        found[match.theirs] = rng.standard_normal(shape).astype(np.float32)
    return found


def torch_file(path, tensors):
    """The tensors in a file as `torch.save` writes it."""
    storages, value = {}, {}
    for number, (name, array) in enumerate(tensors.items()):
        storages[str(number)] = array.tobytes()
        strides = tuple(np.array(array.strides) // 4)
        value[name] = tensor(Stored("FloatStorage", str(number), array.size), array.shape, tuple(map(int, strides)))
    return zip_file(path, value, storages)


def test_float16_becomes_float32(tensors):
    half = {name: array.astype(np.float16) for name, array in tensors.items()}
    params = read_openai_as(half, CONFIG).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(params["conv_in"]["bias"], half["input_blocks.0.0.bias"].astype(np.float32))


def test_one_set_of_weights(tensors):
    imported = read_openai_as(tensors, CONFIG)
    assert imported.ema_params is imported.params and "one set of weights" in imported.notes[0]


def test_the_order_of_the_fused_layer_is_heard(tensors):
    first, second = (
        read_openai_as(tensors, CONFIG, qkv_order=order).params["middle_attention"]["query"]["bias"]
        for order in ("heads_first", "qkv_first")
    )
    fused = tensors["middle_block.1.qkv.bias"]  # 16 channels in 2 heads
    np.testing.assert_array_equal(first, np.concatenate([fused[:8], fused[24:32]]))
    np.testing.assert_array_equal(second, fused[:16])


@pytest.mark.parametrize(
    "change,parts",
    [
        ({"out.2.bias": None}, ["the file lacks out.2.bias: its config describes another network"]),
        ({"label_emb.weight": np.zeros((5, 32))}, ["has, but the network of its config lacks, label_emb.weight"]),
        ({"input_blocks.0.0.weight": np.zeros((8, 6, 3, 3))}, ["(8, 6, 3, 3), which does not fit conv_in/kernel"]),
        ({"middle_block.1.qkv.weight": np.zeros((47, 16, 1))}, ["middle_block.1.qkv.weight", "(47, 16, 1)"]),
        ({"middle_block.1.qkv.weight": np.zeros(48)}, ["middle_block.1.qkv.weight", "(48,)"]),
        ({"middle_block.1.qkv.bias": np.zeros(())}, ["middle_block.1.qkv.bias", "()"]),
    ],
)
def test_another_network_is_refused(tensors, change, parts):
    given = {name: array for name, array in {**tensors, **change}.items() if array is not None}
    with pytest.raises(UserError) as error:
        read_openai_as(given, CONFIG)
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_there_is_no_way_back(matches, tensors):
    with pytest.raises(UserError, match="^weights can be imported from files of OpenAI's code, but not exported"):
        tensors_from(matches, read_openai_as(tensors, CONFIG).params)


def test_models_that_are_none_of_ours():
    for name in ("64_256_upsampler", "upsample_cond_500K.pt"):
        with pytest.raises(UserError) as error:
            read_openai({}, name)
        assert str(error.value).startswith(f"{name.removesuffix('.pt')} is an upsampler")
        assert "take one of ['128x128_classifier', '128x128_diffusion'" in str(error.value)
    with pytest.raises(UserError, match=r"^model must be one of .*'64x64_difusion'; did you mean '64x64_diffusion'"):
        read_openai({}, "64x64_difusion")
    with pytest.raises(UserError, match="^cifar10_uncond_50M_500K lacks "):
        read_openai({}, "cifar10_uncond_50M_500K.pt")
    assert len(MODELS) == 20 and len(REFUSED) == 3 and not MODELS.keys() & REFUSED.keys()


@pytest.mark.parametrize("name", MODELS)
def test_what_a_published_config_says(name):
    """The READMEs' flags, and the defaults of the code where they are silent."""
    config = load_config(MODELS[name].experiment, MODELS[name].changes)
    unet, guided = config.unet, MODELS[name].experiment.startswith("guided")
    assert (unet.norm_eps, unet.embedding_order, unet.embedding_spacing) == (1e-5, "cos_sin", "half")
    assert unet.down_padding == ("end" if guided else "both")  # theirs has no such convolution where blocks resample
    assert unet.resample_in_blocks == guided
    assert unet.scale_shift_norm == (not name.startswith("lsun_uncond"))
    cosine = name.startswith(("cifar10", "imagenet64", "64x64"))
    assert config.schedule.name == ("cosine" if cosine else "linear")
    assert config.schedule.num_steps == (4000 if cosine and not guided else 1000)
    assert config.diffusion.variance == "learned_range"
    assert config.diffusion.loss == ("rescaled_vlb" if "vlb" in name else "hybrid")
    assert config.sample.sampler == "ancestral" and config.sample.respacing == "250"
    assert config.objective.name == ("classifier" if name.endswith("classifier") else "diffusion")
    with_dropout = {"cifar10": 0.3, "64x64_d": 0.1, "lsun_be": 0.1, "lsun_ca": 0.1, "lsun_ho": 0.1}
    dropout = next((rate for start, rate in with_dropout.items() if name.startswith(start)), 0.0)
    assert unet.dropout == (0.0 if name.endswith("nodropout") else dropout)
    labelled = name == "imagenet64_cond_270M_250K" or name.endswith(("_diffusion", "_classifier"))
    assert config.model.num_classes == (1000 if labelled else 0)


@pytest.mark.parametrize("order", ["heads_first", "qkv_first"])
def test_a_file_of_their_trainer_by_the_command(order, tensors, tmp_path):
    """ema_0.9999_050000.pt does not say which network it is of: --architecture does."""
    path = torch_file(tmp_path / "ema_0.9999_050000.pt", tensors)
    flags = [f"--config.{field}" for field in SMALL] + [f"--qkv_order={order}"] * (order != "heads_first")
    argv = [f"--from={path}", "--architecture=improved_cifar10", f"--workdir={tmp_path / 'run'}", *flags]
    assert convert.main(argv) == 0
    run = open_run(str(tmp_path / "run"))
    expected = read_openai_as(tensors, CONFIG, qkv_order=order)
    assert jax.tree.all(jax.tree.map(np.array_equal, run.params, expected.params))
    assert run.config == expected.config


def test_a_classifier_by_the_command(tmp_path, capsys):
    """It is read, described as what it is, opened, and is where a training begins."""
    of_classifier = [*SMALL, "objective.name=classifier", "model.num_classes=10", "data.num_channels=1"]
    config = load_config("improved_cifar10", of_classifier)
    tensors = random_tensors(config)
    assert tensors["out.2.positional_embedding"].shape == (16, 1 + 4 * 4)
    path, workdir = torch_file(tmp_path / "model300000.pt", tensors), tmp_path / "run"
    flags = [f"--config.{field}" for field in [*of_classifier, "data.name=digits", "data.eval_split=test"]]
    assert convert.main([f"--from={path}", "--architecture=improved_cifar10", f"--workdir={workdir}", *flags]) == 0
    shown = capsys.readouterr().out
    assert "parameters for images of 8x8x1 with 10 classes, from openai\n" in shown
    assert "predicts  the class of a noised image\n" in shown and "sampler" not in shown
    assert f"sample --workdir=DIR_OF_A_MODEL --classifier={workdir} --classifier_scale=1\n" in shown
    imported = open_classifier(workdir)
    expected = read_openai_as(tensors, config).params
    assert jax.tree.all(jax.tree.map(np.array_equal, imported.params, expected))
    fused = tensors["out.2.qkv_proj.bias"]  # always all q, then all k, then all v
    np.testing.assert_array_equal(imported.params["pool"]["key"]["bias"], fused[16:32])
    checkpoints = Checkpoints(str(workdir))
    begun = saved_state(build_experiment(imported.config), checkpoints)
    checkpoints.close()
    for tree in (begun.params, begun.ema_params):
        assert jax.tree.all(jax.tree.map(np.array_equal, tree, expected))
