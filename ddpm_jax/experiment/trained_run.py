"""A trained run: the weights of a checkpoint, what its config describes, and its samples."""

import dataclasses
import fnmatch
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from ddpm_jax.diffusion.denoiser import GuidedDenoiserOf
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import check_seed
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.experiment import model_factory, run_classes, sampler_factory
from ddpm_jax.experiment.config_overrides import apply_override
from ddpm_jax.experiment.described_run import DescribedRun
from ddpm_jax.experiment.edit import Edit
from ddpm_jax.experiment.generator import Generator
from ddpm_jax.experiment.post_hoc_average import PostHocAverage
from ddpm_jax.experiment.run_programs import RunPrograms
from ddpm_jax.experiment.run_samples import RunSamples
from ddpm_jax.experiment.sampler_settings import settings_named
from ddpm_jax.experiment.weak_network import WeakNetwork, check_is_another, weak_network_of_samples
from ddpm_jax.models.parameters import num_params
from ddpm_jax.runtime.errors import UserError, check_between, check_one_of, whole_number

# What may be said anew of a run: how it is sampled, and where it is measured, which images, and where they are.
SAMPLE_FIELDS = ("sample.*",)
MOVED_DATA_FIELDS = ("data.path", "data.data_dir")
DATA_FIELDS = ("data.name", "data.path", "data.data_dir", "data.split", "data.eval_split")


