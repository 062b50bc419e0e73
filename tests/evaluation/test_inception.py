"""The FID's Inception v3: its shape, its pools, its resize rules, and its weights from three layouts."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.evaluation.feature_extractors import inception_extractor, resize_clean
from ddpm_jax.evaluation.inception import Inception, average_pool, resize_tf_bilinear, to_input_range
from ddpm_jax.evaluation.inception_weights import leaves_from_torch, load_inception, save_inception
from ddpm_jax.runtime.errors import UserError


@functools.cache
def abstract_leaves(has_output=True):
    wanted = jax.eval_shape(
        lambda: Inception(has_output=has_output).init(jax.random.key(0), jnp.zeros((2, 299, 299, 3)))
    )["params"]
    return flax.traverse_util.flatten_dict(wanted, sep="/")


def test_its_size_is_that_of_inception_v3():
    leaves = abstract_leaves()
    convs = [name for name in leaves if name.endswith("kernel") and name != "logits_kernel"]
    assert len(convs) == 94
    # Keras' InceptionV3 without its top: 21,768,352 trainable numbers, kernels and shifts.
    assert sum(leaf.size for name, leaf in leaves.items() if name != "logits_kernel") == 21_768_352
    assert leaves["logits_kernel"].shape == (2048, 1008)
    features = jax.eval_shape(
        lambda: Inception().init_with_output(jax.random.key(0), jnp.zeros((2, 299, 299, 3)))[0]
    )
    assert [x.shape for x in features] == [(2, 2048), (2, 2023), (2, 1008)]


def test_average_pools_do_not_count_the_padding():
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    padded = np.pad(np.asarray(x)[0, :, :, 0], 1, constant_values=np.nan)
    want = [[np.nanmean(padded[i : i + 3, j : j + 3]) for j in range(4)] for i in range(3)]
    np.testing.assert_allclose(average_pool(x)[0, :, :, 0], want, rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 5), (8, 8), (20, 13), (11, 11)])
def test_the_resize_is_that_of_tensorflow_1(shape):
    """Pixel i at i * in/out, between floor and the next, the last repeated."""
    image = np.random.default_rng(0).integers(0, 256, (1, *shape, 2)).astype(np.uint8)
    size = 11
    want = np.empty((size, size, 2))
    for i in range(size):
        for j in range(size):
            y, x = i * shape[0] / size, j * shape[1] / size
            top, left = int(y), int(x)
            bottom, right = min(top + 1, shape[0] - 1), min(left + 1, shape[1] - 1)
            pixels = image[0].astype(np.float64)
            upper = pixels[top, left] * (1 - (x - left)) + pixels[top, right] * (x - left)
            lower = pixels[bottom, left] * (1 - (x - left)) + pixels[bottom, right] * (x - left)
            want[i, j] = upper * (1 - (y - top)) + lower * (y - top)
    got = resize_tf_bilinear(jnp.asarray(image), size)
    # Positions up to 20 in float32 are off by 1e-6, pixels differ by up to 255.
    np.testing.assert_allclose(got[0], want, atol=5e-4)
    if shape == (size, size):
        np.testing.assert_array_equal(got, image)


def test_the_resize_by_hand():
    """Doubling a row: each pixel, then the mean with the next; the last stays: not centred, unlike PyTorch's."""
    row = jnp.array([0, 100, 200], jnp.uint8).reshape(1, 1, 3, 1)
    np.testing.assert_array_equal(resize_tf_bilinear(row, 6)[0, 0, :, 0], [0, 50, 100, 150, 200, 200])
    # Shrinking skips pixels: no antialiasing.
    stripes = jnp.tile(jnp.array([0, 255], jnp.uint8), 6).reshape(1, 1, 12, 1)
    np.testing.assert_array_equal(resize_tf_bilinear(stripes, 6)[0, 0, :, 0], [0] * 6)
    np.testing.assert_array_equal(to_input_range(jnp.array([0.0, 128.0, 255.0])), [-1, 0, 0.9921875])


