"""Reads the `.pt` files of OpenAI's two code bases, improved-diffusion and guided-diffusion.

They are by Nichol and Dhariwal 2021 and by Dhariwal and Nichol 2021. Their U-Net is ours under other names. Its blocks
are numbered in the order of computation, so that the number of a block depends on everything before it; q, k and v are
one layer, in one of two orders (`interchange.fused_qkv`). The classifiers are the way down of such a U-Net, with an
attention pool whose order is always "qkv_first". The upsamplers are such U-Nets whose first layer takes the channels of
x_t, and then those of the small image, bilinearly enlarged: the order of ours.
"""

from dataclasses import dataclass

import numpy as np

from ddpm_jax.experiment.config_files import Config, load_config
from ddpm_jax.experiment.model_factory import build_network
from ddpm_jax.interchange.fused_qkv import split_fused_qkv
from ddpm_jax.interchange.imported_model import Imported, shapes_of
from ddpm_jax.interchange.tensor_mapping import CONV, DENSE, POINT_1D, POINT_2D, SAME, Layout, Match, Path, params_from
from ddpm_jax.models.unet_blocks import UNetBlocks
from ddpm_jax.runtime.errors import UserError, check_one_of

# Our layer in a residual block, an attention or a resampling -> theirs.
_LAYERS = {
    "norm_1": "in_layers.0",
    "conv_1": "in_layers.2",
    "time": "emb_layers.1",
    "norm_2": "out_layers.0",
    "conv_2": "out_layers.3",
    "shortcut": "skip_connection",
    "norm": "norm",
    "query": "qkv",
    "key": "qkv",
    "value": "qkv",
    "out": "proj_out",
}
_ENDS = {
    "time_1": "time_embed.0",
    "time_2": "time_embed.2",
    "label_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "middle_block_0": "middle_block.0",
    "middle_attention": "middle_block.1",
    "middle_block_1": "middle_block.2",
    "norm_out": "out.0",
    "conv_out": "out.2",
    "pool": "out.2",
}
_POOL = {"query": "qkv_proj", "key": "qkv_proj", "value": "qkv_proj", "out": "c_proj"}


@dataclass(frozen=True)
class Published:
    """A published checkpoint: its experiment, and the settings that differ from it."""

    experiment: str
    changes: tuple[str, ...] = ()  # as on the command line: "unet.dropout=0.0"
    qkv_order: str = "heads_first"


def _classifier(side: int, channel_mults: str, depth: int, *changes: str) -> Published:
    """The classifier of x_t of guided_imagenet<side>, with the training flags in the README's example."""
    return Published(
        f"guided_imagenet{side}",
        (
            "objective.name=classifier", "unet.channels=128", f"unet.channel_mults={channel_mults}",
            f"unet.num_res_blocks={depth}", "unet.head_channels=64", "unet.dropout=0.0", "optim.learning_rate=3e-4",
            "optim.weight_decay=0.05", "train.num_steps=300000", "train.batch_size=256", *changes,
        ),
    )  # fmt: skip


# By file name, without ".pt", as in the READMEs of the two repositories.
MODELS = {
    "cifar10_uncond_50M_500K": Published("improved_cifar10"),
    "cifar10_uncond_vlb_50M_500K": Published("improved_cifar10_vlb"),
    "imagenet64_uncond_100M_1500K": Published("improved_imagenet64"),
    "imagenet64_uncond_vlb_100M_1500K": Published("improved_imagenet64_vlb"),
    "imagenet64_cond_270M_250K": Published("improved_imagenet64_cond"),
    "lsun_uncond_100M_1200K_bs128": Published("improved_lsun"),
    "lsun_uncond_100M_2400K_bs64": Published(
        "improved_lsun", ("optim.learning_rate=2e-5", "train.num_steps=2400000", "train.batch_size=64")
    ),
    "64x64_diffusion": Published("guided_imagenet64", qkv_order="qkv_first"),
    "128x128_diffusion": Published("guided_imagenet128"),
    "256x256_diffusion": Published("guided_imagenet256"),
    "256x256_diffusion_uncond": Published("guided_imagenet256", ("model.num_classes=0",)),
    "512x512_diffusion": Published("guided_imagenet512"),
    "lsun_bedroom": Published("guided_lsun"),
    "lsun_cat": Published("guided_lsun", ("data.name=lsun/cat",)),
    "lsun_horse": Published("guided_lsun", ("data.name=lsun/horse",)),
    "lsun_horse_nodropout": Published("guided_lsun", ("data.name=lsun/horse", "unet.dropout=0.0")),
    "64x64_classifier": _classifier(64, "1,2,3,4", 4),
    "128x128_classifier": _classifier(128, "1,1,2,3,4", 2),
    "256x256_classifier": _classifier(256, "1,1,2,2,4,4", 2),
    "512x512_classifier": _classifier(512, "0.5,1,1,2,2,4,4", 2, "unet.conv_in_channels=64"),
    "upsample_cond_500K": Published("improved_64to256"),
    "64_256_upsampler": Published("guided_64to256"),
    "128_512_upsampler": Published("guided_128to512"),
}


