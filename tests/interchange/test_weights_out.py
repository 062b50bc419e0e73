"""Weights out, and in again: folders of diffusers, .npz and .safetensors of our own."""

import functools

import numpy as np
import pytest
from diffusers_folders import UNET, tensors_of, write_folder

from ddpm_jax.experiment.config_overrides import fields_by_group
from ddpm_jax.interchange.diffusers import read_diffusers, write_diffusers
from ddpm_jax.interchange.diffusers_unet_config import fields_of_unet, unet_of_fields
from ddpm_jax.interchange.ho_et_al import read_original_as
from ddpm_jax.interchange.imported_model import config_of, own_shapes_of, shapes_of
from ddpm_jax.interchange.native_files import read_npz, read_own_safetensors, write_npz, write_own_safetensors
from ddpm_jax.interchange.openai import read_openai_as
from ddpm_jax.interchange.tensor_files import write_safetensors
from ddpm_jax.runtime.errors import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "hub", tensors=tensors_of(UNET))
    return tmp_path / "hub"


@pytest.mark.parametrize(
    "field,value,match",
    [
        ("unet.time_scale", 0.25, "does not support unet.time_scale=0.25"),
        ("unet.channel_mults", (2, 4), r"does not support unet.channel_mults=\(2, 4\) .* its first convolution"),
        ("unet.conv_in_channels", 8, "unet.conv_in_channels=8: its first convolution"),
        ("diffusion.prediction", "mean", "does not support diffusion.prediction='mean'"),
        ("diffusion.variance", "learned", "does not support diffusion.variance='learned'"),
        ("diffusion.self_conditioning", True, "no sampler for diffusion.self_conditioning=True; .* to FILE.safet"),
        ("condition.task", "inpaint", "does not support condition.task='inpaint': it sees x_t alone; .* to FILE.safet"),
        ("diffusion.network_input", "alpha_bar", "no sampler for diffusion.network_input='alpha_bar': .* FILE.safet"),
        ("unet.downsample_first", True, "does not support unet.downsample_first=True: .* FILE.safet"),
        ("unet.scale_skips", True, "does not support unet.scale_skips=True: .* FILE.safet"),
        ("unet.res_blocks_per_level", (1, 2), r"in every level; unet.res_blocks_per_level=\(1, 2\): .* FILE.safet"),
        ("unet.num_heads", 2, r"heads of one width; unet.num_heads=2 gives \[2, 4\]"),
    ],
)
def test_what_diffusers_cannot_express_is_refused(tmp_path, folder, field, value, match):
    imported = read_diffusers(folder)
    config = imported.config.copy_and_resolve_references()
    group, name = field.split(".")
    config[group][name] = value
    config.unet.attention_resolutions = (8, 4)
    with pytest.raises(UserError, match=match):
        write_diffusers(tmp_path / "out", config, imported.params)
    assert not (tmp_path / "out").exists()


def test_heads_by_number_become_heads_by_width():
    unet = {"num_heads": 2, "channels": 4, "channel_mults": (1, 2), "attention_resolutions": (4,), "num_groups": 2}
    config = config_of(image_size=(8, 8), num_channels=1, unet=unet)
    groups = fields_by_group(config)
    assert unet_of_fields(groups)["attention_head_dim"] == 4
    assert fields_of_unet(unet_of_fields(groups), "it")["unet"]["head_channels"] == 4


def test_equal_numbers_of_blocks_are_one_number():
    config = config_of(image_size=(8, 8), num_channels=1, unet={"num_res_blocks": 1, "res_blocks_per_level": (3,) * 4})
    assert unet_of_fields(fields_by_group(config))["layers_per_block"] == 3


