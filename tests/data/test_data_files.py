"""Digits, the original files of MNIST, Fashion-MNIST and CIFAR-10, and array files."""

import gzip
import io
import pickle
import pickletools
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from ddpm_jax.data import make_source
from ddpm_jax.runtime.errors import UserError

RNG = np.random.default_rng(0)


def _make(name, path="", split="train", image_size=(28, 28), num_channels=1):
    return make_source(name=name, path=str(path), split=split, image_size=image_size, num_channels=num_channels)


def _all(source):
    return source.load(np.arange(len(source)))


def _refused(match, *args, **kwargs):
    with pytest.raises(UserError, match=match) as caught:
        _make(*args, **kwargs)
    assert "\n" not in str(caught.value)


# ---- digits


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    digits = load_digits()
    train, test, both = (_make("digits", split=s, image_size=(8, 8)) for s in ("train", "test", "all"))
    assert (len(train), len(test), len(both)) == (1617, 180, 1797)
    np.testing.assert_array_equal(_all(test)[..., 0], np.round(digits.images[::10] * 255 / 16))
    np.testing.assert_array_equal(test.labels, digits.target[::10])
    assert _all(both).max() == 255 and both.labels.dtype == np.int64
    held_out = {image.tobytes() for image in _all(test)}
    assert not held_out & {image.tobytes() for image in _all(train)}
    assert len(_make("digits", split="train[:80%]", image_size=(8, 8))) == 1294


def test_digits_in_another_size_and_colour():
    small, large = _make("digits", image_size=(8, 8)), _make("digits", image_size=(16, 12), num_channels=3)
    assert large.image_shape == (16, 12, 3)
    some = np.array([5, 3, 5])  # a batch may hold an image twice
    images = large.load(some)
    np.testing.assert_array_equal(images[0], images[2])
    np.testing.assert_array_equal(images, large.load(some))  # the second time from what was kept
    fresh = _make("digits", image_size=(16, 12), num_channels=3)
    np.testing.assert_array_equal(large.load(np.arange(9)), fresh.load(np.arange(9)))  # some kept, some not
    mean = small.load(some)[:, :, 1:7].mean((1, 2, 3))  # 12 of 16 columns
    np.testing.assert_allclose(images.mean((1, 2, 3)), mean, atol=4)


def test_digits_refuse():
    _refused(
        r"split must be one of \['all', 'test', 'train'\]; got 'tset'; did you mean",
        "digits",
        split="tset",
    )
    _refused("^path is not read for 'digits'", "digits", path="/some/folder")
    _refused("num_channels must be 1 .* or 3", "digits", num_channels=2)
    _refused(r"image_size must be \(H, W\)", "digits", image_size=(8, 0))


# ---- idx


def _idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


@pytest.fixture
def idx_folder(tmp_path):
    images = {p: RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8) for p, n in (("train", 12), ("t10k", 5))}
    for prefix, array in images.items():
        labels = np.arange(len(array), dtype=np.uint8)
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(array)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(labels)))
    return tmp_path, images


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files(idx_folder, name):
    folder, images = idx_folder
    train, test = _make(name, folder), _make(name, folder, split="test")
    np.testing.assert_array_equal(_all(train)[..., 0], images["train"])
    np.testing.assert_array_equal(_all(test)[..., 0], images["t10k"])
    assert train.labels.tolist() == list(range(12)) and train.labels.dtype == np.int64
    part = _make(name, folder, split="train[:50%]")
    np.testing.assert_array_equal(_all(part)[..., 0], images["train"][part.labels])  # still its own label
    assert _make(name, folder, image_size=(32, 32), num_channels=3).load(np.arange(3)).shape == (3, 32, 32, 3)


def test_idx_files_uncompressed_or_decompressed_under_the_old_name(idx_folder):
    folder, images = idx_folder
    packed = folder / "train-images-idx3-ubyte.gz"
    packed.write_bytes(gzip.decompress(packed.read_bytes()))
    np.testing.assert_array_equal(_all(_make("mnist", folder))[..., 0], images["train"])
    packed.rename(folder / "train-images.idx3-ubyte")
    np.testing.assert_array_equal(_all(_make("mnist", folder))[..., 0], images["train"])


@pytest.mark.parametrize(
    "damage, match",
    [
        (lambda b: b[:-100], "damaged or truncated"),
        (lambda b: b[:30] + b"xxxx" + b[34:], "damaged or truncated"),
        (
            lambda b: gzip.compress(gzip.decompress(b)[:-1]),
            "must hold 9424 bytes for its 12 x 28 x 28 values; got 9423",
        ),
        (
            lambda b: gzip.compress(_idx(np.zeros(30, np.uint8))),
            "idx magic number 0x00000803; got 0x00000801 in 38 bytes",
        ),
        (lambda b: b"<!DOCTYPE html>" * 9, "idx magic number 0x00000803; got 0x3c21444f"),
        (lambda b: b"", "idx magic number .* in 0 bytes"),
        (lambda b: gzip.compress(_idx(np.zeros((3, 28, 28), np.uint8))), "3 images but 12 labels"),
    ],
    ids=["cut", "corrupt", "one byte short", "labels", "web page", "empty", "other set"],
)
def test_wrong_idx_files_are_refused(idx_folder, damage, match):
    file = idx_folder[0] / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    _refused(match, "mnist", idx_folder[0])


