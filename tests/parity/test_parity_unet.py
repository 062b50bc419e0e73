"""The whole U-Net beside diffusers' at the ddpm-cifar10-32 architecture, on the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[parity]'")
pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e '.[parity]'")

from unet_weights import peer_unet, randomise, run_peer, to_our_params

from ddpm_jax.models.parameters import init_params, num_params
from ddpm_jax.models.unet import UNet


@pytest.mark.parametrize(
    "mults,num_groups,attention_levels,blocks,size",
    [
        ((1, 2, 2, 2), 32, (1,), 2, (32, 32)),
        ((1, 2), 8, (1,), 1, (16, 24)),
        ((1, 1, 2), 16, (0, 2), 1, (24, 16)),
    ],
)
def test_the_same_weights_give_the_same_output(mults, num_groups, attention_levels, blocks, size):
    peer = peer_unet(32, mults, blocks, attention_levels, num_groups, size[0])
    randomise(peer)
    unet = UNet(
        channels=32,
        channel_mults=mults,
        num_res_blocks=blocks,
        attention_resolutions=tuple(size[0] // 2**level for level in attention_levels),
        num_groups=num_groups,
    )
    params = to_our_params(peer, unet, (*size, 3))
    x_t = np.random.default_rng(0).standard_normal((3, *size, 3)).astype(np.float32)
    t = np.array([0, 17, 999])
    ours = jax.jit(lambda p, x, t: unet.apply({"params": p}, x, t))(params, x_t, jnp.asarray(t))
    expected = run_peer(peer, x_t, t)
    assert np.std(expected) > 0.1  # the weights are random: the output says something
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "fields,peers,attention_levels",
    [
        (  # Nichol and Dhariwal 2021, with heads of one width
            dict(head_channels=8, norm_eps=1e-5, down_padding="both", time_scale=0.25),
            dict(attention_head_dim=8, norm_eps=1e-5, downsample_padding=1),
            (0, 1),
        ),
        (  # Dhariwal and Nichol 2021; epsilon so large that it shows in every norm
            dict(head_channels=16, norm_eps=0.1, resample_in_blocks=True, num_classes=5),
            dict(attention_head_dim=16, norm_eps=0.1, downsample_type="resnet", upsample_type="resnet",
                 num_class_embeds=5),
            (1,),
        ),
    ],
)  # fmt: skip
def test_the_variants_give_the_same_output(fields, peers, attention_levels):
    mults, size = (1, 2), (8, 12)
    peer = peer_unet(
        32, mults, 1, attention_levels, 8, size[0], resnet_time_scale_shift="scale_shift", attn_norm_num_groups=8,
        flip_sin_to_cos=True, freq_shift=0, **peers,
    )  # fmt: skip
    randomise(peer)
    unet = UNet(
        32, mults, 1, tuple(size[0] // 2**level for level in attention_levels), num_groups=8,
        scale_shift_norm=True, embedding_order="cos_sin", embedding_spacing="half", **fields,
    )  # fmt: skip
    params = to_our_params(peer, unet, (*size, 3))
    x_t = np.random.default_rng(0).standard_normal((3, *size, 3)).astype(np.float32)
    t = np.array([0.0, 17.5, 996.0], np.float32)
    labels = np.array([0, 4, 2]) if unet.num_classes else None
    ours = jax.jit(lambda p, *args: unet.apply({"params": p}, *args))(
        params, x_t, t, {} if labels is None else {"label": labels}
    )
    expected = run_peer(peer, x_t, unet.time_scale * t, labels)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


def test_the_full_size_has_the_peers_tensors():
    import torch

    with torch.device("meta"):
        peer = peer_unet(128, (1, 2, 2, 2), 2, (1,), 32, 32)
    ours = jax.eval_shape(lambda key: init_params(UNet(), key, (32, 32, 3)), jax.random.key(0))
    count = sum(p.numel() for p in peer.parameters())
    assert count == num_params(ours) == 35_746_307
    sizes = sorted(p.numel() for p in peer.parameters())
    assert sizes == sorted(leaf.size for leaf in jax.tree.leaves(ours))
