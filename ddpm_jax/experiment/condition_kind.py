"""What a config must say of one kind of condition, such as the class of an image."""

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
    """One kind of condition. `experiment.conditions` has the table of them; every function reads a config."""

    @abc.abstractmethod
    def spec(self, config: ConfigDict) -> ConditionSpec:
        """Its entries; {} where the config does not use it. The source has a column of the name of each entry.

        With condition.drop_rate above 0 each needs a null.
        """

    @abc.abstractmethod
    def of_samples(self, config: ConfigDict) -> RowsOf:
        """What samples are told; {} where `spec` is. Raises UserError for settings that do not fit."""

    def negative(self, config: ConfigDict) -> RowsOf | None:
        """What samples are guided away from; None for the null. Raises UserError for settings that do not fit."""
        del config

    def check_values(self, config: ConfigDict, rows: Mapping[str, np.ndarray]) -> None:
        """Raises UserError for values that the network does not know; `rows` are its entries, [N, ...] each."""
        del config, rows

    def check_source(self, config: ConfigDict, source: ImageSource, what: str) -> None:
        """Raises UserError for columns that are missing or do not fit; `what` names the data.

        Asked where `spec` has entries.
        """
        known = sorted(columns_of(source))
        for name, entry in self.spec(config).items():
            if column_name(name, entry) not in known:
                has = f"the columns {', '.join(known)}" if known else "no columns"
                raise UserError(
                    f"the network is told the column {column_name(name, entry)!r} of the data, and {what} has {has}: "
                    "docs/data.md says how data get one"
                )
