"""The diffusion objective: the loss of images at random steps with random noise (Ho et al. 2020, algorithm 1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from ddpm_jax.codecs.codec import PIXELS, Codec
from ddpm_jax.data.batch import Batch
from ddpm_jax.diffusion.denoiser import make_denoiser
from ddpm_jax.diffusion.forward_process import q_sample
from ddpm_jax.diffusion.losses import LossFn
from ddpm_jax.diffusion.process import ModelFn, Process
from ddpm_jax.diffusion.rng import Purpose, purpose_key
from ddpm_jax.diffusion.self_conditioning import input_shape, with_estimate
from ddpm_jax.diffusion.timestep_samplers import TimestepSampler, make_timestep_sampler
from ddpm_jax.models.parameters import init_params
from ddpm_jax.runtime.errors import UserError, arg
from ddpm_jax.training.metrics_window import Binned
from ddpm_jax.training.noised_inputs import DeriveFn, NoisedInputs, by_quarter_of_t, draw_inputs, held_out_inputs
from ddpm_jax.training.objective import Losses, Objective


@dataclass(frozen=True, eq=False)
class DiffusionObjective(Objective):
    """The losses of `loss_fn`, for a network that predicts what the process of `loss_fn` says.

    Step n draws t and eps from its key for the whole batch. The network draws dropout, with one key per part.

    With self-conditioning (Chen et al. 2022, algorithm 1) the network is called with concat(x_t, x_0_prev). x_0_prev is
    the x_0_hat of a first call with zeros at the same x_t and t, through which no gradient flows, or zeros. One coin
    per step decides for the whole batch, so that a step with zeros makes no first call. The first call is in training
    mode, with a dropout key of its own. Differs: its x_0_hat is limited to the codec's `x_0_limit`, as in sampling,
    because near T that of a predicted eps is as large as 1/sqrt(alpha-bar) (the paper's network predicts x_0 itself).
    The eval losses are those with zeros.

    Args:
      model: called as model.apply({"params": p}, x_t, t, condition, train=True, rngs={"dropout": key}).
      loss_fn: made by `diffusion.losses.make_loss_fn`; its process defines T.
      time_sampler: draws t in 0..T-1; None: uniform.
      codec: converts between images and x_0.
      self_conditioning: the network also sees an estimate of x_0; its input has twice the channels of x_0.
      self_conditioning_rate: share of the steps in which that is the estimate of a first call, and not 0, in [0, 1].
      derive_fn: makes what the network is shown of an image besides x_t, the derived entries of its condition, from the
        x_0 of the batch; None: nothing. The batches of `eval_losses` have these entries already.
      hole_only: the loss is that of the hole, where the entry "known" of the condition is 0 (Saharia et al. 2022,
        "Palette", section 3).

    Raises:
      UserError: a time sampler of another T; a rate outside [0, 1].
    """

    model: nn.Module
    loss_fn: LossFn
    time_sampler: TimestepSampler | None = None
    codec: Codec = PIXELS
    self_conditioning: bool = False
    self_conditioning_rate: float = 0.5
    derive_fn: DeriveFn | None = None
    hole_only: bool = False

    def __post_init__(self) -> None:
        num_steps = self.loss_fn.process.num_steps
        if self.time_sampler is None:
            object.__setattr__(self, "time_sampler", make_timestep_sampler("uniform", num_steps))
        if self.time_sampler.num_steps != num_steps:
            raise UserError(
                f"{arg('time_sampler')} must be of the {num_steps} steps of the loss's process; "
                f"got one of {self.time_sampler.num_steps}"
            )
        if not 0 <= self.self_conditioning_rate <= 1:
            raise UserError(f"{arg('self_conditioning_rate')} must be in [0, 1]; got {self.self_conditioning_rate}")

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
        x_0_shape = self.codec.x_0_shape(image_shape)
        return init_params(self.model, key, input_shape(x_0_shape) if self.self_conditioning else x_0_shape, condition)

    def init_extra(self) -> dict[str, PyTree]:
        """The history of the time sampler, if it has one."""
        history = self.time_sampler.init()
        return {} if history is None else {"t_history": history}

    def draw(
        self, frozen: Codec, batch: Batch, key: Key[Array, ""], extra: Mapping[str, PyTree]
    ) -> tuple[NoisedInputs, Float[Array, "B"]]:
        """x_0, t and eps, and with self-conditioning the coin; the weights come from the time sampler."""
        drawn, weights = draw_inputs(frozen, batch, key, self.time_sampler, extra, self.derive_fn)
        if self.self_conditioning:
            key_coin = purpose_key(key, Purpose.SELF_CONDITIONING, 0)
            coin = jax.random.bernoulli(key_coin, jnp.float32(self.self_conditioning_rate))
            drawn = drawn._replace(sees_estimate=jnp.broadcast_to(coin, weights.shape))
        return drawn, weights

    def losses(
        self, params: PyTree, frozen: Codec, drawn: NoisedInputs, key: Key[Array, ""], extra: PyTree
    ) -> tuple[Losses, None]:
        """The losses of `loss_fn`."""
        del frozen, extra
        model_fn = self._training_fn(params, drawn, key)
        if self.self_conditioning:
            model_fn = with_estimate(model_fn, self._estimate(params, drawn, key))
        return self._losses_of(model_fn, drawn), None

    def _losses_of(self, model_fn: ModelFn, drawn: NoisedInputs) -> Losses:
        region = 1 - drawn.condition["known"] if self.hole_only else None
        return self.loss_fn(model_fn, x_0=drawn.x_0, t=drawn.t, eps=drawn.eps, region=region)

    def _training_fn(self, params: PyTree, drawn: NoisedInputs, key: Key[Array, ""]) -> ModelFn:
        """(x_t, t) -> the output of the network, with dropout."""

        def model_fn(x_t: Array, t: Array) -> Array:
            return self.model.apply({"params": params}, x_t, t, drawn.condition, train=True, rngs={"dropout": key})

        return model_fn

    def _estimate(self, params: PyTree, drawn: NoisedInputs, key: Key[Array, ""]) -> Float[Array, "B *D"]:
        """x_0_prev: where the coin says so x_0_hat of a call with zeros, else zeros; a constant for the gradient."""
        x_t = q_sample(self.process.schedule, x_0=drawn.x_0, t=drawn.t, eps=drawn.eps)
        # Here, and not on the result: so nothing of the call is kept for a backward pass.
        params = jax.lax.stop_gradient(params)

        def first_call() -> Array:
            model_fn = self._training_fn(params, drawn, purpose_key(key, Purpose.SELF_CONDITIONING, 0))
            limit = self.codec.x_0_limit
            denoise_fn = make_denoiser(self.process, model_fn, x_0_limit=limit, self_conditioning=True)
            return denoise_fn(x_t, drawn.t).x_0_hat

        return jax.lax.cond(drawn.sees_estimate[0], first_call, lambda: jnp.zeros_like(x_t))

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

        if self.self_conditioning:
            model_fn = with_estimate(model_fn, jnp.zeros_like(drawn.x_0))
        return self._losses_of(model_fn, drawn)["loss"]
