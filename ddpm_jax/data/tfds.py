"""Any image set of TensorFlow Datasets, read without TensorFlow from its array_record files."""

import contextlib
import importlib.util
import logging
import os
from pathlib import Path

import numpy as np

from ddpm_jax.data.image_decoding import decode_image, fit_array
from ddpm_jax.data.image_source import DecodedSource, ImageSource, ThreadMap
from ddpm_jax.data.tfds_prepare import prepare
from ddpm_jax.runtime.errors import UserError, arg, did_you_mean


def make_tfds(
    *,
    name: str,
    split: str,
    image_size: tuple[int, int],
    num_channels: int,
    data_dir: str = "",
    built_in: tuple[str, ...] = (),
) -> ImageSource:
    """The images of a TFDS data set. If it is not prepared and TensorFlow is installed, it is prepared first.

    Args:
        name: `celeb_a`, `lsun/bedroom`, or the user's own data set prepared in data_dir.
        split: one of the data set's splits, or a TFDS expression of them (`train[:80%]`, `train+test`).
        image_size: (H, W) in pixels.
        num_channels: 1 or 3.
        data_dir: the folder that holds prepared data sets, or one prepared data set (a folder with dataset_info.json);
            `~/tensorflow_datasets` if empty.
        built_in: valid names that are not TFDS data sets, for the suggestion in an error.

    Raises:
        UserError: the data set is unknown or not prepared, or has no random access, no images, or no such split.
    """
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise UserError(f"{arg('name')} {name!r} is read by TFDS; pip install tensorflow-datasets")
    with _quiet():  # a data set that is not prepared gives warnings here, and our own error below
        builder = _builder(name, data_dir, built_in)
        image_key, label_key = _keys(builder)
        is_prepared = builder.is_prepared()
    try:
        data = _open(builder, split)
    except Exception as error:
        if is_prepared:
            raise _explained(builder, split, error) from None
        builder = prepare(builder, name=name, data_dir=data_dir)
        try:
            data = _open(builder, split)
        except Exception as later_error:
            raise _explained(builder, split, later_error) from None
    if not len(data):
        raise UserError(f"{arg('split')} {split!r} of {name!r} contains no image; give a wider slice")
    return _TfdsSource(data, image_key, label_key, image_size=image_size, num_channels=num_channels)


class _TfdsSource(DecodedSource):
    def __init__(self, data, image_key: str, label_key: str | None, *, image_size, num_channels):
        def decode(index: int) -> np.ndarray:
            image = data[index][image_key]
            if isinstance(image, bytes):
                return decode_image(image, image_size=image_size, num_channels=num_channels)
            return fit_array(np.asarray(image), image_size=image_size, num_channels=num_channels)

        self._data, self._label_key = data, label_key
        self._labels: np.ndarray | None = None
        super().__init__(ThreadMap(decode), num_examples=len(data), image_shape=(*image_size, num_channels))

    @property
    def labels(self) -> np.ndarray | None:
        """int64 [N] or None. Read at the first access, which goes through every record of the data set."""
        if self._labels is None and self._label_key is not None:
            labels = [self._data[i][self._label_key] for i in range(len(self._data))]
            self._labels = np.array(labels, np.int64)
        return self._labels

    @labels.setter
    def labels(self, labels: np.ndarray | None) -> None:
        self._labels = labels


