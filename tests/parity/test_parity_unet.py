"""The whole U-Net beside diffusers' at the ddpm-cifar10-32 architecture, on the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[parity]'")
pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e '.[parity]'")

from unet_weights import peer_unet, randomise, run_peer, to_our_params

from ddpm_jax.models.unet import UNet, init_params, num_params


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
    params = jax.tree.map(jnp.asarray, to_our_params(peer))
    unet = UNet(
        channels=32,
        channel_mults=mults,
        num_res_blocks=blocks,
        attention_resolutions=tuple(size[0] // 2**level for level in attention_levels),
        num_groups=num_groups,
    )
    expected_shapes = jax.eval_shape(lambda key: init_params(unet, key, (*size, 3)), jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected_shapes)
    x_t = np.random.default_rng(0).standard_normal((3, *size, 3)).astype(np.float32)
    t = np.array([0, 17, 999])
    ours = jax.jit(lambda p, x, t: unet.apply({"params": p}, x, t))(params, x_t, jnp.asarray(t))
    expected = run_peer(peer, x_t, t)
    assert np.std(expected) > 0.1  # the weights are random: the output says something
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
