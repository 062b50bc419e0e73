"""TensorFlow Datasets, read without TensorFlow."""

import importlib.util
import io
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ddpm_jax.data import ImageSource, make_source, tfds_prepare
from ddpm_jax.runtime.errors import UserError

NUM_IMAGES = 12
PIXELS = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 6, 9, 3), dtype=np.uint8)


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """Twelve lossless pictures; every other one is stored as RGBA, as strangers' sets do."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(num_classes=3),
                "number": np.int64,
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(9)), "test": self._generate_examples(range(9, 12))}

    def _generate_examples(self, numbers):
        for n in numbers:
            buffer = io.BytesIO()
            Image.fromarray(PIXELS[n]).convert("RGBA" if n % 2 else "RGB").save(buffer, "PNG")
            yield n, {"image": buffer.getvalue(), "label": n % 3, "number": n}


class TinyTensors(tfds.core.GeneratorBasedBuilder):
    """Grey pictures stored as they are, and no label."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"x": tfds.features.Tensor(shape=(6, 9, 1), dtype=np.uint8)})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for n in range(NUM_IMAGES):
            yield n, {"x": PIXELS[n, :, :, :1]}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (TinyPictures, TinyTensors):
        builder(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def _make(name, data_dir="", split="train", image_size=(6, 9), num_channels=3) -> ImageSource:
    return make_source(name=name, data_dir=str(data_dir), split=split, image_size=image_size, num_channels=num_channels)


def _all(source):
    return source.load(np.arange(len(source)))


def _refused(match, *args, **kwargs):
    with pytest.raises(UserError, match=match) as caught:
        _make(*args, **kwargs)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize("place", ["", "tiny_pictures/1.0.0"])
def test_a_prepared_folder(data_dir, place):
    """By the folder that holds prepared sets, and by the prepared set itself."""
    train, test = (_make("tiny_pictures", data_dir / place, split) for split in ("train", "test"))
    assert isinstance(train, ImageSource) and train.image_shape == (6, 9, 3)
    seen = {image.tobytes(): label for s in (train, test) for image, label in zip(_all(s), s.labels, strict=True)}
    assert seen == {image.tobytes(): n % 3 for n, image in enumerate(PIXELS)}
    assert (len(train), len(test)) == (9, 3) and train.labels.dtype == np.int64


def test_slices_sizes_and_channels(data_dir):
    assert len(_make("tiny_pictures", data_dir, "train[:34%]")) == 3
    assert len(_make("tiny_pictures", data_dir, "train+test")) == 12
    small = _make("tiny_pictures", data_dir, image_size=(4, 4), num_channels=1)
    assert small.load(np.array([8, 0, 8])).shape == (3, 4, 4, 1)
    np.testing.assert_array_equal(small.load(np.array([8, 0, 8])), _all(small)[[8, 0, 8]])


def test_images_stored_as_tensors(data_dir):
    source = _make("tiny_tensors", data_dir, num_channels=1)
    assert {i.tobytes() for i in _all(source)} == {i[:, :, :1].tobytes() for i in PIXELS}
    assert source.labels is None


def test_on_demand_equals_in_memory(data_dir, monkeypatch):
    kept = _all(_make("tiny_pictures", data_dir))
    monkeypatch.setattr("ddpm_jax.data.image_source.MEMORY_BUDGET_BYTES", 0)
    np.testing.assert_array_equal(_all(_make("tiny_pictures", data_dir)), kept)


def test_another_prepared_version_is_found(data_dir, tmp_path, monkeypatch):
    TinyPictures(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    monkeypatch.setattr(TinyPictures, "VERSION", tfds.core.Version("2.0.0"))
    assert len(_make("tiny_pictures", tmp_path)) == 9


@pytest.mark.parametrize("name, native", [("cifar10", (32, 32, 3)), ("mnist", (28, 28, 1))])
def test_stock_names(name, native):
    with tfds.testing.mock_data(num_examples=7):
        source = _make(name, image_size=native[:2], num_channels=native[2])
        assert len(source) == 7 and source.image_shape == native
        images = _all(source)
        assert images.std() > 30 and source.labels.shape == (7,) and source.labels.max() < 10
        assert _make(name, image_size=(8, 16)).load(np.arange(2)).shape == (2, 8, 16, 3)


def test_not_prepared_without_tensorflow(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "tensorflow" else find_spec(name, *a)
    )
    _refused(
        r"'cifar10' is not prepared in .*needs TensorFlow; pip install -e '.\[tfds-prepare\]', "
        r"or prepare it on another machine .*set data_dir, "
        r"or put the original files into a folder and set path=DIR",
        "cifar10",
        tmp_path,
    )
    with pytest.raises(UserError) as caught:
        _make("celeb_a", tmp_path)
    assert "path=DIR" not in str(caught.value)  # there is no reader for its original files


@pytest.fixture
def with_tensorflow(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: object() if name == "tensorflow" else find_spec(name, *a),
    )


def test_no_network_is_said_before_any_download(tmp_path, monkeypatch, with_tensorflow):
    def connect(address, **unused):
        assert address == ("storage.googleapis.com", 443)
        raise OSError("no route")

    monkeypatch.setattr(tfds_prepare.socket, "create_connection", connect)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", pytest.fail)
    _refused("storage.googleapis.com does not answer; check the network, or", "mnist", tmp_path)


def test_a_name_look_up_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(tfds_prepare, "_PROBE_SECONDS", 0.05)
    release = threading.Event()

    def connect(*unused, **also_unused):
        release.wait(10)
        raise OSError("at last")

    monkeypatch.setattr(tfds_prepare.socket, "create_connection", connect)
    assert not tfds_prepare._reachable("example.invalid", 443)
    release.set()


def test_a_host_that_answers_is_reachable():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert tfds_prepare._reachable("127.0.0.1", server.getsockname()[1])


def test_a_set_without_downloads_is_prepared(tmp_path, with_tensorflow):
    assert len(_make("tiny_pictures", tmp_path)) == 9
    assert list(tmp_path.glob("tiny_pictures/1.0.0/*.array_record*"))


def test_failing_preparation_is_one_line(tmp_path, monkeypatch, with_tensorflow):
    def fail(self, dl_manager):
        raise AssertionError("Manual directory is empty.\nPlease download the file by hand.")

    monkeypatch.setattr(TinyPictures, "_split_generators", fail)
    _refused("preparing it failed .*Manual directory is empty. Please download", "tiny_pictures", tmp_path)


def test_files_without_random_access(tmp_path, data_dir, monkeypatch):
    """Such files can only be written with TensorFlow, so the builder is told that it has them."""
    info = (data_dir / "tiny_tensors" / "1.0.0" / "dataset_info.json").read_text()
    folder = tmp_path / "tiny_tensors" / "1.0.0"
    folder.mkdir(parents=True)
    for file in (data_dir / "tiny_tensors" / "1.0.0").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert "array_record" in info
    (folder / "dataset_info.json").write_text(info.replace("array_record", "tfrecord"))
    _refused("stored as tfrecord, which has no random access; prepare it again", "tiny_tensors", tmp_path)


def test_missing_files_are_said_at_the_start(tmp_path):
    TinyTensors(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    for file in tmp_path.rglob("*.array_record*"):
        file.unlink()
    _refused("'tiny_tensors' in .* cannot be read .*prepare it again", "tiny_tensors", tmp_path)


def test_wrong_names_and_splits(data_dir):
    _refused("got 'cifarr10'; did you mean 'cifar10'", "cifarr10")
    _refused("got 'image_foldr'; did you mean 'image_folder'", "image_foldr")
    _refused("did you mean 'tiny_pictures'", "tiny_picture", data_dir)
    _refused("cannot be opened; its configurations are .*did you mean 'bedroom'", "lsun/bedrom")
    _refused(
        r"split must be one of \['test', 'train'\] .*got 'tets'; did you mean",
        "tiny_pictures",
        data_dir,
        "tets",
    )
    _refused("data_dir must be an existing folder", "mnist", data_dir / "nowhere")
    _refused("holds 'tiny_pictures', but name is 'mnist'", "mnist", data_dir / "tiny_pictures" / "1.0.0")
    _refused("must have one uint8 image feature", "ag_news_subset")
    with pytest.raises(UserError, match="^path is not read for 'celeb_a'"):
        make_source(name="celeb_a", path="x", image_size=(8, 8), num_channels=3)


def test_reading_imports_no_tensorflow(data_dir):
    code = (
        "import sys, numpy as np\n"
        "from ddpm_jax.data import make_source\n"
        f"s = make_source(name='tiny_pictures', data_dir={str(data_dir)!r}, image_size=(6, 9),"
        " num_channels=3)\n"
        "s.load(np.arange(4)), s.labels\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
