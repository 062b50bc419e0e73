"""The user's settings for sample metrics, checked before anything is read."""

import os
from dataclasses import dataclass
from pathlib import Path

from ddpm_jax.diffusion.rng import check_seed
from ddpm_jax.evaluation.feature_extractors import EXTRACTORS, RESIZES
from ddpm_jax.runtime.errors import UserError, check_between, check_one_of


@dataclass(frozen=True)
class SampleSettings:
    """The settings, named like the flags.

    Raises:
      UserError: an unknown name, a number that is too small, or settings that belong to another extractor.
    """

    extractor: str | None = None  # one of EXTRACTORS; None: inception if weights are given, else classifier
    inception_weights: str | None = None
    resize: str | None = None  # one of RESIZES; None: tf_bilinear
    reference: str | None = None  # None: the training data of the run
    num_reference: int = 0  # 0: all
    num_samples: int = 0  # 0: as many as the reference has, at most 50,000; for a file: all
    image_size: tuple[int, int] | None = None
    data_path: str = ""
    cache: str | None = None  # None: ddpm_jax/features in the user's cache folder
    batch_size: int = 0  # images per batch of the extractor; 0: 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_reference", "num_samples", "batch_size"):
            check_between(f"--{name}", getattr(self, name), 0)
        check_seed("--seed", self.seed)
        if self.extractor is not None:
            check_one_of("--extractor", self.extractor, EXTRACTORS)
        if self.resize is not None:
            check_one_of("--resize", self.resize, RESIZES)
        if self.extractor_name == "inception":
            if self.inception_weights is None:
                raise UserError(
                    "--extractor=inception needs --inception_weights=FILE (docs/metrics.md says where to get it); "
                    "without it take --extractor=classifier or --extractor=pixels"
                )
        elif self.inception_weights is not None or self.resize is not None:
            flag = "--inception_weights" if self.inception_weights is not None else "--resize"
            raise UserError(f"{flag} needs --extractor=inception; got --extractor={self.extractor_name}")

    @property
    def extractor_name(self) -> str:
        """The extractor that is used, also if none was given."""
        return self.extractor or ("inception" if self.inception_weights else "classifier")

    @property
    def cache_folder(self) -> str:
        """The folder for features of real images and trained classifiers."""
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return os.path.abspath(self.cache or os.path.join(base, "ddpm_jax", "features"))
