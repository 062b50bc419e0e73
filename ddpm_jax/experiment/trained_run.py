"""A trained run, opened from its workdir: the weights of a checkpoint, and what its config says and builds."""

import dataclasses
import fnmatch
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddpm_jax.codecs.codec import Codec
from ddpm_jax.data import ImageSource
from ddpm_jax.data.condition import ConditionSpec
from ddpm_jax.diffusion.denoiser import GuidedDenoiserOf
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.experiment import conditions, config_checks, data_factory, model_factory, sampler_factory
from ddpm_jax.experiment.codec_factory import build_codec
from ddpm_jax.experiment.config_json import config_from_json
from ddpm_jax.experiment.config_overrides import apply_override
from ddpm_jax.experiment.generator import ConditionOf, Edit, Generator, GuidanceOf
from ddpm_jax.experiment.objective_factory import draws_images
from ddpm_jax.experiment.packaged_configs import base_config, with_defaults
from ddpm_jax.experiment.sampler_flags import choose_sampler
from ddpm_jax.runtime.errors import UserError, check_one_of
from ddpm_jax.training.optimizer import ema_name
from ddpm_jax.training.train_state import ema_item
from ddpm_jax.workdir.checkpoints import Checkpoints

# What may be said anew of a run: how it is sampled, and where it is measured, which images, and where they are.
SAMPLE_FIELDS = ("sample.*",)
DATA_FIELDS = ("data.name", "data.path", "data.data_dir", "data.split", "data.eval_split")


@dataclass(frozen=True)
class TrainedRun:
    """One checkpoint of a run, as NumPy arrays: nothing in it depends on the devices it was trained on.

    What the config describes is built and checked when it is asked for; each raises UserError for what does not fit.
    """

    step: int
    config: ConfigDict
    params: dict

    @functools.cached_property
    def process(self) -> Process:
        """The noise schedule of training, what the network predicts and the variance."""
        return model_factory.build_process(self.config)

    @functools.cached_property
    def codec(self) -> Codec:
        """The way between images and x_0."""
        return build_codec(self.config)

    @functools.cached_property
    def model(self) -> nn.Module:
        """The network that `params` are of."""
        return model_factory.build_model(self.config)

    @functools.cached_property
    def sampler_table(self) -> SamplerTable:
        """The steps of its sampler."""
        return sampler_factory.build_table(self.config, self.process)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return config_checks.image_shape_of(self.config)

    @property
    def condition(self) -> ConditionSpec:
        """What the network is told of an image."""
        return conditions.condition_spec(self.config)

    @property
    def condition_of(self) -> ConditionOf:
        """Numbers of samples -> what the network is told of them."""
        return conditions.condition_of(self.config)

    @property
    def guidance_of(self) -> GuidanceOf:
        """Numbers of samples -> their guidance, or None."""
        return sampler_factory.guidance_of(self.config)

    @property
    def held_out_split(self) -> str:
        """The name of the split that it was not trained on; "" where there is none."""
        return self.config.data.eval_split

    @property
    def eval_batch_size(self) -> int:
        """Images at a time when the held-out ones are measured."""
        return self.config.eval.batch_size

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of it, as JSON: step, data, schedule, num_steps, prediction, variance, clip_x_0."""
        config = self.config
        return {
            "step": self.step,
            "data": config.data.name,
            "schedule": config.schedule.name,
            "num_steps": config.schedule.num_steps,
            "prediction": config.diffusion.prediction,
            "variance": config.diffusion.variance,
            "clip_x_0": config.sample.clip_x_0,
        }

    @property
    def training_data(self) -> dict[str, str]:
        """What it was trained on, as JSON: name, as NAME:SPLIT, path and data_dir."""
        data = self.config.data
        return {"name": f"{data.name}:{data.split}", "path": data.path, "data_dir": data.data_dir}

    @property
    def sampler_settings(self) -> dict[str, Any]:
        """The fields of `sample` by name, as JSON; "sampler" is which one."""
        fields = self.config.sample
        return {name: list(v) if isinstance(v := fields[name], tuple) else v for name in sorted(fields)}

    @property
    def sampler_name(self) -> str:
        """Its sampler, with the variance where that sampler reads it: "ancestral (variance fixed_small)", "ddim"."""
        name = self.config.sample.sampler
        return f"{name} (variance {self.config.diffusion.variance})" if name == "ancestral" else name

    def source(self, split: str | None = None, field: str = "data.split") -> ImageSource:
        """The images of a split of its data; None: those that it was trained on.

        Args:
          field: what a person typed the split as, for complaints about it.
        """
        return data_factory.build_source(self.config, split or self.config.data.split, field)

    def check_params(self) -> None:
        """Raises UserError unless `params` are those of the config's network."""
        model_factory.check_params(self.config, self.model, self.params)

    def denoiser_of(
        self,
        *,
        process: Process | None = None,
        clip_x_0: bool | None = None,
        dynamic_threshold: float | None = None,
    ) -> GuidedDenoiserOf:
        """(params, condition, guidance = None) -> denoise_fn, as the run samples but for what is given here.

        Args:
          process: the run's own, or that of some of its steps.
        """
        return model_factory.build_denoiser(
            self.config,
            process or self.process,
            self.model,
            clip_x_0=clip_x_0,
            dynamic_threshold=dynamic_threshold,
        )

    def generator(self, mesh: Mesh, edit: Edit | None = None) -> Generator:
        """What draws samples by its sampler, after `check_params`; `edit` puts back what is known of them."""
        table = self.sampler_table
        self.check_params()
        return sampler_factory.build_generator(self.config, self.process, table, self.model, mesh, edit)

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

    def with_sampler(self, given: dict[str, object], *, batch_size: int | None, num_devices: int) -> "TrainedRun":
        """The run with another sampler; see `sampler_flags.choose_sampler`."""
        config = choose_sampler(self.config, given, batch_size=batch_size, num_devices=num_devices)
        return dataclasses.replace(self, config=config)


