"""What the config of a run describes: its parts, built, and the plain values that reports read."""

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddpm_jax.codecs.codec import PIXELS, Codec
from ddpm_jax.data import ImageSource
from ddpm_jax.data.condition import ConditionSpec
from ddpm_jax.diffusion.image_conditions import ImageTask
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.experiment import (
    conditions,
    config_checks,
    data_factory,
    image_condition,
    model_factory,
    sampler_factory,
)
from ddpm_jax.experiment.classifier import classifier_of_samples, drawn_classes
from ddpm_jax.experiment.codec_factory import build_codec, data_dtype_of
from ddpm_jax.experiment.run_checkpoint import checkpoints_changed
from ddpm_jax.experiment.sample_guidance import guidance_of
from ddpm_jax.experiment.sample_inputs import ConditionOf, GuidanceOf
from ddpm_jax.experiment.weak_network import WeakNetwork, weak_network_of_samples
from ddpm_jax.runtime.errors import UserError


class DescribedRun:
    """A step of a run and its config. Each part is built and checked when it is asked for; it raises UserError for what
    does not fit."""

    step: int
    config: ConfigDict

    @functools.cached_property
    def process(self) -> Process:
        """The noise schedule of training, what the network predicts and the variance."""
        with jax.ensure_compile_time_eval():  # if a jitted function asks first, no tracer is kept
            return model_factory.build_process(self.config)

    @functools.cached_property
    def codec(self) -> Codec:
        """The way between images and x_0."""
        with jax.ensure_compile_time_eval():
            return build_codec(self.config)

    @functools.cached_property
    def model(self) -> nn.Module:
        """The network that `params` are of."""
        return model_factory.build_model(self.config)

    @functools.cached_property
    def sampler_table(self) -> SamplerTable:
        """The steps of its sampler."""
        with jax.ensure_compile_time_eval():
            return sampler_factory.build_table(self.config, self.process)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C); (*sizes, C) of other data."""
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
    def given_condition_of(self) -> ConditionOf:
        """The same without what is derived from an image, which whoever edits images has."""
        return conditions.condition_of(self.config, derived=False)

    @property
    def image_task(self) -> ImageTask | None:
        """What the network is shown of an image; None for nothing."""
        return image_condition.build_task(self.config)

    @property
    def num_shown(self) -> int:
        """How many images its samples are shown, in turn; 0 without a task."""
        return image_condition.num_shown(self.config)

    def check_likelihood(self) -> None:
        """Raises UserError if the likelihood of its images is not defined, because a part of them is given."""
        if self.image_task is not None and self.image_task.has_hole:
            raise UserError(
                f"the likelihood of a network with condition.task={self.image_task.name!r} is not defined, because it "
                "is shown a part of the image: take pictures or samples"
            )

    @property
    def guidance_of(self) -> GuidanceOf:
        """Numbers of samples -> their guidance, or None."""
        return guidance_of(self.config, self.weak_network)

    @property
    def area_factor(self) -> int:
        """How many times larger, on each side, the images are that its own were made of."""
        return self.config.data.area_factor

    @property
    def num_classes(self) -> int:
        """How many classes the network is told, or those of the classifier that guides its samples; 0 for none."""
        if self.config.model.num_classes:
            return self.config.model.num_classes
        classifier = classifier_of_samples(self.config)
        return 0 if classifier is None else classifier.num_classes

    @property
    def drawn_classes(self) -> tuple[int, ...]:
        """The classes of its samples, in turn; () for none."""
        return drawn_classes(self.config, classifier_of_samples(self.config))

    def guidance_on(self, mesh: Mesh) -> GuidanceOf:
        """The same, with the weights of a weaker network on the devices of the mesh."""
        weak = self.weak_network
        return guidance_of(self.config, None if weak is None else weak.on_devices(mesh))

    @functools.cached_property
    def weak_network(self) -> WeakNetwork | None:
        """The weaker network that its samples are guided away from; None without autoguidance."""
        return weak_network_of_samples(self.config)

    @property
    def self_conditioning(self) -> bool:
        """Whether each network call of its sampler sees the x_0_hat of the call before."""
        return self.config.diffusion.self_conditioning

    @property
    def held_out_split(self) -> str:
        """The name of the split that it was not trained on; "" where there is none."""
        return self.config.data.eval_split

    @property
    def sample_batch_size(self) -> int:
        """Samples at a time."""
        return self.config.sample.batch_size

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
    def program_facts(self) -> tuple:
        """What the programs that sample it depend on, besides the network and the table; hashable.

        A guidance has its numbers as arrays, and only its kind is here.
        """
        sample, guidance = self.config.sample, self.guidance_of(np.arange(1))
        networks = tuple(sample[name] for name in sorted(sample) if name.startswith(("autoguidance", "classifier")))
        networks += tuple(checkpoints_changed(sample[name]) for name in ("autoguidance", "classifier"))
        limits = (sample.batch_size, sample.clip_x_0, sample.dynamic_threshold, self.config.diffusion.variance)
        return *limits, jax.tree.structure(guidance), networks, tuple(sample.classes if sample.classifier else ())

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

    def check_images(self, what: str, remedy: str = "") -> None:
        """Raises UserError unless its data are uint8 images; `what` says who needs them."""
        dtype = data_dtype_of(self.config)
        if not config_checks.is_image(self.image_shape) or dtype != "uint8":
            raise UserError(f"{what}, and this run has {dtype} arrays of shape {list(self.image_shape)}{remedy}")

    def check_pixels(self, what: str, remedy: str = "") -> None:
        """Raises UserError unless x_0 is the image itself, on the scale [-1, 1]; `what` says who needs that."""
        if type(self.codec) is not type(PIXELS):
            raise UserError(
                f"{what}, and this run diffuses x_0 of shape {list(self.codec.x_0_shape(self.image_shape))} by "
                f"codec.name={self.config.codec.name!r}{remedy}"
            )