def test_missing_idx_files_are_named(tmp_path):
    _refused("holds no train-images-idx3-ubyte.gz", "mnist", tmp_path)
    _refused("^path must be the folder .*no such folder", "fashion_mnist", tmp_path / "nowhere")
    _refused(r"split must be one of \['test', 'train'\]", "mnist", tmp_path, split="validation")


def test_the_real_fashion_mnist(real_data):
    folder = real_data / "fashion-mnist"
    if not folder.is_dir():
        pytest.skip(f"real image data not found at {folder}; skipped")
    test = _make("fashion_mnist", folder, split="test")
    assert len(test) == 10_000 and np.bincount(test.labels).tolist() == [1000] * 10
    images = _all(test)
    assert images.shape == (10_000, 28, 28, 1) and 72 < images.mean() < 74
    # Trousers (1) are narrow, pullovers (2) fill the frame: the labels belong to the images.
    ink = [(images[test.labels == k] > 0).mean() for k in (1, 2)]
    assert ink[0] < 0.4 < 0.6 < ink[1]


# ---- CIFAR-10

CIFAR = {f"data_batch_{i}": RNG.integers(0, 256, (4, 3072), dtype=np.uint8) for i in range(1, 6)}
CIFAR["test_batch"] = RNG.integers(0, 256, (3, 3072), dtype=np.uint8)


def _cifar_binary(planes):
    return np.concatenate([np.arange(len(planes), dtype=np.uint8)[:, None], planes], 1).tobytes()