def test_the_clean_resize_is_pillows_in_float():
    images = np.random.default_rng(1).integers(64, 192, (5, 40, 24, 3)).astype(np.uint8)
    got = resize_clean(images, 17)
    assert got.shape == (5, 17, 17, 3) and got.dtype == np.float32
    for image, resized in zip(images, got, strict=True):
        # Pillow's own on 8 bits rounds twice, once a direction.
        rounded = np.asarray(Image.fromarray(image).resize((17, 17), Image.Resampling.BICUBIC))
        assert np.abs(rounded - resized).max() <= 1.0
    assert (got != np.round(got)).mean() > 0.5  # not rounded
    stripes = np.tile(np.array([0, 255], np.uint8), 12).reshape(1, 1, 24, 1).repeat(24, axis=1)
    assert np.abs(resize_clean(stripes, 6) - 127.5).max() < 20  # antialiased
    edge = np.repeat(np.array([0, 255], np.uint8), 12).reshape(1, 1, 24, 1).repeat(24, axis=1)
    assert resize_clean(edge, 50).min() == 0 and resize_clean(edge, 50).max() == 255  # bicubic overshoots: clipped


def theirs(rng, style):
    """(tensors in the layout of another code, our names of its convolutions in its order)."""
    from ddpm_jax.evaluation import inception_weights as iw

    shapes = {name.removesuffix("/conv/kernel"): leaf.shape for name, leaf in abstract_leaves().items() if "/" in name}
    shapes = {name: shape for name, shape in shapes.items() if len(shape) == 4}
    if style == "pytorch_fid":
        names = {ours: other for other, ours in iw._pytorch_fid_convs().items()}
        parts = ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.weight")
    else:
        nested = ("mixed", *(f"mixed_{n}" for n in range(1, 9)))
        names = {}
        for ours in shapes:
            block, _, rest = ours.partition("_tower") if "_tower" in ours else (ours.removesuffix("_conv"), "", "")
            if not ours.startswith("mixed"):
                names[ours] = f"net.layers.{ours}"
            elif not rest:
                names[ours] = f"net.layers.{block}.conv"
            elif block in nested:
                names[ours] = f"net.layers.{block}.tower" + rest.replace("_conv", ".conv")
            else:
                names[ours] = f"net.layers.{block}.tower{rest}"
        parts = ("weight", "beta", "mean", "var")
    assert names.keys() == shapes.keys()
    tensors = {}
    for ours, shape in shapes.items():
        height, width, c_in, c_out = shape
        values = (rng(c_out, c_in, height, width), rng(c_out), rng(c_out), rng(c_out) ** 2 + 0.1, rng(c_out) + 1)
        tensors |= {f"{names[ours]}.{part}": value for part, value in zip(parts, values, strict=False)}
    if style == "pytorch_fid":
        tensors |= {"fc.weight": rng(1008, 2048), "fc.bias": rng(1008)}
        tensors["Conv2d_1a_3x3.bn.num_batches_tracked"] = np.array(0)
    return tensors


def random_arrays(seed=0):
    generator = np.random.default_rng(seed)
    return lambda *shape: generator.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("style", ["pytorch_fid", "stylegan"])
def test_both_layouts_fill_the_network_and_fold_the_batch_norm(style):
    tensors = theirs(random_arrays(), style)
    leaves = leaves_from_torch(tensors, "a file")
    assert {n: x.shape for n, x in leaves.items()} == {
        n: x.shape for n, x in abstract_leaves(has_output=style == "pytorch_fid").items()
    }
    prefix, parts = ("Mixed_6d.branch7x7dbl_3", "conv. bn. bn. bn. bn.".split()) if style == "pytorch_fid" else (
        "net.layers.mixed_6.tower_1.conv_2", [""] * 5
    )  # fmt: skip
    names = ("weight", "weight", "bias", "running_mean", "running_var") if style == "pytorch_fid" else (
        "weight", None, "beta", "mean", "var"
    )  # fmt: skip
    weight, gamma, beta, mean, var = (
        np.float64(1) if name is None else tensors[f"{prefix}.{part}{name}"].astype(np.float64)
        for part, name in zip(parts, names, strict=True)
    )
    patch = np.random.default_rng(1).standard_normal(weight.shape[1:])  # [C_in, kH, kW]
    want = gamma * ((weight * patch).sum(axis=(1, 2, 3)) - mean) / np.sqrt(var + 0.001) + beta
    ours = "mixed_6_tower_1_conv_2/conv"
    kernel, bias = leaves[f"{ours}/kernel"], leaves[f"{ours}/bias"]
    got = (kernel * patch.transpose(1, 2, 0)[..., None]).sum(axis=(0, 1, 2), dtype=np.float64) + bias
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    if style == "pytorch_fid":
        np.testing.assert_array_equal(leaves["logits_kernel"], tensors["fc.weight"].T)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """An .npz in our own layout, small values, with the output layer."""
    rng = random_arrays(2)
    leaves = {name: rng(*leaf.shape) for name, leaf in abstract_leaves().items()}
    for name, leaf in leaves.items():
        leaf *= np.sqrt(2 / np.prod(leaf.shape[:-1])) if name.endswith("kernel") else 0.1
    path = tmp_path_factory.mktemp("weights") / "inception.npz"
    save_inception(path, flax.traverse_util.unflatten_dict(leaves, sep="/"))
    return str(path)


