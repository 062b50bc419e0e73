"""The interface of one kind of condition, such as the class of an image."""

import abc
from collections.abc import Callable, Mapping

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.data import ImageSource
from ddpm_jax.data.condition import ConditionSpec
from ddpm_jax.data.image_source import column_name, columns_of
from ddpm_jax.runtime.errors import UserError

RowsOf = Callable[[np.ndarray], dict[str, np.ndarray]]  # numbers of samples, int [N] -> entries, [N, ...] each


class ConditionKind(abc.ABC):
    """One kind of condition. `experiment.conditions` has the table of all kinds; every method reads a config."""

    @abc.abstractmethod
    def spec(self, config: ConfigDict) -> ConditionSpec:
        """The entries; {} if the config does not use this kind. The source has a column with the name of each entry.

        If condition.drop_rate is above 0, each entry needs a null.
        """

    @abc.abstractmethod
    def of_samples(self, config: ConfigDict) -> RowsOf:
        """The condition of samples; {} if `spec` is. Raises UserError for settings that do not fit."""

    def negative(self, config: ConfigDict) -> RowsOf | None:
        """The condition that samples are guided away from; None: the null. Raises UserError for unsuitable settings."""
        del config

    def check_values(self, config: ConfigDict, rows: Mapping[str, np.ndarray]) -> None:
        """Raises UserError for values that the network does not know; `rows` are the entries, [N, ...] each."""
        del config, rows

    def check_source(self, config: ConfigDict, source: ImageSource, what: str) -> None:
        """Raises UserError for missing or unsuitable columns; `what` names the data.

        Called if `spec` has entries.
        """
        known = sorted(columns_of(source))
        for name, entry in self.spec(config).items():
            if column_name(name, entry) not in known:
                has = f"the columns {', '.join(known)}" if known else "no columns"
                raise UserError(
                    f"the network needs the column {column_name(name, entry)!r} of the data, and {what} has {has}: "
                    "docs/data.md says how to add one"
                )
