"""The networks that a config can name in `model.name`. Your own network needs one file, one line here, and one group of
its name in configs/base.py.

A network is a Linen module (x_t, t, condition, *, train) -> the prediction. Besides its own attributes it has those of
`SHARED_FIELDS`, `null_class` and `out_channels` (0: as many as x_t has); if it is to be conditional on images
(`condition.task`), `spatial`; and if these may have noise (`condition.augmentation`), `takes_level`. `t` may be
fractional. A network never gets a schedule, a config or another image of the batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from ddpm_jax.models.conv_net import ConvNet, check_conv_net
from ddpm_jax.models.unet import UNet
from ddpm_jax.models.unet_checks import check_unet

SHARED_FIELDS = ("dtype", "num_classes", "remat")  # of every network; in the group `model` of a config


class Network(NamedTuple):
    """A kind of network."""

    module: type[nn.Module]
    check: Callable[..., None]  # (network, (height, width) or other sizes): raises UserError if it cannot be built


NETWORKS = {
    "unet": Network(UNet, check_unet),
    "conv_net": Network(ConvNet, check_conv_net),
}
