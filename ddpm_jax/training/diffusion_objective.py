"""The diffusion objective: the loss of images at random steps with random noise (Ho et al. 2020, algorithm 1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float, Int, Key, PyTree

from ddpm_jax.codecs.codec import PIXELS, Codec
from ddpm_jax.data.batch import Batch
from ddpm_jax.diffusion.losses import LossFn
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.timestep_samplers import TimestepSampler, make_timestep_sampler
from ddpm_jax.models.parameters import init_params
from ddpm_jax.runtime.errors import UserError, arg
from ddpm_jax.training.metrics_window import Binned
from ddpm_jax.training.noised_inputs import NoisedInputs, by_quarter_of_t, draw_inputs, held_out_inputs
from ddpm_jax.training.objective import Losses, Objective


@dataclass(frozen=True, eq=False)
class DiffusionObjective(Objective):
    """The losses of `loss_fn`, for a network that predicts what the process of `loss_fn` says.

    Step n draws t and eps from its key for the whole batch. The network draws dropout, with one key per part.

    Args:
      model: called as model.apply({"params": p}, x_t, t, condition, train=True, rngs={"dropout": key}).
      loss_fn: made by `diffusion.losses.make_loss_fn`; its process defines T.
      time_sampler: draws t in 0..T-1; None: uniform.
      codec: converts between images and x_0.

    Raises:
      UserError: a time sampler of another T.
    """

    model: nn.Module
    loss_fn: LossFn
    time_sampler: TimestepSampler | None = None
    codec: Codec = PIXELS

    def __post_init__(self) -> None:
        num_steps = self.loss_fn.process.num_steps
        if self.time_sampler is None:
            object.__setattr__(self, "time_sampler", make_timestep_sampler("uniform", num_steps))
        if self.time_sampler.num_steps != num_steps:
            raise UserError(
                f"{arg('time_sampler')} must be of the {num_steps} steps of the loss's process; "
                f"got one of {self.time_sampler.num_steps}"
            )

    @property
    def process(self) -> Process:
        """The diffusion process."""
        return self.loss_fn.process

    @property
    def frozen(self) -> Codec:
        """The codec; its leaves are its parameters."""
        return self.codec

    def init_params(self, key: Key[Array, ""], image_shape: tuple[int, ...], condition: Mapping[str, Array]) -> PyTree:
        """The parameters of the network, for x_0 of images of this shape."""
        return init_params(self.model, key, self.codec.x_0_shape(image_shape), condition)

    def init_extra(self) -> dict[str, PyTree]:
        """The history of the time sampler, if it has one."""
        history = self.time_sampler.init()
        return {} if history is None else {"t_history": history}

    def draw(
        self, frozen: Codec, batch: Batch, key: Key[Array, ""], extra: Mapping[str, PyTree]
    ) -> tuple[NoisedInputs, Float[Array, "B"]]:
        """x_0, t and eps; the weights come from the time sampler."""
        return draw_inputs(frozen, batch, key, self.time_sampler, extra)

    def losses(
        self, params: PyTree, frozen: Codec, drawn: NoisedInputs, key: Key[Array, ""], extra: PyTree
    ) -> tuple[Losses, None]:
        """The losses of `loss_fn`."""
        del frozen, extra

        def model_fn(x_t: Array, t: Array) -> Array:
            return self.model.apply({"params": params}, x_t, t, drawn.condition, train=True, rngs={"dropout": key})

        return self.loss_fn(model_fn, x_0=drawn.x_0, t=drawn.t, eps=drawn.eps), None

    def update(
        self,
        extra: Mapping[str, PyTree],
        drawn: NoisedInputs,
        weights: Float[Array, "B"],
        losses: Losses,
        of_parts: Any,
    ) -> tuple[Mapping[str, PyTree], dict[str, Binned]]:
        """The history of the time sampler, and the loss by quarters of 0..T-1."""
        del of_parts
        by_t = by_quarter_of_t(losses["loss"], weights, drawn.t, self.process.num_steps)
        if "t_history" in extra:
            extra = {"t_history": self.time_sampler.update(extra["t_history"], drawn.t, losses["loss"])}
        return extra, {"loss_t": by_t}

    def eval_losses(
        self, params: PyTree, frozen: Codec, batch: Batch, ids: Int[Array, "B"], key: Key[Array, ""]
    ) -> Float[Array, "B"]:
        """The loss at steps and with noise that are the same at every evaluation; no condition is dropped."""
        drawn = held_out_inputs(frozen, batch, ids, key, self.process.num_steps)

        def model_fn(x_t: Array, t: Array) -> Array:
            return self.model.apply({"params": params}, x_t, t, drawn.condition)

        return self.loss_fn(model_fn, x_0=drawn.x_0, t=drawn.t, eps=drawn.eps)["loss"]
