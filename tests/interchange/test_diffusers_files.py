"""Folders of diffusers, written by hand: what is read of them, and what is refused by name."""

import json
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from diffusers_folders import SCHEDULER, UNET, tensors_of, write_folder

from ddpm_jax.interchange.diffusers import read_diffusers, write_diffusers
from ddpm_jax.interchange.diffusers_scheduler import fields_of_scheduler
from ddpm_jax.interchange.tensor_files import read_tensors, write_safetensors
from ddpm_jax.runtime.errors import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def tensors():
    return tensors_of(UNET)


@pytest.fixture
def folder(tmp_path, tensors):
    write_folder(tmp_path / "hub", tensors=tensors)
    return tmp_path / "hub"


def refused(folder, match):
    with pytest.raises(UserError, match=match):
        read_diffusers(folder)


def test_what_a_folder_says_stands_in_the_config(folder, tensors):
    imported = read_diffusers(folder)
    config = imported.config
    assert (config.data.image_size, config.data.num_channels) == ((8, 8), 1)
    assert config.unet.channels == 4 and config.unet.channel_mults == (1, 2)
    assert config.unet.attention_resolutions == (4,) and config.unet.dropout == 0.0
    assert config.schedule.name == "linear" and config.schedule.num_steps == 20
    # Theirs are the betas themselves, ours those of 1000 steps.
    assert config.schedule.beta_end == pytest.approx(0.02 * 20 / 1000)
    assert config.diffusion.variance == "fixed_large" and config.sample.num_sampler_steps == 0
    kernel = tensors["down_blocks.1.attentions.0.to_q.weight"]
    np.testing.assert_array_equal(imported.params["down_1_attention_0"]["query"]["kernel"], kernel.T)
    shortcut = imported.params["up_0_block_0"]["shortcut"]["kernel"]
    np.testing.assert_array_equal(shortcut, tensors["up_blocks.1.resnets.0.conv_shortcut.weight"][:, :, 0, 0].T)
    assert any("does not say which images" in note for note in imported.notes)


def test_widths_that_are_no_multiples(tmp_path):
    write_folder(tmp_path / "hub", UNET | {"block_out_channels": [4, 6]})
    imported = read_diffusers(tmp_path / "hub")
    assert imported.config.unet.channel_mults == (1, 1.5)
    write_diffusers(tmp_path / "back", imported.config, imported.params)
    assert read_diffusers(tmp_path / "back").config == imported.config


def test_classes(tmp_path):
    tensors = write_folder(tmp_path / "hub", UNET | {"num_class_embeds": 10})
    imported = read_diffusers(tmp_path / "hub")
    assert imported.config.model.num_classes == 10
    np.testing.assert_array_equal(imported.params["label_embedding"], tensors["class_embedding.weight"])
    write_diffusers(tmp_path / "back", imported.config, imported.params)
    assert read_diffusers(tmp_path / "back").config == imported.config


def test_a_file_of_weights_is_found_its_configs(folder):
    assert read_diffusers(folder / WEIGHTS).config == read_diffusers(folder).config


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types(folder, tensors, dtype):
    others = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    write_safetensors(folder / WEIGHTS, others, {})
    bias = read_diffusers(folder).params["conv_out"]["bias"]
    assert bias.dtype == np.float32
    np.testing.assert_array_equal(bias, others["conv_out.bias"].astype(np.float32))


def shard(folder, tensors, names=("a.safetensors", "b.safetensors")):
    """Replaces the file of weights by shards and their index."""
    (folder / WEIGHTS).unlink()
    where = {name: names[i % len(names)] for i, name in enumerate(sorted(tensors))}
    for file in names:
        write_safetensors(folder / file, {name: tensors[name] for name in tensors if where[name] == file}, {})
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_a_sharded_index(folder, tensors):
    shard(folder, tensors)
    read, _ = read_tensors(folder / f"{WEIGHTS}.index.json")
    assert read.keys() == tensors.keys() and all(np.array_equal(read[name], tensors[name]) for name in tensors)
    read_diffusers(folder)


