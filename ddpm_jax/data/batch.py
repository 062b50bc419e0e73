"""A batch as it is sent to the device: uint8 images and their condition."""

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Array, UInt8

from ddpm_jax.data.condition import Condition


# A pytree's leaves may be shardings or shapes, so its fields are not checked in tests.
@no_type_check
class Batch(NamedTuple):
    """Images and their condition, which is `{}` for an unconditional network."""

    image: UInt8[Array | np.ndarray, "B H W C"]
    condition: Condition = {}
