"""A classifier of noised images: -log p(label | x_t) at random steps (Dhariwal and Nichol 2021, section 4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from ddpm_jax.codecs.codec import PIXELS, Codec
from ddpm_jax.data.batch import Batch
from ddpm_jax.diffusion.forward_process import q_sample
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.timestep_samplers import TimestepSampler
from ddpm_jax.models.parameters import init_params
from ddpm_jax.training.metrics_window import Binned
from ddpm_jax.training.noised_inputs import NoisedInputs, by_quarter_of_t, draw_inputs, held_out_inputs
from ddpm_jax.training.objective import Losses, Objective


@dataclass(frozen=True, eq=False)
class ClassifierObjective(Objective):
    """The cross-entropy of the classes, for x_t with t and eps drawn as for a diffusion model.

    Reports the loss and the accuracy, also by quarters of 0..T-1: at the noisiest steps no classifier can be right.

    Args:
      model: called as model.apply({"params": p}, x_t, t, train=True, rngs={"dropout": key}), gives logits [B, C].
      process: whose x_t are classified.
      time_sampler: draws t in 0..T-1.
      codec: converts images to x_0.
    """

    model: nn.Module
    process: Process
    time_sampler: TimestepSampler
    codec: Codec = PIXELS

    @property
    def frozen(self) -> Codec:
        """The codec; its leaves are its parameters."""
        return self.codec

    def init_params(self, key: Key[Array, ""], image_shape: tuple[int, ...], condition: Mapping[str, Array]) -> PyTree:
        """The parameters of the network, which is not told the condition."""
        del condition
        return init_params(self.model, key, self.codec.x_0_shape(image_shape), {})

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
        """The cross-entropy as "loss", and whether the likeliest class is the right one as "accuracy"."""
        del frozen, extra
        logits_fn = lambda x_t, t: self.model.apply(  # noqa: E731
            {"params": params}, x_t, t, train=True, rngs={"dropout": key}
        )
        return self._losses(logits_fn, drawn), None

    def _losses(self, logits_fn: Any, drawn: NoisedInputs) -> Losses:
        x_t = q_sample(self.process.schedule, x_0=drawn.x_0, t=drawn.t, eps=drawn.eps)
        logits, label = logits_fn(x_t, drawn.t), drawn.condition["label"]
        right = (jnp.argmax(logits, axis=-1) == label).astype(jnp.float32)
        return {
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, label),
            "accuracy": jax.lax.stop_gradient(right),
        }

    def update(
        self,
        extra: Mapping[str, PyTree],
        drawn: NoisedInputs,
        weights: Float[Array, "B"],
        losses: Losses,
        of_parts: Any,
    ) -> tuple[Mapping[str, PyTree], dict[str, Binned]]:
        """The history of the time sampler, and loss and accuracy by quarters of 0..T-1."""
        del of_parts
        num_steps = self.process.num_steps
        by_t = {
            f"{name}_t": by_quarter_of_t(losses[name], weights, drawn.t, num_steps) for name in ("loss", "accuracy")
        }
        if "t_history" in extra:
            extra = {"t_history": self.time_sampler.update(extra["t_history"], drawn.t, losses["loss"])}
        return extra, by_t

    def eval_losses(
        self, params: PyTree, frozen: Codec, batch: Batch, ids: Int[Array, "B"], key: Key[Array, ""]
    ) -> Float[Array, "B"]:
        """The cross-entropy at steps and with noise that are the same at every evaluation."""
        drawn = held_out_inputs(frozen, batch, ids, key, self.process.num_steps)
        return self._losses(lambda x_t, t: self.model.apply({"params": params}, x_t, t), drawn)["loss"]
