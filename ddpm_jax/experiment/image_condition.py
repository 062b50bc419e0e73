"""What an image-conditional network is shown of an image, as a condition: `condition.task`.

The entries are made from the image itself: in training by the train step, anew for each step; for held-out images, and
for samples, of which sample n is shown the held-out image n, once for each image, the same in every run. Samples have
the augmentation level of `sample.augmentation_level`.
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
from ddpm_jax.diffusion.image_conditions import TASKS, ImageTask, Shown, SuperResolution, make_image_task, shrunk
from ddpm_jax.diffusion.rng import Purpose, purpose_key, sample_keys
from ddpm_jax.diffusion.schedules import Schedule, make_schedule
from ddpm_jax.experiment.codec_factory import build_codec, x_0_shape_of
from ddpm_jax.experiment.condition_kind import ConditionKind, RowsOf
from ddpm_jax.experiment.config_checks import fields_named, image_shape_of, is_image
from ddpm_jax.experiment.config_json import config_from_json, config_to_json
from ddpm_jax.experiment.packaged_configs import base_config
from ddpm_jax.experiment.plain_source import plain_source
from ddpm_jax.runtime.errors import UserError, check_one_of

SHOWN, KNOWN, LEVEL = "shown", "known", "level"


class ImageCondition(ConditionKind):
    """The entry "shown", float32 [H, W, K] in [-1, 1]; of a task with a hole "known", [H, W, 1], 0 in the hole; and of
    one with noise "level", int32, the augmentation level."""

    def spec(self, config: ConfigDict) -> ConditionSpec:
        """All entries are derived; they have no null."""
        task = build_task(config)
        if task is None:
            return {}
        *sizes, num_channels = x_0_shape_of(config)
        shapes = {SHOWN: (*sizes, task.num_channels(num_channels))} | ({KNOWN: (*sizes, 1)} if task.has_hole else {})
        spec = {name: Entry(shape, "float32", "spatial", derived=True) for name, shape in shapes.items()}
        return spec | ({LEVEL: Entry((), "int32", derived=True)} if task.max_level else {})

    def check_values(self, config: ConfigDict, rows: Mapping[str, np.ndarray]) -> None:
        """Raises UserError for images outside [-1, 1] (enlarged ones need only be finite, as noise and bicubic weights
        lead beyond), a mask with other values than 0 and 1, or a level beyond the highest."""
        shown, task = rows[SHOWN], build_task(config)
        if task.factor > 1:
            if not np.all(np.isfinite(shown)):
                raise UserError(f"the condition {SHOWN!r} must be finite")
        elif shown.size and not -1 <= shown.min() <= shown.max() <= 1:
            raise UserError(
                f"the condition {SHOWN!r} must be in [-1, 1], the range of x_0; got {shown.min()}..{shown.max()}"
            )
        level = rows.get(LEVEL, np.zeros(0, np.int32))
        if level.size and not 0 <= level.min() <= level.max() <= task.max_level:
            raise UserError(
                f"the condition {LEVEL!r} must be in 0..{task.max_level}, the levels of the training; got "
                f"{level.min()}..{level.max()}"
            )
        if KNOWN not in rows:
            return
        if not np.isin(rows[KNOWN], (0, 1)).all():
            raise UserError(f"the condition {KNOWN!r} must be 1 where the image is known, and 0 in the hole")
        if np.any(np.where(rows[KNOWN] == 0, shown, 0)):
            raise UserError(f"the condition {SHOWN!r} must be 0 in the hole, where {KNOWN!r} is 0")

    def of_samples(self, config: ConfigDict) -> RowsOf:
        """Sample n is shown the held-out image n mod N, or, where none is held out, the training image."""
        check_augmentation_level(config)
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
    if condition.augmentation != "none" and condition.task != "super_resolve":
        raise UserError(
            f"condition.augmentation={condition.augmentation!r} is of condition.task='super_resolve'; got "
            f"{condition.task!r}, which does not read it"
        )
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
            super_resolution=SuperResolution(
                condition.factor,
                condition.upsampling,
                condition.augmentation,
                tuple(condition.augmentation_blur_std),
                _schedule(**config.schedule) if condition.augmentation == "noise" else None,
                condition.max_level,
            ),
        )
        x_0 = jax.ShapeDtypeStruct(x_0_shape_of(config), "float32")
        jax.eval_shape(task.make, x_0, jax.random.key(0))  # for its checks of the shape
    return task


@functools.cache
def _schedule(**fields: str | float) -> Schedule:
    """That of the group `schedule`; built once, as the task is asked for often."""
    with fields_named("schedule"), jax.ensure_compile_time_eval():
        return make_schedule(**fields)


def check_augmentation_level(config: ConfigDict) -> None:
    """Raises UserError unless sample.augmentation_level is one that the network was trained with; 0 is for any."""
    level, task = config.sample.augmentation_level, build_task(config)
    max_level = 0 if task is None else task.max_level
    if level and not max_level:
        raise UserError(
            f"sample.augmentation_level={level} is for a network that was trained with condition.augmentation='noise'; "
            "this one was not: leave it out"
        )
    if not 0 <= level <= max_level:
        raise UserError(
            f"sample.augmentation_level must be in 0..{max_level}, the levels of the training; got {level}"
        )


def entries_of(shown: Shown) -> dict[str, Array]:
    """The entries of the condition."""
    entries = {SHOWN: shown.image, KNOWN: shown.known, LEVEL: shown.level}
    return {name: rows for name, rows in entries.items() if rows is not None}


def build_derive_fn(config: ConfigDict) -> Callable[[Array, Array], dict[str, Array]] | None:
    """(x_0 [B, H, W, C], keys [B]) -> the entries of the condition; None without a task."""
    task = build_task(config)
    return None if task is None else _derive_fn(task)


def _derive_fn(task: ImageTask) -> Callable[[Array, Array], dict[str, Array]]:
    return jax.vmap(lambda x_0, key: entries_of(task.make(x_0, key)))


def with_shown_images(config: ConfigDict, source: ImageSource, level: int | None = None) -> ImageSource:
    """The source with the entries as columns. Image n has the same hole, quality and so on in every run.

    Args:
      level: of the noise in what is shown of each image, where the task has noise; None: image n has a random one.
    """
    task = build_task(config)
    if task is None:
        return source
    codec, level = build_codec(config), level if task.max_level else None

    def columns_fn(images: np.ndarray, numbers: np.ndarray) -> Mapping[str, np.ndarray]:
        of_all = None if level is None else np.int32(level)
        return jax.device_get(_columns_of(task, codec, images, np.asarray(numbers, np.uint32), of_all))

    return DerivingSource(source, ImageCondition().spec(config), columns_fn)


@functools.partial(jax.jit, static_argnums=0)
def _columns_of(task: ImageTask, codec: Codec, images: Array, numbers: Array, level: Array | None) -> dict[str, Array]:
    keys = sample_keys(purpose_key(jax.random.key(0), Purpose.TASK, 0), numbers)
    x_0 = codec.encode(images, keys)
    if level is None:
        return _derive_fn(task)(x_0, keys)
    return jax.vmap(lambda x_0, key: entries_of(task.at_level(shrunk(x_0, task.factor), level, key)))(x_0, keys)


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
    key, level = config.copy_and_resolve_references(), config.sample.augmentation_level
    with key.unlocked():
        for group in ("sample", "train", "optim", "eval", "mesh"):  # which have no influence on them
            key[group] = base_config()[group]
    key = config_to_json(key)
    return lambda: _shown_to_samples(key, level)


@functools.lru_cache(maxsize=2)
def _shown_to_samples(config_json: str, level: int) -> ImageSource:
    return with_shown_images(config_from_json(config_json), _source_of_samples(config_json), level)


@functools.lru_cache(maxsize=2)
def _source_of_samples(config_json: str) -> ImageSource:
    config = config_from_json(config_json)
    field = "data.eval_split" if config.data.eval_split else "data.split"
    try:
        return plain_source(config, config.data[field.partition(".")[2]], field)
    except UserError as error:
        raise UserError(
            f"{error}; the samples of a network with condition.task={config.condition.task!r} are made from the images "
            "of its data: give --config.data.path where they have moved, or your own images to python -m ddpm_jax.edit"
        ) from error
