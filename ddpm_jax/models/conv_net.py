"""The smallest network of the package: convolutions of equal width, without levels and attention.

It takes arrays with any number of axes: signals [B, L, C], images [B, H, W, C], volumes [B, D, H, W, C].

Use it for tests, for trying out everything around a network in seconds, and as a template for your own network.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ddpm_jax.models.convolution import Conv
from ddpm_jax.models.initialisers import INIT, ZERO_INIT
from ddpm_jax.models.layers import check_condition, class_embedding, entries_taken, time_embedding, with_spatial
from ddpm_jax.runtime.errors import UserError, arg


class ConvNet(nn.Module):
    """x_t, t -> the prediction, by residual layers h + conv(swish(h + time)).

    Attributes:
      channels: width of every layer; even.
      num_layers: residual layers; the receptive field is num_layers + 2 pixels in every direction.
      out_channels: channels of the prediction; 0: as many as x_t.
      num_classes: > 0: the network takes labels, and a learned vector per label is added to the embedding of t.
      null_class: the label num_classes means "no class"; see `data.condition`.
      spatial: names of the entries that are joined to the channels of x_t; `out_channels` must then be given.
      takes_level: the network takes the augmentation level of what it is shown, whose embedding is added to that of t.
      dtype: of the convolutions. Parameters and the output are float32.
      remat: gradient checkpointing: the backward pass recomputes each layer.
    """

    channels: int = 32
    num_layers: int = 4
    out_channels: int = 0
    num_classes: int = 0
    null_class: bool = False
    spatial: tuple[str, ...] = ()
    takes_level: bool = False
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x_t: Float[Array, "B *S C"],
        t: Int[Array, "B"] | Float[Array, "B"],
        condition: Mapping[str, Array] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B *S C_out"]:
        """The prediction, [B, *S, C_out].

        Args:
          x_t: images [B, H, W, C] of any height and width, or arrays with other axes between the first and the last.
          t: steps 0..T-1, whole or fractional.
          condition: {"label": int [B]} with labels 0..num_classes-1, or num_classes for none with `null_class`, if
            num_classes > 0 (labels out of range give NaN); the entries `spatial`, [B, *S, K] each; and with
            `takes_level` {"level": int [B]}.
          train: no effect, because there is no dropout.

        Raises:
          UserError: an entry is missing, or the network does not take an entry.
        """
        del train
        condition = condition or {}
        check_condition(condition, entries_taken(self))

        def embedding(number: Array, name: str) -> Array:
            dense = nn.Dense(self.channels, kernel_init=INIT, dtype=self.dtype, name=name)
            return dense(time_embedding(number, self.channels))

        time = embedding(t, "time")
        if self.num_classes:
            num_vectors = self.num_classes + self.null_class
            vectors = class_embedding(self, condition["label"], num_vectors, self.channels)
            time = time + vectors.astype(self.dtype)
        if self.takes_level:
            time = time + embedding(condition["level"], "level")
        time = time.reshape(len(time), *(1,) * (x_t.ndim - 2), -1)
        kernel_size = (3,) * (x_t.ndim - 2)
        layer = nn.remat(_Layer) if self.remat else _Layer
        conv_in = Conv(self.channels, kernel_size, kernel_init=INIT, dtype=self.dtype, name="conv_in")
        h = conv_in(with_spatial(x_t, condition, self.spatial))  # [B, *S, channels]
        for i in range(self.num_layers):
            h = layer(self.channels, self.dtype, name=f"layer_{i}")(h, time)
        out = self.out_channels or x_t.shape[-1]
        conv_out = Conv(out, kernel_size, kernel_init=ZERO_INIT, dtype=jnp.float32, name="conv_out")
        return conv_out(nn.swish(h))


class _Layer(nn.Module):
    """h + conv(swish(h + time))."""

    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, h: Array, time: Array) -> Array:
        kernel_size = (3,) * (h.ndim - 2)
        conv = Conv(self.channels, kernel_size, kernel_init=INIT, dtype=self.dtype, name="conv")
        return h + conv(nn.swish(h + time))


def check_conv_net(network: ConvNet, image_size: tuple[int, ...]) -> None:
    """Checks the settings of a network before it is built.

    Raises:
      UserError: names the attribute of the network, its value, and the allowed values.
    """
    del image_size  # any size works
    if network.channels % 2 or network.channels < 4:
        raise UserError(f"{arg('channels')} must be even and at least 4; got {network.channels}")
    if network.num_layers > 1000 or network.channels > 2**16:
        raise UserError(
            f"{arg('num_layers')} and {arg('channels')} must be at most 1000 and 65536; got {network.num_layers} and "
            f"{network.channels}"
        )
    for field, least in (("num_layers", 1), ("num_classes", 0)):
        if getattr(network, field) < least:
            raise UserError(f"{arg(field)} must be at least {least}; got {getattr(network, field)}")
