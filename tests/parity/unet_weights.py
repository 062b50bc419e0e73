"""A diffusers UNet2DModel at the ddpm-cifar10-32 architecture, and its weights as our tree."""

import numpy as np
import torch
from diffusers import UNet2DModel


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


def _conv(layer):
    return {"kernel": _array(layer.weight).transpose(2, 3, 1, 0), "bias": _array(layer.bias)}


def _dense(layer):
    weight = _array(layer.weight)  # [out, in], or a 1x1 convolution [out, in, 1, 1]
    return {"kernel": weight.reshape(weight.shape[:2]).T, "bias": _array(layer.bias)}


def _norm(layer):
    return {"norm": {"scale": _array(layer.weight), "bias": _array(layer.bias)}}


def _array(tensor):
    return tensor.detach().numpy()


def _res_block(block):
    out = {
        "norm_1": _norm(block.norm1),
        "conv_1": _conv(block.conv1),
        "time": _dense(block.time_emb_proj),
        "norm_2": _norm(block.norm2),
        "conv_2": _conv(block.conv2),
    }
    return out | ({"shortcut": _dense(block.conv_shortcut)} if block.conv_shortcut is not None else {})


def _attention(block):
    return {
        "norm": _norm(block.group_norm),
        "query": _dense(block.to_q),
        "key": _dense(block.to_k),
        "value": _dense(block.to_v),
        "out": _dense(block.to_out[0]),
    }


def to_our_params(model):
    """Every weight of the peer, by our names; nothing is left over on either side (the tests compare counts)."""
    params = {
        "time_1": _dense(model.time_embedding.linear_1),
        "time_2": _dense(model.time_embedding.linear_2),
        "conv_in": _conv(model.conv_in),
        "middle_block_0": _res_block(model.mid_block.resnets[0]),
        "middle_attention": _attention(model.mid_block.attentions[0]),
        "middle_block_1": _res_block(model.mid_block.resnets[1]),
        "norm_out": _norm(model.conv_norm_out),
        "conv_out": _conv(model.conv_out),
    }
    if model.class_embedding is not None:
        params["label_embedding"] = _array(model.class_embedding.weight)
    num_levels = len(model.down_blocks)
    sides = [(f"down_{i}", block, "downsample") for i, block in enumerate(model.down_blocks)]
    sides += [(f"up_{num_levels - 1 - i}", block, "upsample") for i, block in enumerate(model.up_blocks)]
    for name, block, resample in sides:
        for i, res_block in enumerate(block.resnets):
            params[f"{name}_block_{i}"] = _res_block(res_block)
        for i, attention in enumerate(getattr(block, "attentions", [])):
            params[f"{name}_attention_{i}"] = _attention(attention)
        resamplers = getattr(block, f"{resample}rs") or []
        for resampler in resamplers:
            in_block = hasattr(resampler, "conv1")
            params[f"{name}_{resample}"] = _res_block(resampler) if in_block else {"conv": _conv(resampler.conv)}
    return params


def run_peer(model, x_t, t, labels=None):
    """[B, H, W, C] in and out."""
    labels = None if labels is None else torch.from_numpy(labels)
    with torch.no_grad():
        out = model(torch.from_numpy(x_t.transpose(0, 3, 1, 2).copy()), torch.from_numpy(t), class_labels=labels).sample
    return np.ascontiguousarray(out.numpy().transpose(0, 2, 3, 1))
