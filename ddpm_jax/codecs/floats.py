"""The codec of real numbers: x_0 is the array itself, shifted and scaled. For signals, volumes and physical fields."""

import math

import flax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ddpm_jax.diffusion.variational_bound import gaussian_log_likelihood
from ddpm_jax.runtime.errors import UserError, arg


@flax.struct.dataclass
class FloatCodec:
    """float32 arrays <-> (x - mean)/scale, without bins and without a limit. See `codecs.codec.Codec`.

    A diffusion model assumes an x_0 of about mean 0 and standard deviation 1 or less.

    Attributes:
      mean: subtracted from the values; in their unit.
      scale: the values are divided by it; in their unit, above 0.

    Raises:
      UserError: a scale that is not positive and finite, or a mean that is not finite.
    """

    mean: float = flax.struct.field(pytree_node=False, default=0.0)
    scale: float = flax.struct.field(pytree_node=False, default=1.0)

    dtype = "float32"
    x_0_limit = None
    bin_width = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise UserError(f"{arg('scale')} must be above 0, such as the standard deviation; got {self.scale}")
        if not math.isfinite(self.mean):
            raise UserError(f"{arg('mean')} must be finite; got {self.mean}")

    def x_0_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the array."""
        return image_shape

    def encode(self, images: Float[Array, "B *D"], keys: Key[Array, "B"]) -> Float[Array, "B *D"]:
        """(x - mean)/scale; the keys are not used."""
        del keys
        return (jnp.asarray(images, jnp.float32) - self.mean) / self.scale

    def decode(self, x_0: Float[Array, "B *D"]) -> Float[Array, "B *D"]:
        """mean + scale * x_0, float32."""
        return self.mean + self.scale * x_0

    def log_likelihood(
        self, x_0: Float[Array, "B *D"], *, mean: Float[Array, "B *D"], log_var: Float[Array, "..."]
    ) -> Float[Array, "B *D"]:
        """The log density of x_0 under the Gaussian."""
        return gaussian_log_likelihood(x_0, mean=mean, log_var=log_var)

    def reconstruction_term(self, images: Float[Array, "B *D"], x_0: Float[Array, "B *D"]) -> Float[Array, "B"]:
        """D log(scale): -log p(x) = -log p(x_0) + D log(scale), for D values with the density p."""
        return jnp.full(len(images), math.prod(x_0.shape[1:]) * math.log(self.scale), jnp.float32)
