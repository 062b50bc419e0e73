"""The class of an image as a condition: `model.num_classes`, and for samples `sample.classes`."""

from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.data import ImageSource
from ddpm_jax.data.condition import ConditionSpec, Entry
from ddpm_jax.experiment.condition_kind import ConditionKind, RowsOf
from ddpm_jax.runtime.errors import UserError, arg


class ClassCondition(ConditionKind):
    """The entry "label", int32: the label of an image in its data."""

    def spec(self, config: ConfigDict) -> ConditionSpec:
        """If the condition is dropped in training, the null is an additional class, number num_classes."""
        num_classes = config.model.num_classes
        null = num_classes if config.condition.drop_rate > 0 else None
        return {"label": Entry(null=null)} if num_classes else {}

    def check_source(self, config: ConfigDict, source: ImageSource, what: str) -> None:
        """Raises UserError unless every image has one of the network's classes."""
        num_classes = config.model.num_classes
        if source.labels is None:
            raise UserError(
                f"model.num_classes={num_classes} needs a label for every image, and {what} has none: "
                + "; ".join(["take model.num_classes=0, or data with labels", *source.notes])
            )
        lowest, highest = int(np.min(source.labels)), int(np.max(source.labels))
        if lowest < 0 or highest >= num_classes:
            raise UserError(
                f"model.num_classes must be above every label; got {num_classes} for the labels "
                f"{lowest}..{highest} of {what}"
                + (f": take {highest + 1}" if lowest >= 0 else ": labels start at 0")
            )

    def check_values(self, config: ConfigDict, rows: Mapping[str, np.ndarray]) -> None:
        """Raises UserError unless every label is one of the network's classes, or the null class."""
        labels, num_classes = rows["label"], config.model.num_classes
        most = num_classes if config.condition.drop_rate > 0 else num_classes - 1
        if labels.size and not 0 <= labels.min() <= labels.max() <= most:
            raise UserError(f"the condition 'label' must be in 0..{most}; got {labels.min()}..{labels.max()}")

    def of_samples(self, config: ConfigDict) -> RowsOf:
        """Sample n has class classes[n mod len(classes)], from sample.classes; empty: from all classes."""
        if not config.model.num_classes and config.sample.classifier:
            return _in_turn(())  # the classes are those of the classifier
        return _in_turn(sampled_classes(config))

    def negative(self, config: ConfigDict) -> RowsOf | None:
        """Sample n is guided away from negative_classes[n mod len(negative_classes)]; empty: from the null class."""
        classes = checked_classes(config, "negative_classes", config.model.num_classes)
        return _in_turn(classes) if classes else None


def sampled_classes(config: ConfigDict) -> tuple[int, ...]:
    """The classes of samples, in turn: sample.classes, or all; () for a network without classes."""
    num_classes = config.model.num_classes
    return checked_classes(config, "classes", num_classes) or tuple(range(num_classes))


def _in_turn(classes: tuple[int, ...]) -> RowsOf:
    if not classes:
        return lambda ids: {}
    rows = np.asarray(classes, np.int32)
    return lambda ids: {"label": rows[ids % len(rows)]}


def checked_classes(config: ConfigDict, name: str, num_classes: int) -> tuple[int, ...]:
    """The classes in a field of `sample`; raises UserError for others than 0..num_classes-1."""
    classes = tuple(config.sample[name])
    if classes and not num_classes:
        raise UserError(
            f"sample.{name}={','.join(map(str, classes))} is for a network with classes; the run has "
            f"model.num_classes=0: leave it out, train a run with model.num_classes, or give a {arg('classifier')}"
        )
    for number in classes:
        if type(number) is not int or not 0 <= number < num_classes:
            remedy = ": give a list such as 3,7" if isinstance(number, str) else ""
            raise UserError(f"sample.{name} must be in 0..{num_classes - 1}, the known classes; got {number!r}{remedy}")
    return classes