@pytest.mark.parametrize("name", ["downsample_first", "scale_skips"])
def test_what_no_other_code_has_is_kept_in_our_files_alone(tmp_path, name):
    """The weights with and without scaled skips have the same names and shapes."""
    unet = {"channels": 4, "channel_mults": (1,), "attention_resolutions": (), "num_groups": 2, name: True}
    config = config_of(image_size=(4, 4), num_channels=1, unet=unet)
    params = {}
    for path, shape in own_shapes_of(config).items():
        inner = functools.reduce(lambda tree, key: tree.setdefault(key, {}), path[:-1], params)
        inner[path[-1]] = np.ones(shape, np.float32)
    write_npz(tmp_path / "w.npz", config, params)
    assert read_npz(tmp_path / "w.npz").config == config
    with pytest.raises(UserError, match=f"^unet.{name} must be False for weights of another code, .*; got True$"):
        read_openai_as({}, config)
    with pytest.raises(UserError, match=f"^unet.{name} must be False for weights of another code, .*; got True$"):
        read_original_as({}, config)


def test_the_vector_of_no_class_is_one_more():
    config = config_of(
        image_size=(8, 8), num_channels=1, model={"num_classes": 3}, condition={"drop_rate": 0.1},
        unet={"channels": 4, "channel_mults": (1,), "attention_resolutions": (), "num_groups": 2},
    )  # fmt: skip
    assert unet_of_fields(fields_by_group(config))["num_class_embeds"] == 4
    assert shapes_of(config)[("label_embedding",)] == (4, 16)


@pytest.mark.parametrize(
    "name,write,read",
    [("w.npz", write_npz, read_npz), ("w.safetensors", write_own_safetensors, read_own_safetensors),
     ("folder", write_diffusers, read_diffusers)],
)  # fmt: skip
def test_out_and_in_is_the_identity_bit_for_bit(tmp_path, folder, name, write, read):
    imported = read_diffusers(folder)
    config = imported.config.copy_and_resolve_references()
    config.optim.learning_rate, config.data.path, config.sample.classes = 1 / 3, "pictures", (1, 0)
    params = imported.params
    odd = np.array([-0.0, 1e-45, np.inf, np.nan], np.float32).view(np.uint32)
    params["conv_in"]["bias"] = np.append(odd[:3], odd[3] | 5).astype(np.uint32).view(np.float32)  # a NaN with bits
    write(tmp_path / name, config, params)
    again = read(tmp_path / name)
    assert again.config == config

    def bits(tree):
        return {k: bits(v) if isinstance(v, dict) else (v.shape, str(v.dtype), v.tobytes()) for k, v in tree.items()}

    assert bits(again.params) == bits(again.ema_params) == bits(params)


def test_plain_files_that_are_none_of_ours_are_refused(tmp_path, folder):
    with pytest.raises(UserError, match="contains no config of ddpm_jax"):
        read_own_safetensors(folder / WEIGHTS)
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(UserError, match="contains no config of ddpm_jax"):
        read_npz(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", a=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="not a numeric .npz file"):
        read_npz(tmp_path / "x.npz")
    imported = read_diffusers(folder)
    write_npz(tmp_path / "y.npz", imported.config, imported.params)
    whole = (tmp_path / "y.npz").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        (tmp_path / "y.npz").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"y\.npz is truncated, damaged"):
            read_npz(tmp_path / "y.npz")
    with pytest.raises(UserError, match="cannot be read"):
        read_npz(tmp_path / "absent.npz")


@pytest.mark.parametrize(
    "text,match",
    [("{", "damaged"), ('{"model": {"chanels": 3}}', "'model.chanels', which no experiment has; did you mean"),
     ('{"model": {"channels": "3"}}', "unet.channels of .* must be like 128; got '3'")],
)  # fmt: skip
def test_a_config_beside_the_tensors_is_checked(tmp_path, text, match):
    write_safetensors(tmp_path / "w.safetensors", {"a": np.zeros(3, np.float32)}, {"ddpm_jax_config": text})
    with pytest.raises(UserError, match=match):
        read_own_safetensors(tmp_path / "w.safetensors")


def test_an_export_replaces_no_folder_that_holds_something(tmp_path, folder):
    imported = read_diffusers(folder)
    (tmp_path / "out").mkdir()
    write_diffusers(tmp_path / "out", imported.config, imported.params)  # an empty one will do
    with pytest.raises(UserError, match="--to must be a new or empty folder"):
        write_diffusers(tmp_path / "out", imported.config, imported.params)
    assert not list(tmp_path.glob(".*part"))
