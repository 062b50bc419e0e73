"""OpenAI's checkpoints by the names of the models: what each config says, and what is refused.

That the weights give the same output, and the counts, is tests/parity/test_parity_openai.py.
"""

import functools

import jax
import numpy as np
import pytest
from PIL import Image
from test_torch_files import Stored, tensor, zip_file

from ddpm_jax import convert, edit
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.classifier import open_classifier
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.model_factory import build_network
from ddpm_jax.experiment.open_run import open_run
from ddpm_jax.experiment.resume import saved_state
from ddpm_jax.interchange.imported_model import shapes_of
from ddpm_jax.interchange.openai import MODELS, openai_matches, read_openai, read_openai_as
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
    with pytest.raises(UserError, match=r"^model must be one of .*'64x64_difusion'; did you mean '64x64_diffusion'"):
        read_openai({}, "64x64_difusion")
    with pytest.raises(UserError, match="^cifar10_uncond_50M_500K lacks "):
        read_openai({}, "cifar10_uncond_50M_500K.pt")
    assert len(MODELS) == 23


@pytest.mark.parametrize("name", MODELS)
def test_what_a_published_config_says(name):
    """The READMEs' flags, and the defaults of the code where they are silent."""
    config = load_config(MODELS[name].experiment, MODELS[name].changes)
    unet, guided = config.unet, MODELS[name].experiment.startswith("guided")
    assert (unet.norm_eps, unet.embedding_order, unet.embedding_spacing) == (1e-5, "cos_sin", "half")
    assert unet.down_padding == ("end" if guided else "both")  # theirs has no such convolution where blocks resample
    assert unet.resample_in_blocks == guided
    assert unet.scale_shift_norm == (not name.startswith("lsun_uncond"))
    cosine, enlarges = name.startswith(("cifar10", "imagenet64", "64x64")), name.startswith("upsample") or "_up" in name
    assert config.schedule.name == ("cosine" if cosine else "linear")
    assert config.schedule.num_steps == (4000 if (cosine or enlarges) and not guided else 1000)
    assert config.diffusion.variance == "learned_range"
    assert config.diffusion.loss == ("rescaled_vlb" if "vlb" in name else "hybrid")
    assert config.sample.sampler == "ancestral" and config.sample.respacing == "250"
    assert config.objective.name == ("classifier" if name.endswith("classifier") else "diffusion")
    with_dropout = {"cifar10": 0.3, "64x64_d": 0.1, "lsun_be": 0.1, "lsun_ca": 0.1, "lsun_ho": 0.1}
    dropout = next((rate for start, rate in with_dropout.items() if name.startswith(start)), 0.0)
    assert unet.dropout == (0.0 if name.endswith("nodropout") else dropout)
    labelled = name == "imagenet64_cond_270M_250K" or name.endswith(("_diffusion", "_classifier")) or enlarges
    assert config.model.num_classes == (1000 if labelled else 0)
    task = (config.condition.task, config.condition.factor, config.condition.upsampling, config.condition.augmentation)
    assert task == ("super_resolve" if enlarges else "", 4, "bilinear", "none")


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


def upsampler_fields(*more):
    return [*SMALL, "model.num_classes=3", "sample.respacing=4", *more]


@pytest.fixture(scope="module")
def upsampler_tensors():
    return random_tensors(load_config("guided_64to256", upsampler_fields()))


def test_the_channels_of_x_t_come_before_those_of_the_small_image(upsampler_tensors):
    """Closed form: a first layer that reads one channel alone, at the centre of its window, and passes it on."""
    config = load_config("guided_64to256", upsampler_fields())
    network, kernel = build_network(config), np.zeros_like(upsampler_tensors["input_blocks.0.0.weight"])
    assert kernel.shape == (8, 6, 3, 3)
    kernel[0, 1, 1, 1] = kernel[1, 5, 1, 1] = 1.0  # green of x_t, blue of the small image
    change = {"input_blocks.0.0.weight": kernel, "input_blocks.0.0.bias": np.zeros(8, np.float32)}
    params = read_openai_as({**upsampler_tensors, **change}, config).params
    x_t, shown = np.random.default_rng(0).standard_normal((2, 1, 8, 8, 3)).astype(np.float32)
    condition = {"label": np.array([1]), "shown": shown}
    is_first = lambda module, _: module.name == "conv_in"  # noqa: E731
    apply_fn = jax.jit(functools.partial(network.apply, capture_intermediates=is_first))
    _, seen = apply_fn({"params": params}, x_t, np.array([3]), condition)
    out = seen["intermediates"]["conv_in"]["__call__"][0]
    np.testing.assert_array_equal(out[..., :2], np.stack([x_t[..., 1], shown[..., 2]], axis=-1))


def test_an_upsampler_by_the_command(upsampler_tensors, tmp_path, capsys):
    """It is described as what it is, and the command that is proposed enlarges images by it."""
    path, workdir = torch_file(tmp_path / "ema_0.9999_500000.pt", upsampler_tensors), tmp_path / "run"
    fields = upsampler_fields("data.name=image_folder", "data.eval_split=")
    flags = [f"--config.{field}" for field in fields]
    assert convert.main([f"--from={path}", "--architecture=guided_64to256", f"--workdir={workdir}", *flags]) == 0
    shown = capsys.readouterr().out
    assert "parameters for images of 8x8x3 with 3 classes, from openai\n" in shown
    assert "enlarges  images of 2x2x3, 4 times\n" in shown and "sampler   ancestral, 4 network calls" in shown
    advice = f"--workdir={workdir} --what=super_resolve --images=SMALL_IMAGES --classes=CLASS --out={workdir}/enlarged"
    assert f"next: python -m ddpm_jax.edit {advice}\n" in shown
    run, small = open_run(str(workdir)), np.random.default_rng(0).integers(0, 256, (2, 2, 2, 3), dtype=np.uint8)
    expected = read_openai_as(upsampler_tensors, load_config("guided_64to256", fields))
    assert jax.tree.all(jax.tree.map(np.array_equal, run.params, expected.params))
    assert run.config == expected.config and run.image_task.factor == 4
    np.savez(tmp_path / "small.npz", images=small)
    flags = advice.replace("SMALL_IMAGES", str(tmp_path / "small.npz")).replace("CLASS", "1").split()
    assert edit.main([*flags, "--batch_size=8"]) == 0, capsys.readouterr()
    results = [np.asarray(Image.open(workdir / "enlarged" / f"{number}.png")) for number in range(2)]
    assert results[0].shape == (8, 8, 3) and np.any(results[0] != results[1])


def test_a_network_that_enlarges_nothing_is_no_upsampler(upsampler_tensors):
    """And the other way round; in one line each."""
    first = "input_blocks.0.0.weight"
    for experiment, given in (("guided_64to256", 3), ("guided_imagenet64", 6)):
        wrong = {**upsampler_tensors, first: upsampler_tensors[first][:, :given]}
        with pytest.raises(UserError) as refused:
            read_openai_as(wrong, load_config(experiment, upsampler_fields("unet.head_channels=0")))
        what = f"{first} of the file is float32 (8, {given}, 3, 3), which does not fit conv_in/kernel"
        assert str(refused.value).startswith(what) and "\n" not in str(refused.value)