def open_trained_run(workdir: str, *, step: int | None = None, best: bool = False, weights: str = "ema") -> TrainedRun:
    """The config and the weights of a checkpoint.

    A config from before a field was added has the field at its default.

    Args:
      step: which; None for the newest that can be read.
      best: the one with the lowest eval loss instead.
      weights: "ema" for the first average, "ema/NAME" for one by its decay, such as "ema/0.9999", or "raw".

    Raises:
      UserError: no such folder, checkpoint or weights; both `step` and `best`.
    """
    if best and step is not None:
        raise UserError(f"--best and --step={step} both choose a checkpoint: give one of them")
    if not os.path.isdir(workdir):
        raise UserError(f"--workdir must be the folder of a training run; there is no {workdir!r}")
    checkpoints = Checkpoints(workdir)
    try:
        if best:
            step = checkpoints.best_step()
        step, params = checkpoints.restore_params(lambda config_json: _item_of(weights, config_json), step)
        _, config_json = checkpoints.restore_config(step)
    finally:
        checkpoints.close()
    config = with_defaults(config_from_json(config_json))
    _check_fields(config, workdir)
    if not draws_images(config):
        raise UserError(
            f"--workdir must be a run of objective.name='diffusion'; got {workdir!r}, which trained "
            f"{config.objective.name!r}: it draws no images"
        )
    return TrainedRun(step, config, params)


def _check_fields(config: ConfigDict, workdir: str) -> None:
    """Raises UserError for a field that a later ddpm_jax has added to a group of today."""
    for group, fields in base_config().items():
        unknown = sorted(set(config[group]) - set(fields))
        if unknown:
            raise UserError(
                f"the run in --workdir {workdir} has the field {f'{group}.{unknown[0]}'!r}, which this ddpm_jax does "
                "not know: upgrade ddpm_jax"
            )


def _item_of(weights: str, config_json: str) -> str:
    """The item of a checkpoint that holds `weights`, of those that its config names; UserError for any others."""
    names = [ema_name(decay) for decay in with_defaults(config_from_json(config_json)).optim.ema_decays]
    if not names:
        raise UserError("the config of the checkpoint has no average in optim.ema_decays: it was changed by hand")
    items = {"ema": ema_item(names[0], names[0]), "raw": "params"}
    items |= {f"ema/{name}": ema_item(name, names[0]) for name in names}
    check_one_of("--weights", weights, items)
    return items[weights]
