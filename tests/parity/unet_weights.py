"""A diffusers UNet2DModel at the ddpm-cifar10-32 architecture, and its weights as our tree."""

import jax
import numpy as np
import torch
from diffusers import UNet2DModel

from ddpm_jax.interchange.diffusers_names import matches_of_unet
from ddpm_jax.interchange.tensor_mapping import leaf_shapes, params_from
from ddpm_jax.models.parameters import init_params


def peer_unet(channels, mults, num_res_blocks, attention_levels, num_groups, side, colours=3, **others):
    """`others` replace the settings of the ddpm-cifar10-32 architecture."""
    levels = range(len(mults))
    plain = "Resnet{}sampleBlock2D" if others.get("downsample_type") == "resnet" else "{}Block2D"
    settings = dict(
        sample_size=side,
        in_channels=colours,
        out_channels=colours,
        block_out_channels=tuple(channels * mult for mult in mults),
        layers_per_block=num_res_blocks,
        down_block_types=tuple(
            "AttnDownBlock2D" if i in attention_levels else plain.format("Down") for i in levels
        ),
        up_block_types=tuple(
            "AttnUpBlock2D" if i in attention_levels else plain.format("Up") for i in reversed(levels)
        ),
        norm_num_groups=num_groups,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        attention_head_dim=None,
        act_fn="silu",
    )
    return UNet2DModel(**(settings | others)).eval()


def randomise(model, seed=0):
    """Random numbers everywhere, zero layers and norms included: a wrong place for any weight shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = max(parameter[0].numel(), 1)
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / fan_in**0.5 if parameter.ndim > 1 else 0.3 * noise)
        for module in model.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.weight += 1


def to_our_params(model, unet, image_shape):
    """Every weight of the peer as the tree of `unet`, by the product's own list of names."""
    shapes = jax.eval_shape(lambda key: init_params(unet, key, image_shape), jax.random.key(0))
    paths = leaf_shapes(shapes)
    tensors = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    return params_from(matches_of_unet(paths), tensors, paths, "the peer")


def run_peer(model, x_t, t, labels=None):
    """[B, H, W, C] in and out."""
    labels = None if labels is None else torch.from_numpy(labels)
    with torch.no_grad():
        out = model(torch.from_numpy(x_t.transpose(0, 3, 1, 2).copy()), torch.from_numpy(t), class_labels=labels).sample
    return np.ascontiguousarray(out.numpy().transpose(0, 2, 3, 1))
