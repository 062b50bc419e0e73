"""Weights under the names of OpenAI's codes: read as ours they give the output of their network; sizes and counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[parity]'")

import torch
from openai_unet import Weights, openai_classifier, openai_super_res, openai_unet

from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.image_condition import build_task
from ddpm_jax.experiment.model_factory import build_network
from ddpm_jax.interchange.imported_model import shapes_of
from ddpm_jax.interchange.openai import MODELS, openai_matches, read_openai_as

SMALL = [
    "unet.channels=16", "unet.num_groups=4", "unet.num_res_blocks=1", "data.image_size=8,12",
    "unet.attention_resolutions=4", "unet.dropout=0.0",
]  # fmt: skip
# What each code's own flags make of the network, apart from its size.
IMPROVED = dict(
    heads=4, head_channels=0, scale_shift=True, new_order=False, resample_in_blocks=False, classes=0, num_steps=4000
)
GUIDED = IMPROVED | dict(resample_in_blocks=True, head_channels=64, classes=1000, num_steps=0)


CLASSIFIER = GUIDED | dict(classes=0, out=5)


@pytest.mark.parametrize(
    "experiment,changes,order,net",
    [
        ("improved_cifar10", ["unet.channel_mults=1,2"], "heads_first", IMPROVED | dict(mults=(1, 2))),
        (
            "improved_lsun",
            ["unet.channel_mults=1,2", "unet.num_heads=2"],
            "heads_first",
            IMPROVED | dict(mults=(1, 2), scale_shift=False, heads=2, num_steps=0),
        ),
        (
            "guided_imagenet64",
            ["unet.channel_mults=1,2", "unet.head_channels=8", "model.num_classes=5"],
            "qkv_first",
            GUIDED | dict(mults=(1, 2), head_channels=8, new_order=True, classes=5),
        ),
        (
            "guided_imagenet512",
            ["unet.channel_mults=0.5,2", "unet.head_channels=8", "model.num_classes=5", "unet.conv_in_channels=8"],
            "heads_first",
            GUIDED | dict(mults=(0.5, 2), head_channels=8, classes=5),
        ),
        (
            "guided_imagenet512",
            [
                "objective.name=classifier", "unet.channel_mults=0.5,2", "unet.head_channels=8", "model.num_classes=5",
                "unet.conv_in_channels=8",
            ],
            "heads_first",
            CLASSIFIER | dict(mults=(0.5, 2), head_channels=8),
        ),
        (
            "improved_64to256",
            ["unet.channel_mults=1,2", "unet.num_heads=2", "model.num_classes=5"],
            "heads_first",
            IMPROVED | dict(mults=(1, 2), heads=2, classes=5, num_steps=0, factor=4),
        ),
        (
            "guided_64to256",
            ["unet.channel_mults=1,2", "unet.num_heads=2", "model.num_classes=5"],
            "heads_first",
            GUIDED | dict(mults=(1, 2), heads=2, head_channels=0, classes=5, factor=4),
        ),
    ],
)
def test_their_weights_give_their_output(experiment, changes, order, net):
    net = dict(out=6) | net | dict(channels=16, blocks=1, attention=(4,), groups=4)
    rng = np.random.default_rng(0)
    x_t = rng.standard_normal((3, 8, 12, 3)).astype(np.float32)
    small = rng.uniform(-1, 1, (3, 2, 3, 3)).astype(np.float32)
    t, labels = np.array([0.0, 17.0, 999.0], np.float32), np.array([0, 4, 2])
    config = load_config(experiment, [*SMALL, *changes])
    weights, given = Weights(), {"label": jnp.asarray(labels)} if net["classes"] else {}
    x, t_of_torch, labels = of_torch(x_t), torch.from_numpy(t), torch.from_numpy(labels)
    if "objective.name=classifier" in changes:
        expected = openai_classifier(weights, x, t_of_torch, **net).numpy()
    elif "factor" in net:
        expected = openai_super_res(weights, x, t_of_torch, labels, of_torch(small), **net).permute(0, 2, 3, 1).numpy()
        # By the run's task, as for samples: how the small image is enlarged is compared, too.
        given["shown"] = jax.vmap(lambda x_0: build_task(config).of_given(x_0).image)(small)
    else:
        expected = openai_unet(weights, x, t_of_torch, labels, **net).permute(0, 2, 3, 1).numpy()
    assert np.std(expected) > 0.1  # the weights are random: the output says something
    # Theirs multiplies by 1 + what was drawn, so that the file's scale is that sum.
    tensors = {name: tensor.numpy() for name, tensor in weights.items()}
    norms = ("in_layers.0.weight", "out_layers.0.weight", "norm.weight", "out.0.weight")
    tensors = {name: array + name.endswith(norms) for name, array in tensors.items()}
    imported = read_openai_as(tensors, config, qkv_order=order)
    network = build_network(imported.config)
    apply_fn = jax.jit(lambda params, *args: network.apply({"params": params}, *args))
    ours = apply_fn(imported.params, x_t, t, *([given] if given else []))
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


def of_torch(x):
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


UNCOND_64 = IMPROVED | dict(side=64, channels=128, mults=(1, 2, 3, 4), blocks=3, attention=(16, 8))
CIFAR = UNCOND_64 | dict(side=32, mults=(1, 2, 2, 2))
LSUN = IMPROVED | dict(
    side=256, channels=128, mults=(1, 1, 2, 2, 4, 4), blocks=2, attention=(16,), heads=1, scale_shift=False,
    num_steps=0,
)  # fmt: skip
GUIDED_256 = GUIDED | dict(side=256, channels=256, mults=(1, 1, 2, 2, 4, 4), blocks=2, attention=(32, 16, 8))
CLASSIFIER_256 = GUIDED_256 | dict(channels=128, classes=0, out=1000)
# By the flags in the READMEs of the two repositories; the counts that are published stand in the files' names.
PUBLISHED = {
    "cifar10_uncond_50M_500K": CIFAR,
    "cifar10_uncond_vlb_50M_500K": CIFAR,
    "imagenet64_uncond_100M_1500K": UNCOND_64,
    "imagenet64_uncond_vlb_100M_1500K": UNCOND_64,
    "imagenet64_cond_270M_250K": UNCOND_64 | dict(channels=192, classes=1000, num_steps=0),
    "lsun_uncond_100M_1200K_bs128": LSUN,
    "lsun_uncond_100M_2400K_bs64": LSUN,
    "64x64_diffusion": GUIDED_256 | dict(side=64, channels=192, mults=(1, 2, 3, 4), blocks=3, new_order=True),
    "128x128_diffusion": GUIDED_256 | dict(side=128, mults=(1, 1, 2, 3, 4), head_channels=0),
    "256x256_diffusion": GUIDED_256,
    "256x256_diffusion_uncond": GUIDED_256 | dict(classes=0),
    "512x512_diffusion": GUIDED_256 | dict(side=512, mults=(0.5, 1, 1, 2, 2, 4, 4)),
    "lsun_bedroom": GUIDED_256 | dict(classes=0),
    "lsun_cat": GUIDED_256 | dict(classes=0),
    "lsun_horse": GUIDED_256 | dict(classes=0),
    "lsun_horse_nodropout": GUIDED_256 | dict(classes=0),
    "64x64_classifier": CLASSIFIER_256 | dict(side=64, mults=(1, 2, 3, 4), blocks=4),
    "128x128_classifier": CLASSIFIER_256 | dict(side=128, mults=(1, 1, 2, 3, 4)),
    "256x256_classifier": CLASSIFIER_256,
    "512x512_classifier": CLASSIFIER_256 | dict(side=512, mults=(0.5, 1, 1, 2, 2, 4, 4)),
    "upsample_cond_500K": LSUN
    | dict(channels=192, attention=(16, 8), heads=4, scale_shift=True, classes=1000, factor=4),
    "64_256_upsampler": GUIDED_256 | dict(channels=192, head_channels=0, factor=4),
    "128_512_upsampler": GUIDED_256 | dict(side=512, channels=192, attention=(32, 16), factor=4),
}


def test_every_published_model_is_here():
    assert PUBLISHED.keys() == MODELS.keys()


@functools.cache
def theirs_at_full_size(net):
    """Names and sizes; nothing is computed."""
    net = dict(net)
    weights, x = Weights(device="meta"), torch.empty((1, 3, net["side"], net["side"]), device="meta")
    t = torch.empty((1,), device="meta")
    if net.get("out") == 1000:
        openai_classifier(weights, x, t, groups=32, **net)
    elif "factor" in net:
        small = x[..., :: net["factor"], :: net["factor"]]
        openai_super_res(weights, x, t, t.long(), small, groups=32, out=6, **net)
    else:
        openai_unet(weights, x, t, t.long(), groups=32, out=6, **net)
    return {name: tensor.numel() for name, tensor in weights.items()}


@pytest.mark.parametrize("name", MODELS)
def test_the_published_network_has_these_tensors(name):
    net, published = PUBLISHED[name], MODELS[name]
    config = load_config(published.experiment, published.changes)
    network, shapes, sizes = build_network(config), shapes_of(config), {}
    for match in openai_matches(network, shapes, published.qkv_order):
        sizes[match.theirs] = sizes.get(match.theirs, 0) + int(np.prod(shapes[match.ours]))
    assert sizes == theirs_at_full_size(tuple(net.items()))
    assert config.data.image_size == (net["side"],) * 2
    task = build_task(config)
    assert (task and task.factor) == net.get("factor")
    assert config.unet.head_channels == net["head_channels"]
    assert config.unet.num_heads == net["heads"] or net["head_channels"]
    assert config.unet.time_scale == (1000 / net["num_steps"] if net["num_steps"] else 1.0)
    assert published.qkv_order == ("qkv_first" if net["new_order"] else "heads_first")