def read_openai(tensors: dict[str, np.ndarray], model: str) -> Imported:
    """A published checkpoint, with the config of its experiment.

    Args:
      tensors: those of the file, by name; float16 becomes float32.
      model: the name of the file without ".pt", one of `MODELS`.

    Raises:
      UserError: an unknown name, or tensors that do not fit that model.

    Example: `read_openai(tensors, "cifar10_uncond_50M_500K")`
    """
    model = model.removesuffix(".pt")
    check_one_of("model", model, MODELS)
    published = MODELS[model]
    return read_openai_as(
        tensors, load_config(published.experiment, published.changes), qkv_order=published.qkv_order, what=model
    )


def read_openai_as(
    tensors: dict[str, np.ndarray], config: Config, *, qkv_order: str = "heads_first", what: str = "the file"
) -> Imported:
    """A checkpoint that you trained with one of those code bases, as the network of `config`.

    Args:
      tensors: of `model*.pt` or `ema_*.pt`.
      config: a complete config, such as `improved_cifar10` with the flags of that run.
      qkv_order: "heads_first", or "qkv_first" for guided-diffusion with --use_new_attention_order True.
      what: names the file in error messages.

    Raises:
      UserError: the tensors do not fit the config's network.
    """
    network = build_network(config)
    if not isinstance(network, UNetBlocks):
        raise UserError(f"{what} is of a U-Net, and the config has model.name={type(network).__name__!r}: take 'unet'")
    shapes = shapes_of(config)
    params = params_from(openai_matches(network, shapes, qkv_order), tensors, shapes, what)
    return Imported(
        config, params, params, ("the file has one set of weights, used for both raw and averaged weights",)
    )


def openai_matches(unet: UNetBlocks, shapes: dict[Path, tuple], qkv_order: str) -> list[Match]:
    """The tensor of theirs for each of our leaves. q, k and v cannot be exported: three of ours are one of theirs."""
    prefixes = _prefixes({path[0] for path in shapes})
    return [Match(path, *_tensor(path, shapes[path], prefixes[path[0]], unet, qkv_order)) for path in shapes]


def _prefixes(modules: set[str]) -> dict[str, str]:
    """Our modules -> theirs: ("down_1_attention_0" -> "input_blocks.5.1")."""
    prefixes = {ours: theirs for ours, theirs in _ENDS.items() if ours in modules}
    levels = range(1 + max(int(name.split("_")[1]) for name in modules if name.startswith("down_")))
    block = 0
    for level in levels:
        for i in _counted(modules, f"down_{level}_block"):
            block += 1
            prefixes[f"down_{level}_block_{i}"] = f"input_blocks.{block}.0"
            prefixes[f"down_{level}_attention_{i}"] = f"input_blocks.{block}.1"
        if level < levels[-1]:
            block += 1
            prefixes[f"down_{level}_downsample"] = f"input_blocks.{block}.0"
    block = 0
    for level in reversed(levels):
        for i in _counted(modules, f"up_{level}_block"):
            prefixes[f"up_{level}_block_{i}"] = f"output_blocks.{block}.0"
            prefixes[f"up_{level}_attention_{i}"] = f"output_blocks.{block}.1"
            # Theirs upsamples at the end of a level's last block, after its attention if it has one.
            place = 2 if f"up_{level}_attention_{i}" in modules else 1
            prefixes[f"up_{level}_upsample"] = f"output_blocks.{block}.{place}"
            block += 1
    return prefixes


def _counted(modules: set[str], prefix: str) -> range:
    """0, 1, ... for the modules `prefix_0`, `prefix_1`, ..."""
    return range(sum(name.startswith(f"{prefix}_") for name in modules))


def _tensor(path: Path, shape: tuple, prefix: str, unet: UNetBlocks, qkv_order: str) -> tuple[str, Layout]:
    """Their name and layout for one leaf."""
    module, *layers, leaf = path if len(path) > 1 else (path[0], "weight")
    if leaf == "position":
        return f"{prefix}.positional_embedding", DENSE
    names = [prefix]
    if module == "pool":
        names.append(_POOL[layers[0]])
        qkv_order = "qkv_first"
    elif layers and layers[0] == "conv":  # a resampling without a block
        names.append("op" if module.startswith("down") else "conv")
    elif layers and module != "norm_out":
        names.append(_LAYERS[layers[0]])
    names.append("bias" if leaf == "bias" else "weight")
    theirs = ".".join(names)
    layer = layers[0] if layers else module
    if layer in ("query", "key", "value"):
        return theirs, _fused(layer, leaf, unet.heads_of(shape[-1]), qkv_order)
    if leaf != "kernel":
        return theirs, SAME
    if len(shape) == 4:
        return theirs, CONV
    return theirs, {"shortcut": POINT_2D, "out": POINT_1D}.get(layer, DENSE)


def _fused(layer: str, leaf: str, num_heads: int, order: str) -> Layout:
    """The layout of q, k or v in their fused layer, [3C, C, 1], or its bias [3C]."""

    def to_ours(theirs: np.ndarray) -> np.ndarray:
        kernel = theirs[:, :, 0].T if leaf == "kernel" else np.zeros((len(theirs) // 3, len(theirs)))
        bias = theirs if leaf == "bias" else np.zeros(len(theirs))
        return split_fused_qkv(kernel, bias, num_heads=num_heads, order=order)[layer][leaf]

    def to_theirs(ours: np.ndarray) -> np.ndarray:
        raise UserError("weights can be imported from files of OpenAI's code, but not exported to them")

    return Layout(to_ours, to_theirs)
