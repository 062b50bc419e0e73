"""The diffusion objective: the loss of images at random steps with random noise (Ho et al. 2020, algorithm 1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, no_type_check

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from ddpm_jax.codecs.codec import PIXELS, Codec
from ddpm_jax.data.batch import Batch
from ddpm_jax.data.condition import Condition
from ddpm_jax.diffusion.losses import LossFn
from ddpm_jax.diffusion.rng import Purpose, encoding_keys, purpose_key, sample_keys
from ddpm_jax.diffusion.timestep_samplers import TimestepSampler, make_timestep_sampler
from ddpm_jax.models.parameters import init_params
from ddpm_jax.runtime.errors import UserError, arg
from ddpm_jax.training.metrics_window import Binned
from ddpm_jax.training.objective import Losses, Objective

NUM_T_BINS = 4


@no_type_check
class Drawn(NamedTuple):
    """The inputs of a training step for its batch."""

    x_0: Float[Array, "B *D"]
    t: Int[Array, "B"]
    eps: Float[Array, "B *D"]
    condition: Condition


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
    def frozen(self) -> Codec:
        """The codec; its leaves are its parameters."""
        return self.codec

    def init_params(
        self, key: Key[Array, ""], image_shape: tuple[int, ...], condition: Mapping[str, Array]
    ) -> PyTree:
        """The parameters of the network, for x_0 of images of this shape."""
        return init_params(self.model, key, self.codec.x_0_shape(image_shape), condition)

    def init_extra(self) -> dict[str, PyTree]:
        """The history of the time sampler, if it has one."""
        history = self.time_sampler.init()
        return {} if history is None else {"t_history": history}

    def draw(
        self, frozen: Codec, batch: Batch, key: Key[Array, ""], extra: Mapping[str, PyTree]
    ) -> tuple[Drawn, Float[Array, "B"]]:
        """x_0, t and eps; the weights come from the time sampler."""
        _, key_t, key_eps, _ = jax.random.split(key, 4)
        of_codec = sample_keys(purpose_key(key, Purpose.ENCODE, 0), jnp.arange(len(batch.image)))
        x_0 = frozen.encode(batch.image, of_codec)
        t, weights = self.time_sampler.sample(extra.get("t_history"), key_t, x_0.shape[0])
        return Drawn(x_0, t, jax.random.normal(key_eps, x_0.shape, jnp.float32), batch.condition), weights

    def losses(
        self, params: PyTree, frozen: Codec, drawn: Drawn, key: Key[Array, ""], extra: PyTree
    ) -> tuple[Losses, None]:
        """The losses of `loss_fn`."""
        del frozen, extra

        def model_fn(x_t: Array, t: Array) -> Array:
            return self.model.apply({"params": params}, x_t, t, drawn.condition, train=True, rngs={"dropout": key})

        return self.loss_fn(model_fn, x_0=drawn.x_0, t=drawn.t, eps=drawn.eps), None

    def update(
        self, extra: Mapping[str, PyTree], drawn: Drawn, weights: Float[Array, "B"], losses: Losses, of_parts: Any
    ) -> tuple[Mapping[str, PyTree], dict[str, Binned]]:
        """The history of the time sampler, and the loss by quarters of 0..T-1."""
        del of_parts
        # Sums, not matrix products: a TPU rounds the inputs of matrix products to bfloat16.
        which = jax.nn.one_hot(drawn.t * NUM_T_BINS // self.loss_fn.process.num_steps, NUM_T_BINS)  # [B, 4]
        by_t = Binned(
            jnp.sum((weights * losses["loss"])[:, None] * which, axis=0), jnp.sum(weights[:, None] * which, axis=0)
        )
        if "t_history" in extra:
            extra = {"t_history": self.time_sampler.update(extra["t_history"], drawn.t, losses["loss"])}
        return extra, {"loss_t": by_t}

    def eval_losses(
        self, params: PyTree, frozen: Codec, batch: Batch, ids: Int[Array, "B"], key: Key[Array, ""]
    ) -> Float[Array, "B"]:
        """Image i has the same t and eps at every evaluation, so that numbers at different steps are comparable.

        t is the i-th element of a stratified sequence over 0..T-1 (from the golden ratio); eps comes from
        fold_in(key, i). There is no dropout and no dropping of conditions.
        """
        num_steps = self.loss_fn.process.num_steps
        # frac(i * 0.618...) in integers: float32 would lose digits at large i.
        golden = (ids.astype(jnp.uint32) + 1) * jnp.uint32(2654435769)
        t = jnp.minimum((golden.astype(jnp.float32) * 2.0**-32 * num_steps).astype(jnp.int32), num_steps - 1)
        keys = sample_keys(key, ids)
        x_0 = frozen.encode(batch.image, encoding_keys(keys))
        eps = jax.vmap(lambda key: jax.random.normal(key, x_0.shape[1:], jnp.float32))(keys)

        def model_fn(x_t: Array, t: Array) -> Array:
            return self.model.apply({"params": params}, x_t, t, batch.condition)

        return self.loss_fn(model_fn, x_0=x_0, t=t, eps=eps)["loss"]