def test_damaged_shards_are_named(folder, tensors):
    shard(folder, tensors)
    index = folder / f"{WEIGHTS}.index.json"
    text = json.loads(index.read_text())
    (folder / "b.safetensors").rename(folder / "c.safetensors")
    refused(folder, "names the shard 'b.safetensors', which is missing")
    index.write_text(json.dumps({"weight_map": text["weight_map"] | {"conv_in.bias": "../a.safetensors"}}))
    refused(folder, r"names the shard '\.\./a\.safetensors': shards must be in the folder of their index")
    index.write_text(json.dumps({"weight_map": {name: "a.safetensors" for name in tensors}}))
    refused(folder, r"a\.safetensors lacks .*, which .*index\.json says is in it")
    index.write_text("[]")
    refused(folder, r"index\.json is not a JSON object")
    index.write_text("{}")
    refused(folder, "has no weight_map")


def test_every_truncation_of_a_safetensors_file_is_one_clear_error(folder):
    whole = (folder / WEIGHTS).read_bytes()
    for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:size])
        refused(folder, rf"{WEIGHTS} is damaged or not a")


def test_missing_additional_and_wrong_tensors_are_named(folder, tensors):
    def with_tensors(changed):
        write_safetensors(folder / WEIGHTS, changed, {})

    with_tensors({name: tensor for name, tensor in tensors.items() if name != "conv_in.bias"})
    refused(folder, r"lacks conv_in\.bias: its config describes another network")
    with_tensors(tensors | {"class_embedding.weight": np.zeros((10, 16), np.float32)})
    refused(folder, r"has, but the network of its config lacks, class_embedding\.weight")
    with_tensors(tensors | {"conv_in.weight": tensors["conv_in.weight"][:, :, :2]})
    refused(folder, r"conv_in\.weight of .* is float32 \(4, 1, 2, 3\), which does not fit conv_in/kernel")
    write_folder(folder, UNET | {"block_out_channels": [4, 4]}, tensors=tensors)
    refused(folder, "its config describes another network")