@dataclass(frozen=True, eq=False)
class TrainedRun(DescribedRun):
    """One checkpoint of a run, as NumPy arrays: nothing in it depends on the devices it was trained on."""

    step: int
    config: ConfigDict
    params: dict
    class_names: tuple[str, ...] = ()  # of the classes 0, 1, ...; () if the data have none
    post_hoc: PostHocAverage | None = None  # how `params` were reconstructed; None if the checkpoint holds them

    def __repr__(self) -> str:
        return f"TrainedRun(step={self.step}, data={self.config.data.name!r}, {num_params(self.params):,} parameters)"

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: not the compiled programs and the arrays on devices."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def programs(self) -> RunPrograms:
        """What its edits and cascades keep between calls."""
        return RunPrograms()

    def check_params(self) -> None:
        """Raises UserError unless `params` are those of the config's network."""
        model_factory.check_params(self.config, self.model, self.params)

    def denoiser_of(
        self,
        *,
        process: Process | None = None,
        clip_x_0: bool | None = None,
        dynamic_threshold: float | None = None,
        weak_network: WeakNetwork | None = None,
    ) -> GuidedDenoiserOf:
        """(params, condition, guidance = None) -> denoise_fn, as the run samples but for what is given here.

        Without a classifier, which only `sample` and `generator` use.

        Args:
          process: the run's own, or that of some of its steps.
          weak_network: that of a guidance with `weak_params`.
        """
        return model_factory.build_denoiser(
            self.config,
            process or self.process,
            self.model,
            clip_x_0=clip_x_0,
            dynamic_threshold=dynamic_threshold,
            weak_predict_of=None if weak_network is None else weak_network.predict_of,
        )

    def sample(
        self,
        num_samples: int = 64,
        *,
        seed: int = 0,
        condition: Mapping[str, ArrayLike] | None = None,
        batch_size: int | None = None,
        progress: bool = True,
        **sampler_settings: object,
    ) -> np.ndarray:
        """New images, uint8 [num_samples, H, W, C], those of `python -m ddpm_jax.sample` with the same settings.

        Of other data than images the samples are [num_samples, *image_shape], float32 with codec.name="floats".

        Runs on all devices. Image n depends on the seed and n alone, whatever the batch size. The first call compiles;
        later ones with another sampler, other steps or classes do not, nor with another guidance scale but 1.

        Args:
          condition: what the network is told, by entry: [num_samples, *shape], or [*shape] for all samples alike. None:
            all classes in turn, or those of `classes`.
          batch_size: images per batch, a multiple of the number of devices; None: that of the run.
          progress: shows how far it is on stderr.
          sampler_settings: other settings than the run's, of `SAMPLER_SETTINGS`: sampler="dpmpp_2m",
            num_sampler_steps=20, classes=(3, 7) or ("hat",), guidance_scale=3, eta=0.5, classifier="runs/c", ...
            (docs/samplers.md).

        Raises:
          UserError: what does not fit, by argument.

        Example:
          import ddpm_jax as dj

          run = dj.open_run("runs/digits")
          dj.save_grid("digits.png", run.sample(64, seed=1, sampler="dpmpp_2m", num_sampler_steps=20))
        """
        num_samples, seed = whole_number("num_samples", num_samples), whole_number("seed", seed)
        batch_size = None if batch_size is None else whole_number("batch_size", batch_size)
        check_between("num_samples", num_samples, 1)
        check_seed("seed", seed)
        for name in ("classes", "augmentation_level"):
            if condition is not None and name in sampler_settings:
                raise UserError(f"condition and {name} both say what the samples are of: give one of them")
        run = self.with_sampler(sampler_settings, batch_size=batch_size, num_devices=self._samples.mesh.size)
        with settings_named([*sampler_settings, *(["batch_size"] if batch_size is not None else [])]):
            return self._samples.draw(
                run.config,
                run.process,
                run.model,
                num_samples=num_samples,
                seed=seed,
                condition=condition,
                progress=progress,
            )

    @functools.cached_property
    def _samples(self) -> RunSamples:
        self.check_params()
        return RunSamples(self.params)

    def generator(
        self,
        mesh: Mesh,
        edit: Edit | None = None,
        *,
        table: SamplerTable | None = None,
        self_conditioning: bool = True,
    ) -> Generator:
        """What draws samples by its sampler, after `check_params`.

        Args:
          edit: puts back what is known of the samples.
          table: another one than `sampler_table`.
          self_conditioning: False: a network with self-conditioning sees no estimate of x_0.
        """
        table = self.sampler_table if table is None else table
        self.check_params()
        weak = weak_network_of_samples(self.config)
        check_is_another(weak, self.config, self.params)
        return sampler_factory.build_generator(
            self.config, self.process, table, self.model, mesh, edit, weak=weak, self_conditioning=self_conditioning
        )

    def last_steps(self, strength: float) -> SamplerTable:
        """The table of the last floor(strength * S) of the sampler's S steps, strength in (0, 1].

        Raises:
          UserError: it has no step.
        """
        return sampler_factory.build_table(self.config, self.process, strength)

    def with_fields(self, overrides: Sequence[str], allowed: Sequence[str]) -> "TrainedRun":
        """The run with `group.field=value` applied, of the fields that `allowed` matches.

        Raises:
          UserError: another field, or a value of a wrong type.
        """
        config = self.config.copy_and_resolve_references()
        for override in overrides:
            field = override.partition("=")[0]
            if not any(fnmatch.fnmatchcase(field, pattern) for pattern in allowed):
                check_one_of("a field after --config.", field, allowed)
            apply_override(config, override)
        return dataclasses.replace(self, config=config.lock())

    def names_of_classes(self, classifier: object = None) -> tuple[str, ...]:
        """The names of the classes of its samples, which are the classifier's if the network has no classes.

        Args:
          classifier: the folder of a classifier; None: that of the config.
        """
        return run_classes.names_of_classes(self.config, self.class_names, classifier)

    def with_sampler(self, given: Mapping[str, object], *, batch_size: int | None, num_devices: int) -> "TrainedRun":
        """The run with another sampler; see `sampler_settings.with_sampler_settings`. Classes may be given by name."""
        config = run_classes.with_sampler(
            self.config, self.class_names, given, batch_size=batch_size, num_devices=num_devices
        )
        return dataclasses.replace(self, config=config)
