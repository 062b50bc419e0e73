"""The peers' U-Nets as (x_t [B, C, H, W], t [B]) -> prediction, with their parameters."""

import json
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict

sys.path.append(str(Path(__file__).parents[2] / "tests" / "parity"))

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def diffusers_unet(folder: Path) -> torch.nn.Module:
    """diffusers' UNet2DModel with the weights that ddpm_jax wrote out."""
    from diffusers import UNet2DModel

    return UNet2DModel.from_pretrained(folder / "diffusers", subfolder="unet")


class OpenAIUNet(torch.nn.Module):
    """improved-diffusion's U-Net as a module: wraps the function in tests/parity that takes the weights by name."""

    def __init__(self, facts: dict, tensors: dict[str, np.ndarray]):
        super().__init__()
        self._names = list(tensors)
        self._list = torch.nn.ParameterList(torch.from_numpy(tensors[name]) for name in self._names)
        self._net = openai_net(facts)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The prediction; `t` of any type."""
        from openai_unet import openai_unet

        by_name = dict(zip(self._names, self._list, strict=True))
        return openai_unet(lambda name, *shape: by_name[name], x_t, t.to(torch.float32), **self._net)


def openai_net(facts: dict) -> dict:
    """The settings of `openai_unet` for the network of a config without classes, from the fields of the config."""
    learns = facts["diffusion.variance"] in ("learned", "learned_range")
    return {
        "channels": facts["unet.channels"],
        "mults": tuple(facts["unet.channel_mults"]),
        "blocks": facts["unet.num_res_blocks"],
        "attention": tuple(facts["unet.attention_resolutions"]),
        "groups": facts["unet.num_groups"],
        "heads": facts["unet.num_heads"],
        "head_channels": facts["unet.head_channels"],
        "scale_shift": facts["unet.scale_shift_norm"],
        "resample_in_blocks": facts["unet.resample_in_blocks"],
        "new_order": False,
        "classes": 0,
        "num_steps": facts["schedule.num_steps"],
        "out": facts["data.num_channels"] * (2 if learns else 1),
    }


def openai_weights(config: ConfigDict) -> dict[str, np.ndarray]:
    """Random weights of that network, by OpenAI's names."""
    from openai_unet import Weights, openai_unet

    from ddpm_jax.experiment.config_overrides import flatten

    weights, side = Weights(), config.data.image_size[0]
    picture = torch.zeros(1, config.data.num_channels, side, side)
    with torch.no_grad():
        openai_unet(weights, picture, torch.zeros(1), **openai_net(flatten(config)))
    return {name: tensor.numpy() for name, tensor in weights.items()}


def lucidrains_unet(facts: dict) -> torch.nn.Module:
    """denoising-diffusion-pytorch's own U-Net at the same widths. It is a different network, with other blocks and
    attention (linear at every level), and therefore other FLOPs."""
    for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
        # The peer imports it only for the transforms of its `Trainer`.
        sys.modules.setdefault(name, types.ModuleType(name))
    torchvision = sys.modules["torchvision"]
    torchvision.transforms, torchvision.utils = (sys.modules[f"torchvision.{part}"] for part in ("transforms", "utils"))
    from denoising_diffusion_pytorch import Unet

    return Unet(
        facts["unet.channels"], dim_mults=tuple(facts["unet.channel_mults"]), channels=facts["data.num_channels"],
        dropout=facts["unet.dropout"],
    )  # fmt: skip


def load_facts(folder: Path) -> dict:
    """The config's fields by their names, `image_shape` and `num_params`."""
    return json.loads((folder / "facts.json").read_text())


def build(peer: str, folder: Path) -> tuple[torch.nn.Module, Predict]:
    """The module of a peer, and the function that calls it."""
    facts = load_facts(folder)
    if peer == "diffusers":
        module = diffusers_unet(folder)
        return module, lambda x_t, t: module(x_t, t, return_dict=False)[0]
    if peer == "improved":
        module = OpenAIUNet(facts, dict(np.load(folder / "openai.npz")))
    else:
        module = lucidrains_unet(facts)
    return module, module


def num_params(parameters: Iterable[torch.nn.Parameter]) -> int:
    """The number of weights in total."""
    return sum(parameter.numel() for parameter in parameters)