def _cifar_python(planes, labels=None):
    """A pickle as Python 2 wrote it: protocol 2, byte strings, `numpy.core`."""
    labels = list(range(len(planes))) if labels is None else labels
    data = pickle.dumps({b"data": planes, b"labels": labels, b"batch_label": b"batch"}, protocol=3)
    old = bytearray(data)
    for opcode, _, at in pickletools.genops(data):
        if opcode.name in ("BINBYTES", "SHORT_BINBYTES"):
            old[at] = {"BINBYTES": b"T", "SHORT_BINBYTES": b"U"}[opcode.name][0]
    old[1] = 2
    return bytes(old).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def _tar(files: dict[str, bytes], folder: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _write_cifar(path, layout):
    encode, ending = (_cifar_binary, ".bin") if "bin" in layout else (_cifar_python, "")
    files = {name + ending: encode(planes) for name, planes in CIFAR.items()}
    if layout.endswith(".tar.gz"):
        (path / layout).write_bytes(_tar(files, "cifar-10-batches"))
        return
    folder = path / layout.removeprefix("here-")
    folder = path if layout.startswith("here-") else folder
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


LAYOUTS = [
    "cifar-10-binary.tar.gz",
    "cifar-10-batches-bin",
    "here-bin",
    "cifar-10-python.tar.gz",
    "cifar-10-batches-py",
    "here-py",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cifar10_files(tmp_path, layout):
    _write_cifar(tmp_path, layout)
    train, test = (_make("cifar10", tmp_path, s, (32, 32), 3) for s in ("train", "test"))
    planes = np.concatenate([CIFAR[f"data_batch_{i}"] for i in range(1, 6)]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(_all(train), planes.transpose(0, 2, 3, 1))
    assert len(test) == 3 and train.labels.tolist() == [0, 1, 2, 3] * 5
    assert _make("cifar10", tmp_path, "train[:8]", (16, 16), 1).load(np.arange(8)).shape == (8, 16, 16, 1)


@pytest.mark.parametrize("layout", ["cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"])
def test_truncated_cifar10_archives_are_refused(tmp_path, layout):
    _write_cifar(tmp_path, layout)
    whole = (tmp_path / layout).read_bytes()
    for size in (0, 5, len(whole) // 2):
        (tmp_path / layout).write_bytes(whole[:size])
        _refused("damaged or truncated|holds no", "cifar10", tmp_path, image_size=(32, 32), num_channels=3)


def test_wrong_cifar10_files_are_refused(tmp_path):
    colour = dict(image_size=(32, 32), num_channels=3)
    _refused("holds neither cifar-10-binary.tar.gz nor data_batch_1.bin", "cifar10", tmp_path, **colour)
    _write_cifar(tmp_path, "here-bin")
    file = tmp_path / "data_batch_3.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    _refused("data_batch_3.bin' must hold whole records of 3073 bytes; got 12291", "cifar10", tmp_path, **colour)
    file.write_bytes(b"\xff" + whole[1:])
    _refused("data_batch_3.bin' must hold labels 0..9.*got labels 0..255", "cifar10", tmp_path, **colour)
    file.unlink()
    _refused("lacks data_batch_3.bin", "cifar10", tmp_path, **colour)


class _Evil:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return open, (str(self.witness), "w")


def test_a_pickle_cannot_run_anything(tmp_path):
    witness = tmp_path / "was_here"
    pickle.loads(pickle.dumps(_Evil(witness))).close()
    assert witness.exists()  # an ordinary reader falls for it
    witness.unlink()
    for content in ({b"data": _Evil(witness), b"labels": [0]}, CIFAR["test_batch"], [1, 2]):
        (tmp_path / "test_batch").write_bytes(pickle.dumps(content))
        _refused("test_batch' is not a file of CIFAR-10's Python version", "cifar10", tmp_path, split="test")
    assert not witness.exists()


# ---- arrays

GREY = RNG.integers(0, 256, (10, 6, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (10, 6, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("key", ["arr_0", "images", "x_train", "anything"])
def test_npz(tmp_path, key):
    np.savez(tmp_path / "a.npz", **{key: COLOUR})
    source = _make("array", tmp_path / "a.npz", image_size=(6, 7), num_channels=3)
    np.testing.assert_array_equal(_all(source), COLOUR)
    assert source.labels is None


def test_npz_labels_and_the_layout_of_keras(tmp_path):
    labels = np.arange(10)
    for extra in ({"labels": labels}, {"arr_1": labels[:, None].astype(np.uint8)}, {"y_train": labels}):
        np.savez_compressed(tmp_path / "a.npz", x_train=GREY, x_test=GREY[:4] // 2, **extra)
        source = _make("array", tmp_path / "a.npz", image_size=(6, 7))
        np.testing.assert_array_equal(source.labels, labels)
    test = _make("array", tmp_path / "a.npz", "test", (6, 7))
    np.testing.assert_array_equal(_all(test)[..., 0], GREY[:4] // 2)
    part = _make("array", tmp_path / "a.npz", "train[:30%]", (6, 7))
    np.testing.assert_array_equal(_all(part)[..., 0], GREY[part.labels])


def test_npy_is_memory_mapped(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    source = _make("array", tmp_path / "a.npy", image_size=(6, 7))
    np.testing.assert_array_equal(source.load(np.array([7, 0, 7]))[..., 0], GREY[[7, 0, 7]])
    assert isinstance(source._images, np.memmap)
    assert _make("array", tmp_path / "a.npy", image_size=(3, 3), num_channels=3).image_shape == (3, 3, 3)


def test_arrays_of_unusual_channels(tmp_path):
    np.save(tmp_path / "a.npy", np.concatenate([COLOUR, COLOUR], -1))
    assert _make("array", tmp_path / "a.npy", image_size=(12, 14), num_channels=6).image_shape == (12, 14, 6)
    _refused("num_channels must be 6, as in .*; got 3", "array", tmp_path / "a.npy", num_channels=3)


@pytest.mark.parametrize(
    "array, match",
    [
        (COLOUR / 255, r"got float64 \[10, 6, 7, 3\] with values 0..1; save \(255 \* x\)"),
        (COLOUR.astype(np.float32) / 127.5 - 1, r"values -1..1; save \(\(x \+ 1\) \* 127.5\)"),
        (COLOUR.astype(np.int64), r"with values 0..255; save x.astype\('uint8'\)"),
        (COLOUR.astype(np.int64) * 5, "scale it to 0..255"),
        (COLOUR.transpose(0, 3, 1, 2), r"looks like \[N, C, H, W\]; save x.transpose\(0, 2, 3, 1\)"),
        (COLOUR[0, 0], "reshape it"),
        (COLOUR[:0], "no images"),
        (np.array([None, "x"]), "cannot be read as a NumPy file .*no object arrays"),
    ],
    ids=["0..1", "-1..1", "int64", "too large", "NCHW", "rank 2", "empty", "objects"],
)
@pytest.mark.parametrize("ending", ["npz", "npy"])
def test_other_arrays_are_refused_with_the_remedy(tmp_path, array, match, ending):
    file = tmp_path / f"a.{ending}"
    np.save(file, array) if ending == "npy" else np.savez(file, array)
    _refused(match, "array", file, image_size=(6, 7), num_channels=3)


def test_wrong_array_files_are_refused(tmp_path):
    _refused("must name a .npz or .npy file .*; got ''", "array")
    _refused("got '.*a.npz' .no such file", "array", tmp_path / "a.npz")
    _refused("a folder.; to read a folder of images take name=image_folder", "array", tmp_path)
    np.savez(tmp_path / "a.npz", first=GREY, second=GREY)
    _refused("must hold its images as arr_0, images, x_train .*it holds first, second", "array", tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", images=GREY, labels=np.arange(3))
    _refused("10 images but 3 labels", "array", tmp_path / "a.npz")
    _refused("as x_test for split='test'; it holds images, labels", "array", tmp_path / "a.npz", "test")
    whole = (tmp_path / "a.npz").read_bytes()
    np.save(tmp_path / "b.npy", GREY)
    for name, data in {"a.npz": whole, "b.npy": (tmp_path / "b.npy").read_bytes()}.items():
        for size in (0, 40, len(data) // 2):
            (tmp_path / name).write_bytes(data[:size])
            _refused("cannot be read as a NumPy file", "array", tmp_path / name)


def test_importing_the_data_layer_imports_nothing_heavy():
    code = (
        "import sys, ddpm_jax.data\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'sklearn', 'PIL', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
