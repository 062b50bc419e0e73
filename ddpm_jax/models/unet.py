"""The U-Net of Ho et al. 2020 and its successors in Flax Linen: x_t, t -> the prediction, pure in its parameters."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.models.convolution import Conv
from ddpm_jax.models.initialisers import ZERO_INIT
from ddpm_jax.models.layers import Norm, Upsample, check_condition, class_embedding, entries_taken, with_spatial
from ddpm_jax.models.unet_blocks import UNetBlocks, level_widths


class UNet(UNetBlocks):
    """eps_theta(x_t, t) of Ho et al. 2020, appendix B; 35,746,307 parameters at the defaults with 3 channels.

    The other values of the attributes from `norm_eps` on are for the networks of Nichol and Dhariwal 2021 and of
    Dhariwal and Nichol 2021; `res_blocks_per_level`, `downsample_first` and `scale_skips` are those of the Efficient
    U-Net of Saharia et al. 2022 (Imagen), appendix B. Differs: the initialisers are always those of Ho et al.'s code;
    from the Efficient U-Net in what docs/networks.md lists.

    Attributes: those of `UNetBlocks`, and
      out_channels: channels of the prediction; 0: as many as x_t.
      num_classes: > 0: the network takes labels, and a learned vector per label is added to the embedding of t.
      null_class: the label num_classes means "no class"; see `data.condition`.
      spatial: names of the entries that are joined to the channels of x_t; `out_channels` must then be given.
      takes_level: the network takes the augmentation level of what it is shown, whose embedding is added to that of t.
    """

    out_channels: int = 0
    num_classes: int = 0
    null_class: bool = False
    spatial: tuple[str, ...] = ()
    takes_level: bool = False

    @nn.compact
    def __call__(
        self,
        x_t: Float[Array, "B H W C"],
        t: Int[Array, "B"] | Float[Array, "B"],
        condition: Mapping[str, Array] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B H W C_out"]:
        """The prediction, [B, H, W, C_out].

        Args:
          x_t: images, H and W divisible by 2^(levels-1), or by 2^levels with `downsample_first`.
          t: steps 0..T-1, whole or fractional.
          condition: {"label": int [B]} with labels 0..num_classes-1, or num_classes for none with `null_class`, if
            num_classes > 0 (labels out of range give NaN); the entries `spatial`, [B, H, W, K] each; and with
            `takes_level` {"level": int [B]}.
          train: whether to apply dropout, with the key "dropout".

        Raises:
          UserError: an entry is missing, or the network does not take an entry.
        """
        condition = condition or {}
        check_condition(condition, entries_taken(self))
        time = self.embed_time(t)  # [B, 4 channels]
        if self.num_classes:
            num_vectors = self.num_classes + self.null_class
            time = time + class_embedding(self, condition["label"], num_vectors, 4 * self.channels).astype(self.dtype)
        if self.takes_level:
            time = time + self.embed_level(condition["level"])

        def res_block(h: Array, width: int, name: str, resize: str = "", skip: Array | None = None) -> Array:
            return self.res_block(h, skip, time, width=width, resize=resize, train=train, name=name)

        h, skips = self.way_down(with_spatial(x_t, condition, self.spatial), time, train=train)
        levels = zip(level_widths(self.channels, self.channel_mults), self.blocks_of_levels(), strict=True)
        for level, (width, num_blocks) in reversed(list(enumerate(levels))):
            for i in range(num_blocks + 1):
                h = res_block(h, width, f"up_{level}_block_{i}", skip=skips.pop())
                if h.shape[1] in self.attention_resolutions:
                    h = self.attention(h, f"up_{level}_attention_{i}")
            if level > 0 or self.downsample_first:
                name = f"up_{level}_upsample"
                if self.resample_in_blocks:
                    h = res_block(h, h.shape[-1], name, "up")
                else:
                    h = Upsample(self.dtype, name=name)(h)  # [B, 2H, 2W, C]
        if self.downsample_first:
            # Upsampled values have no detail of single pixels that their neighbourhood does not have; x_t has it.
            h = res_block(h, h.shape[-1], "last_block", skip=skips.pop())

        h = nn.swish(Norm(self.num_groups, self.norm_eps, self.dtype, name="norm_out")(h))
        out = self.out_channels or x_t.shape[-1]
        # The output layer stays in float32, because its rounding would be noise on the prediction.
        return Conv(out, (3, 3), kernel_init=ZERO_INIT, dtype=jnp.float32, name="conv_out")(h)
