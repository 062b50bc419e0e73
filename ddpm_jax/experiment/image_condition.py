"""What an image-conditional network is shown of an image, as a condition: `condition.task`.

The entries are made from the image itself: in training by the train step, anew for each step; for held-out images, and
for samples, of which sample n is shown the held-out image n, once for each image, the same in every run.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from ddpm_jax.codecs.codec import Codec
from ddpm_jax.data import ImageSource
from ddpm_jax.data.condition import ConditionSpec, Entry
from ddpm_jax.data.wrapped_sources import DerivingSource
from ddpm_jax.diffusion.image_conditions import TASKS, ImageTask, Shown, make_image_task
from ddpm_jax.diffusion.rng import Purpose, purpose_key, sample_keys
from ddpm_jax.experiment.codec_factory import build_codec, x_0_shape_of
from ddpm_jax.experiment.condition_kind import ConditionKind, RowsOf
from ddpm_jax.experiment.config_checks import fields_named, image_shape_of, is_image
from ddpm_jax.experiment.config_json import config_from_json, config_to_json
from ddpm_jax.experiment.packaged_configs import base_config
from ddpm_jax.experiment.plain_source import plain_source
from ddpm_jax.runtime.errors import UserError, check_one_of

SHOWN, KNOWN = "shown", "known"


class ImageCondition(ConditionKind):
    """The entry "shown", float32 [H, W, K] in [-1, 1]; and of a task with a hole "known", [H, W, 1], 0 in the hole."""

    def spec(self, config: ConfigDict) -> ConditionSpec:
        """Both entries are derived; they have no null."""
        task = build_task(config)
        if task is None:
            return {}
        *sizes, num_channels = x_0_shape_of(config)
        shapes = {SHOWN: (*sizes, task.num_channels(num_channels))} | ({KNOWN: (*sizes, 1)} if task.has_hole else {})
        return {name: Entry(shape, "float32", "spatial", derived=True) for name, shape in shapes.items()}

    def check_values(self, config: ConfigDict, rows: Mapping[str, np.ndarray]) -> None:
        """Raises UserError for images outside [-1, 1], or a mask with other values than 0 and 1."""
        shown = rows[SHOWN]
        if shown.size and not -1 <= shown.min() <= shown.max() <= 1:
            raise UserError(
                f"the condition {SHOWN!r} must be in [-1, 1], the range of x_0; got {shown.min()}..{shown.max()}"
            )
        if KNOWN not in rows:
            return
        if not np.isin(rows[KNOWN], (0, 1)).all():
            raise UserError(f"the condition {KNOWN!r} must be 1 where the image is known, and 0 in the hole")
        if np.any(np.where(rows[KNOWN] == 0, shown, 0)):
            raise UserError(f"the condition {SHOWN!r} must be 0 in the hole, where {KNOWN!r} is 0")

    def of_samples(self, config: ConfigDict) -> RowsOf:
        """Sample n is shown the held-out image n mod N, or, where none is held out, the training image."""
        if build_task(config) is None:
            return lambda ids: {}
        names, images = tuple(self.spec(config)), _images_of_samples(config)

        def rows_of(ids: np.ndarray) -> dict[str, np.ndarray]:
            source = images()
            return {name: source.columns[name][ids % len(source)] for name in names}

        return rows_of


def build_task(config: ConfigDict) -> ImageTask | None:
    """What the network is shown of an image; None for nothing.

    Raises:
      UserError: an unknown task, settings that do not fit it, or data that it cannot be made of.
    """
    condition = config.condition
    if not condition.task:
        return None
    check_one_of("condition.task", condition.task, TASKS)
    if not is_image(image_shape_of(config)) or config.codec.name != "pixels":
        raise UserError(
            f"condition.task={condition.task!r} needs images and codec.name='pixels'; got arrays of shape "
            f"{list(image_shape_of(config))} and codec.name={config.codec.name!r}"
        )
    with fields_named("condition", {"name": "condition.task"}):
        task = make_image_task(
            condition.task,
            hole_share=tuple(condition.hole_share),
            jpeg_quality=tuple(condition.jpeg_quality),
            jpeg_subsampling=condition.jpeg_subsampling,
            blur_std=tuple(condition.blur_std),
        )
        x_0 = jax.ShapeDtypeStruct(x_0_shape_of(config), "float32")
        jax.eval_shape(task.make, x_0, jax.random.key(0))  # for its checks of the shape
    return task


def entries_of(shown: Shown) -> dict[str, Array]:
    """The entries of the condition."""
    return {SHOWN: shown.image} | ({} if shown.known is None else {KNOWN: shown.known})


def build_derive_fn(config: ConfigDict) -> Callable[[Array, Array], dict[str, Array]] | None:
    """(x_0 [B, H, W, C], keys [B]) -> the entries of the condition; None without a task."""
    task = build_task(config)
    return None if task is None else _derive_fn(task)


def _derive_fn(task: ImageTask) -> Callable[[Array, Array], dict[str, Array]]:
    return jax.vmap(lambda x_0, key: entries_of(task.make(x_0, key)))


def with_shown_images(config: ConfigDict, source: ImageSource) -> ImageSource:
    """The source with the entries as columns. Image n has the same hole, quality and so on in every run."""
    task = build_task(config)
    if task is None:
        return source
    codec = build_codec(config)

    def columns_fn(images: np.ndarray, numbers: np.ndarray) -> Mapping[str, np.ndarray]:
        return jax.device_get(_columns_of(task, codec, images, np.asarray(numbers, np.uint32)))

    return DerivingSource(source, ImageCondition().spec(config), columns_fn)


@functools.partial(jax.jit, static_argnums=0)
def _columns_of(task: ImageTask, codec: Codec, images: Array, numbers: Array) -> dict[str, Array]:
    keys = sample_keys(purpose_key(jax.random.key(0), Purpose.TASK, 0), numbers)
    return _derive_fn(task)(codec.encode(images, keys), keys)


def num_shown(config: ConfigDict) -> int:
    """How many images the samples are shown, in turn; 0 without a task."""
    return len(_images_of_samples(config)()) if config.condition.task else 0


def labels_of_shown(config: ConfigDict) -> RowsOf | None:
    """Numbers of samples -> the label of the image that each is shown; None unless the network has classes and a task,
    and sample.classes does not say others."""
    if not config.condition.task or not config.model.num_classes or config.sample.classes:
        return None
    images = _images_of_samples(config)

    def rows_of(ids: np.ndarray) -> dict[str, np.ndarray]:
        labels = images().labels
        if labels is None:
            raise UserError("the images that samples are shown have no labels: give sample.classes")
        return {"label": np.asarray(labels[ids % len(labels)], np.int32)}

    return rows_of


def _images_of_samples(config: ConfigDict) -> Callable[[], ImageSource]:
    """Opens the images that samples are shown, with the entries as columns; those of the last call again."""
    key = config.copy_and_resolve_references()
    with key.unlocked():
        for group in ("sample", "train", "optim", "eval", "mesh"):  # which have no influence on them
            key[group] = base_config()[group]
    key = config_to_json(key)
    return lambda: _shown_to_samples(key)


@functools.lru_cache(maxsize=2)
def _shown_to_samples(config_json: str) -> ImageSource:
    config = config_from_json(config_json)
    field = "data.eval_split" if config.data.eval_split else "data.split"
    try:
        return with_shown_images(config, plain_source(config, config.data[field.partition(".")[2]], field))
    except UserError as error:
        raise UserError(
            f"{error}; the samples of a network with condition.task={config.condition.task!r} are made from the images "
            "of its data: give --config.data.path where they have moved, or your own images to python -m ddpm_jax.edit"
        ) from error