def _builder(name: str, data_dir: str, built_in: tuple[str, ...]):
    """The builder of `name`: from a prepared folder, or from TFDS's code."""
    import tensorflow_datasets as tfds

    folder = Path(os.path.expanduser(data_dir)) if data_dir else None
    if folder is not None and not folder.is_dir():
        raise UserError(f"{arg('data_dir')} must be an existing folder; got {data_dir!r}; create it")
    if folder is not None and (folder / "dataset_info.json").is_file():
        builder = tfds.builder_from_directory(str(folder))
        if builder.name != name.split("/")[0].split(":")[0]:
            raise UserError(
                f"{arg('data_dir')} {data_dir!r} holds {builder.name!r}, but {arg('name')} is {name!r}; "
                f"set {arg('name')}={builder.name}"
            )
        return builder
    try:
        builder = tfds.builder(name, data_dir=None if folder is None else str(folder))
        return builder if ":" in name else _newest_prepared(tfds, builder)
    except tfds.core.registered.DatasetNotFoundError:
        names = [*built_in, *tfds.list_builders(with_community_datasets=False)]
        own = [p.name for p in folder.iterdir() if p.is_dir()] if folder else []
        raise UserError(
            f"{arg('name')} must be one of {', '.join(built_in)}, a TFDS name such as celeb_a or lsun/bedroom, "
            f"or a set prepared in {arg('data_dir')}; got {name!r}{did_you_mean(name, [*own, *names])}"
        ) from None
    except Exception as error:  # an unknown configuration or version, or a damaged dataset_info.json
        configs = [c.name for c in getattr(_builder_class(tfds, name), "BUILDER_CONFIGS", [])]
        _, _, config = name.partition("/")
        why = f"its configurations are {', '.join(configs[:12])}" if configs else _first_line(error)
        raise UserError(f"{arg('name')} {name!r} cannot be opened; {why}{did_you_mean(config, configs)}") from None


def _newest_prepared(tfds, builder):
    """The builder; if its version is not prepared but others are, that of the newest of them."""
    versions = Path(builder.data_path).parent
    if builder.is_prepared() or not versions.is_dir():
        return builder
    prepared = [p for p in versions.iterdir() if (p / "dataset_info.json").is_file()]
    if not prepared:
        return builder
    newest = max(prepared, key=lambda p: [int(n) if n.isdigit() else 0 for n in p.name.split(".")])
    return tfds.builder_from_directory(str(newest))


@contextlib.contextmanager
def _quiet():
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _builder_class(tfds, name: str):
    try:
        return tfds.builder_cls(name.split("/")[0].split(":")[0])
    except Exception:
        return None


def _keys(builder) -> tuple[str, str | None]:
    """Names of the image feature and of the class label (or None)."""
    from tensorflow_datasets.core import features as tfds_features

    features = dict(builder.info.features.items())
    found = {
        key: feature
        for key, feature in features.items()
        if isinstance(feature, tfds_features.Image)
        or (type(feature) is tfds_features.Tensor and len(feature.shape) == 3 and feature.shape[-1] in (1, 3))
    }
    key = "image" if "image" in found else next(iter(found)) if len(found) == 1 else None
    if key is None or found[key].np_dtype != np.uint8 or found[key].shape[-1] not in (1, 3, 4, None):
        raise UserError(
            f"{arg('name')} {builder.name!r} must have one uint8 image feature of 1 or 3 channels; it has "
            f"{', '.join(features)}; choose another set, or save the images as a .npz and use {arg('name')}=array"
        )
    label = features.get("label")
    return key, "label" if isinstance(label, tfds_features.ClassLabel) else None


def _open(builder, split: str):
    """The records, with images still encoded; we decode them with Pillow, whatever their mode."""
    import tensorflow_datasets as tfds

    encoded = {
        key: tfds.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    data = builder.as_data_source(split=split, decoders=encoded)
    if len(data):
        try:
            data[0]  # a missing file is noticed now, not in the middle of training
        except ImportError:
            # `tfds.testing.mock_data` encodes its random images on access, which needs TensorFlow.
            data = builder.as_data_source(split=split)
    return data


def _explained(builder, split: str, error: Exception) -> UserError:
    """The reason why a prepared data set cannot be opened."""
    place = str(builder.data_path)
    file_format = getattr(builder.info.file_format, "value", builder.info.file_format)
    if isinstance(error, NotImplementedError):
        return UserError(
            f"{builder.name!r} in {place!r} is stored as {file_format}, which has no random access; "
            f"prepare it again in another {arg('data_dir')} with tfds.builder(..., file_format='array_record')"
        )
    splits = sorted(builder.info.splits)
    if split not in splits and isinstance(error, (ValueError, KeyError)):
        return UserError(
            f"{arg('split')} must be one of {splits} or a slice of one, such as 'train[:80%]'; got {split!r}"
            f"{did_you_mean(split, splits)}"
        )
    return UserError(f"{builder.name!r} in {place!r} cannot be read ({_first_line(error)}); prepare it again")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0].strip() if lines else type(error).__name__)[:200]