def test_our_own_file_comes_back(random_weights):
    params = load_inception(random_weights)
    with np.load(random_weights) as file:
        assert len(file.files) == 2 * 94 + 1
        np.testing.assert_array_equal(params["mixed_10_conv"]["conv"]["kernel"], file["mixed_10_conv/conv/kernel"])


def test_what_is_not_inception_is_one_line(tmp_path):
    missing, text, other, lacking = (tmp_path / name for name in ("none.pth", "a.npz", "other.npz", "lacking.npz"))
    text.write_text("not an npz")
    np.savez(other, arr_0=np.zeros(3))
    leaves = {name: np.zeros(leaf.shape, np.float32) for name, leaf in abstract_leaves(has_output=False).items()}
    np.savez(lacking, **(leaves | {"mixed_conv/conv/bias": np.zeros(3)}))
    for path, message in (
        (missing, "there is no .*none.pth"),
        (text, "cannot be read as an .npz"),
        (other, "is not the FID's Inception v3: arr_0 is .3,. and must be absent"),
        (lacking, r"mixed_conv/conv/bias is \(3,\) and must be \(64,\)"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load_inception(str(path))
        assert "docs/metrics.md" in str(caught.value) or path == text
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="must hold pytorch-fid's tensors"):
        leaves_from_torch({"conv1.weight": np.zeros(3)}, "resnet.pth")
    tensors = theirs(random_arrays(), "pytorch_fid")
    del tensors["Mixed_7c.branch_pool.bn.running_var"]
    with pytest.raises(UserError, match="lacks Mixed_7c.branch_pool.bn.running_var"):
        leaves_from_torch(tensors, "cut.pth")


def test_features_of_a_picture_do_not_depend_on_the_others_or_the_devices(random_weights):
    from ddpm_jax.runtime.devices import make_mesh

    extractor = inception_extractor(random_weights)
    images = np.random.default_rng(3).integers(0, 256, (3, 16, 12, 1)).astype(np.uint8)
    found = extractor.on_devices(make_mesh(2), 4)(images, images.shape[1:])
    assert {name: rows.shape for name, rows in found.items()} == {n: (3, w) for n, w in extractor.widths.items()}
    assert found["main"].std() > 0.01
    # Grey is three equal channels.
    colour = extractor.on_devices(make_mesh(1), 2)(images[:2].repeat(3, axis=-1), (16, 12, 3))
    for name in found:
        np.testing.assert_allclose(found[name][:2], colour[name], rtol=1e-3, atol=1e-4)


def test_the_rules_of_resizing_differ_and_are_named(random_weights):
    extractors = {rule: inception_extractor(random_weights, rule) for rule in ("tf_bilinear", "clean")}
    assert extractors["tf_bilinear"].facts["resize"] == "tf_bilinear"
    assert extractors["clean"].facts != extractors["tf_bilinear"].facts
    images = np.zeros((2, 8, 8, 3), np.uint8)
    assert extractors["clean"].prepare(images).shape == (2, 299, 299, 3)
    assert extractors["tf_bilinear"].prepare(images) is images
    with pytest.raises(UserError, match="--resize must be one of"):
        inception_extractor(random_weights, "bilinear")
