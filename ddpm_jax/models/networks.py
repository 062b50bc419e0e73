"""The networks that a config can name in `model.name`. A network of one's own is one file, one line here and one group
of its name in configs/base.py.

A network is a Linen module (x_t, t, condition, *, train) -> the prediction, with the attributes of `SHARED_FIELDS`,
`null_class` and `out_channels` (0: as many as x_t has) beside its own. `t` may lie between two steps. It never sees a
schedule, a config or another image of the batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from ddpm_jax.models.conv_net import ConvNet, check_conv_net
from ddpm_jax.models.unet import UNet
from ddpm_jax.models.unet_checks import check_unet

SHARED_FIELDS = ("dtype", "num_classes", "remat")  # of every network; a config has them in its group `model`


class Network(NamedTuple):
    """A kind of network."""

    module: type[nn.Module]
    check: Callable[..., None]  # (network, (height, width)): raises UserError for what cannot be built


NETWORKS = {
    "unet": Network(UNet, check_unet),
    "conv_net": Network(ConvNet, check_conv_net),
}
