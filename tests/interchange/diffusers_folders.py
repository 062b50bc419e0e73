"""Small folders as diffusers writes them, made by hand, with random weights."""

import json

import numpy as np

from ddpm_jax.interchange.diffusers_names import matches_of_unet
from ddpm_jax.interchange.diffusers_unet_config import fields_of_unet
from ddpm_jax.interchange.imported_model import config_of, shapes_of
from ddpm_jax.interchange.tensor_files import write_safetensors
from ddpm_jax.interchange.tensor_mapping import tensors_from

UNET = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.16.1",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [4, 8],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 1,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 2,
    "out_channels": 1,
    "sample_size": 8,
    "time_embedding_type": "positional",
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 20,
    "variance_type": "fixed_large",
}


def tensors_of(unet_config, seed=0):
    """Random float32 tensors of a UNet2DModel by name."""
    read = fields_of_unet(unet_config, "it")
    config = config_of(
        image_size=read["image_size"], num_channels=read["num_channels"], model=read["model"], unet=read["unet"]
    )
    shapes, rng = shapes_of(config), np.random.default_rng(seed)
    tree = {}
    for path, shape in shapes.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = rng.standard_normal(shape).astype(np.float32)
    return tensors_from(matches_of_unet(shapes), tree)


def write_folder(path, unet=UNET, scheduler=SCHEDULER, tensors=None, weights=True):
    """A flat folder; the tensors that are in it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(unet))
    if scheduler is not None:
        (path / "scheduler_config.json").write_text(json.dumps(scheduler))
    if not weights:
        return None
    tensors = tensors_of(unet) if tensors is None else tensors
    write_safetensors(path / "diffusion_pytorch_model.safetensors", tensors, {"format": "pt"})
    return tensors