def test_a_hostile_bin_is_named_and_not_executed(folder, tmp_path):
    class Hostile:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path / 'executed'}",)

    (folder / WEIGHTS).unlink()
    with zipfile.ZipFile(folder / "diffusion_pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"conv_in.weight": Hostile()}, protocol=2))
    refused(folder, r"asks for posix\.system.*nothing of it was executed")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "change,match",
    [
        ({"_class_name": "UNet2DConditionModel"}, "is the config of a UNet2DConditionModel"),
        ({"num_class_embeds": -1}, "num_class_embeds=-1, which our U-Net does not support"),
        ({"num_class_embeds": 10}, "lacks class_embedding.weight"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
        ({"add_attention": False}, "add_attention=False"),
        ({"act_fn": "gelu"}, "act_fn='gelu'.*'silu' or 'swish'"),
        ({"mid_block_scale_factor": 1.5}, "mid_block_scale_factor=1.5"),
        ({"some_new_thing": 3}, "the setting some_new_thing=3, which our U-Net does not know"),
        ({"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]}, "must be one of .*got 'SkipDownBlock2D'"),
        ({"down_block_types": ["DownBlock2D"]}, "block_out_channels has 2 levels"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "attention at other levels on the way up"),
        ({"upsample_type": "resnet", "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"]}, "our U-Net uses"),
        ({"block_out_channels": [4, 6]}, "its config describes another network"),
        ({"block_out_channels": "4,8"}, "block_out_channels='4,8'"),
        ({"time_embedding_dim": 7}, "time_embedding_dim=7; ours is 16"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups=None"),
        ({"attn_norm_num_groups": 4}, "attn_norm_num_groups other than norm_num_groups"),
        ({"sample_size": None}, "has no sample_size"),
        ({"sample_size": 7}, "data.image_size must be divisible by 2"),
        ({"norm_num_groups": 3}, "unet.num_groups must divide"),
        ({"attention_head_dim": 3}, "unet.head_channels must divide"),
        ({"layers_per_block": 10**9}, "layers_per_block=1000000000"),
        ({"downsample_padding": 2}, "downsample_padding=2"),
        ({"out_channels": 2}, "out_channels=2 for in_channels=1; with variance_type='fixed_large'.* must be 1"),
    ],
)
def test_another_architecture_is_refused_by_name(tmp_path, tensors, change, match):
    write_folder(tmp_path / "hub", UNET | change, tensors=tensors)
    refused(tmp_path / "hub", match)


@pytest.mark.parametrize(
    "change,match",
    [
        ({"_class_name": "ScoreSdeVeScheduler", "beta_start": None}, "beta_start='None'"),
        ({"beta_schedule": "sigmoid", "num_train_timesteps": 1000}, "betas 'sigmoid', which no supported schedule"),
        ({"beta_schedule": "laplace"}, "beta_schedule='laplace': supported are"),
        ({"trained_betas": [0.1] * 19}, "num_train_timesteps=20 trained_betas"),
        ({"trained_betas": [0.1, 0.3] * 10}, "the betas trained_betas, which no"),
        ({"num_train_timesteps": "20"}, "num_train_timesteps='20'"),
        ({"num_train_timesteps": 10**9}, "it must be in 1..1000000"),
        ({"beta_end": 2.0}, "at least 1e-30 and below 1"),
        ({"prediction_type": "flow"}, "prediction_type of .* must be one of"),
        ({"variance_type": "learned"}, "here the network outputs its logarithm"),
        ({"variance_type": "fixed_large_log"}, "fixed_large_log"),
        ({"variance_type": "learned_range"}, "out_channels=1 .*it must be 2"),
        ({"rescale_betas_zero_snr": True}, "eps.* x_0|x_0.*v"),
        ({"clip_sample": "yes"}, "clip_sample='yes'"),
    ],
)
def test_another_process_is_refused_by_name(tmp_path, tensors, change, match):
    write_folder(tmp_path / "hub", scheduler=SCHEDULER | change, tensors=tensors)
    with pytest.raises(UserError, match=match):
        from ddpm_jax.interchange.imported_workdir import check_imported

        check_imported(read_diffusers(tmp_path / "hub").config)


def test_a_scheduler_without_betas_is_refused():
    with pytest.raises(UserError, match="is a ScoreSdeVeScheduler without beta_start"):
        fields_of_scheduler({"_class_name": "ScoreSdeVeScheduler", "sigma_max": 1348.0}, "it", None)


@pytest.mark.parametrize(
    "change,match",
    [
        ({"_class_name": "EulerDiscreteScheduler"}, "the sampler of EulerDiscreteScheduler is replaced by ddim"),
        ({"clip_sample_range": 2.0}, "clip_sample_range=2.0 is ignored"),
        ({"thresholding": True, "sample_max_value": 1.5}, "sample_max_value=1.5 is ignored"),
        ({"_class_name": "PNDMScheduler"}, "Runge-Kutta"),
        ({"_class_name": "DDIMScheduler", "set_alpha_to_one": False}, "set_alpha_to_one=False is ignored"),
        ({"timestep_spacing": "other"}, "timestep_spacing='other' is ignored"),
    ],
)
def test_what_the_sampler_cannot_say_is_told(change, match):
    _, notes = fields_of_scheduler(SCHEDULER | change, "it", None)
    assert any(match in note for note in notes), notes


def test_their_threshold_is_the_clip_where_it_ends_at_1():
    fields, notes = fields_of_scheduler(SCHEDULER | {"thresholding": True, "clip_sample": False}, "it", None)
    assert fields["sample"]["clip_x_0"] and fields["sample"]["dynamic_threshold"] == 0 and not notes


def test_missing_files_are_named(tmp_path, tensors):
    write_folder(tmp_path / "a", scheduler=None, tensors=tensors)
    refused(tmp_path / "a", "has no scheduler_config.json.*which noise schedule")
    write_folder(tmp_path / "b", weights=False)
    refused(tmp_path / "b", "holds no weights: there is none of diffusion_pytorch_model.safetensors")
    write_safetensors(tmp_path / "b" / "diffusion_pytorch_model.fp16.safetensors", tensors, {})
    refused(tmp_path / "b", r"only weights of a variant: give the file, such as --from=.*fp16\.safetensors")
    read_diffusers(tmp_path / "b" / "diffusion_pytorch_model.fp16.safetensors")
    (tmp_path / "a" / "config.json").unlink()
    refused(tmp_path / "a", r"config\.json cannot be read \(No such file")
    (tmp_path / "b" / "config.json").write_text("{")
    refused(tmp_path / "b", r"config\.json is not a JSON object")


@pytest.mark.parametrize("name", [WEIGHTS, "diffusion_pytorch_model.bin"])
def test_a_clone_without_its_large_files_is_told(folder, name):
    (folder / WEIGHTS).unlink()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 143\n")
    refused(folder, f"{name} is a git-lfs pointer, not the file itself: run git lfs pull")


def test_a_pipeline_with_more_parts_is_refused(folder):
    index = {"_class_name": "LDMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "X"]}
    (folder / "model_index.json").write_text(json.dumps(index | {"vqvae": ["diffusers", "VQModel"]}))
    refused(folder, r"is a LDMPipeline of \['scheduler', 'unet', 'vqvae'\]")
