"""Sample metrics beside the PyTorch codes whose numbers people compare with.

`pip install --no-deps torch-fidelity==0.4.0 pytorch-fid==0.3.0 clean-fid==0.1.35`; the weights are random, so that
nothing is downloaded.
"""

import sys
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.evaluation.feature_extractors import Extractor, inception_extractor
from ddpm_jax.evaluation.frechet_distance import frechet_from_features
from ddpm_jax.evaluation.inception import resize_tf_bilinear
from ddpm_jax.evaluation.inception_score import inception_score, softmax
from ddpm_jax.evaluation.inception_weights import leaves_from_torch, save_inception
from ddpm_jax.evaluation.kid import kernel_distance, kernel_distance_of_subsets
from ddpm_jax.evaluation.precision_recall import precision_recall
from ddpm_jax.runtime.devices import make_mesh

torch = pytest.importorskip("torch")


@pytest.fixture
def peer(monkeypatch):
    """import_peer(name), with a stand-in for torchvision, which their data loaders alone need."""

    def import_peer(name):
        for stub in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional",
                     "torchvision.datasets", "torchvision.models", "torchvision.models.inception"):  # fmt: skip
            if stub not in sys.modules:
                monkeypatch.setitem(sys.modules, stub, mock.MagicMock(name=stub))
        return pytest.importorskip(name, reason=f"{name} is not installed: see the top of this file")

    return import_peer


def features(seed, num_rows, num_dims, mean=0.0):
    """Positive and skewed, as pooled activations are; float32."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((num_rows, num_dims)) @ rng.standard_normal((num_dims, num_dims)) / num_dims**0.5
    return np.maximum(mixed + mean, 0).astype(np.float32)


def test_frechet_is_pytorch_fids(peer):
    fid_score = peer("pytorch_fid.fid_score")
    a, b = features(0, 400, 48), features(1, 500, 48, mean=0.2)
    statistics = [x for f in (a, b) for x in (f.astype(np.float64).mean(axis=0), np.cov(f.astype(np.float64).T))]
    want = fid_score.calculate_frechet_distance(*statistics)
    assert frechet_from_features(a, b) == pytest.approx(want, rel=1e-6)


def test_kid_is_torch_fidelitys(peer):
    metric_kid = peer("torch_fidelity.metric_kid")
    a, b = features(2, 300, 40).astype(np.float64), features(3, 300, 40, mean=0.1).astype(np.float64)
    settings = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None,
                "kid_kernel_poly_coef0": 1, "verbose": False}  # fmt: skip
    assert kernel_distance(a, b) == pytest.approx(metric_kid.kernel_mmd(a, b, **settings), rel=1e-6)
    # Their subsets are drawn otherwise: equal where a subset is the set.
    more = settings | {"kid_subsets": 2, "kid_subset_size": 300, "rng_seed": 0}
    want = metric_kid.kid_features_to_metric(torch.tensor(a), torch.tensor(b), **more)
    got = kernel_distance_of_subsets(a, b, num_subsets=2, subset_size=300)
    assert got[0] == pytest.approx(want["kernel_inception_distance_mean"], rel=1e-6)


def test_inception_score_is_torch_fidelitys(peer):
    metric_isc = peer("torch_fidelity.metric_isc")
    logits = 2 * np.random.default_rng(4).standard_normal((105, 1008)).astype(np.float32)
    want = metric_isc.isc_features_to_metric(torch.tensor(logits), splits=10, shuffle=False)
    mean, deviation = inception_score(softmax(logits))
    assert mean == pytest.approx(want["inception_score_mean"], rel=1e-6)
    assert deviation == pytest.approx(want["inception_score_std"], rel=1e-6)


def test_precision_and_recall_are_torch_fidelitys(peer):
    metric_prc = peer("torch_fidelity.metric_prc")
    samples, real = features(5, 230, 12).astype(np.float64), features(6, 260, 12, mean=0.4).astype(np.float64)
    want = metric_prc.calculate_precision_recall_full(torch.tensor(samples), torch.tensor(real))
    got = precision_recall(samples, real)
    assert 0.05 < min(got) and max(got) < 0.95
    assert got == pytest.approx(want, rel=1e-6)  # their mean is of float32


def test_the_resize_is_torch_fidelitys():
    interpolate = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    images = np.random.default_rng(7).integers(0, 256, (2, 32, 28, 3)).astype(np.uint8)
    theirs = interpolate.interpolate_bilinear_2d_like_tensorflow1x(
        torch.tensor(images).permute(0, 3, 1, 2).float(), size=(299, 299), align_corners=False
    )
    got = resize_tf_bilinear(jnp.asarray(images))
    np.testing.assert_allclose(got, theirs.permute(0, 2, 3, 1), atol=1e-4)


def test_the_clean_resize_is_clean_fids():
    resize = pytest.importorskip("cleanfid.resize")
    from ddpm_jax.evaluation.feature_extractors import resize_clean

    images = np.random.default_rng(8).integers(0, 256, (2, 40, 28, 3)).astype(np.uint8)
    want = np.stack([resize.build_resizer("clean")(image) for image in images])
    np.testing.assert_array_equal(resize_clean(images), want)


@pytest.fixture(scope="module")
def torch_inception():
    """torch-fidelity's network with random weights, at a scale that keeps activations alive, and no download."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    class WithoutFile(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *args, **kwargs: {})
        net = WithoutFile("x", ["2048", "logits_unbiased"], feature_extractor_weights_path="none")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            if name.endswith("conv.weight"):
                value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
            elif name.endswith(("bn.weight", "running_var")):
                value.uniform_(0.8, 1.25, generator=generator)
            elif value.is_floating_point():
                value.normal_(0, 0.1, generator=generator)
    return net


def test_the_network_is_torch_fidelitys(torch_inception, tmp_path):
    """From uint8 pictures to features and logits: resize, range, every block and pool, names of the weights."""
    from flax.traverse_util import unflatten_dict

    tensors = {name: value.numpy() for name, value in torch_inception.state_dict().items()}
    save_inception(tmp_path / "weights.npz", unflatten_dict(leaves_from_torch(tensors, "theirs"), sep="/"))
    extractor: Extractor = inception_extractor(str(tmp_path / "weights.npz"))
    rng = np.random.default_rng(9)
    images = rng.integers(0, 256, (2, 1, 1, 3)) * 0.5 + rng.integers(0, 128, (2, 32, 32, 3))
    images = images.astype(np.uint8)
    with torch.no_grad():
        pool, logits = (x.numpy() for x in torch_inception(torch.tensor(images).permute(0, 3, 1, 2)))
    got = extractor.on_devices(make_mesh(1), 2)(images, (32, 32, 3))
    assert pool.std() > 0.01 and np.abs(pool[0] - pool[1]).max() > 0.01
    # Sums of up to 17,280 products in float32, some 40 of them one after another.
    np.testing.assert_allclose(got["main"], pool, rtol=1e-3, atol=1e-4 * pool.max())
    np.testing.assert_allclose(got["logits"], logits, rtol=1e-3, atol=1e-4 * np.abs(logits).max())
