"""The pixel codec: x_0 is the image itself, on the scale [-1, 1] (Ho et al. 2020, section 3.3)."""

import flax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from ddpm_jax.diffusion.variational_bound import PIXEL_BIN, discretised_gaussian_log_likelihood
from ddpm_jax.runtime.errors import UserError, arg


def to_model_scale(images: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """x/127.5 - 1: uint8 0..255 -> float32 [-1, 1].

    Raises:
      UserError: images of another type, which may be scaled already.
    """
    if images.dtype != jnp.uint8:
        raise UserError(
            f"{arg('images')} must be uint8, 0..255; got {images.dtype}: give (255 * x).round().astype('uint8') "
            "of images in 0..1, or x_0 itself where a function takes x_0"
        )
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(x_0: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """[-1, 1] -> the nearest of 0..255; values outside are clipped.

    Raises:
      TypeError: whole numbers, such as images that are uint8 already.
    """
    if not jnp.issubdtype(x_0.dtype, jnp.floating):
        raise TypeError(f"x_0 must be of floats in [-1, 1]; got {x_0.dtype}")
    return jnp.clip(jnp.round((x_0 + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


@flax.struct.dataclass
class PixelCodec:
    """uint8 0..255 <-> [-1, 1], without parameters, lossless. See `codecs.codec.Codec`."""

    dtype = "uint8"
    x_0_limit = 1.0
    bin_width = PIXEL_BIN

    def x_0_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the image."""
        return image_shape

    def encode(self, images: UInt8[Array, "B *D"], keys: Key[Array, "B"]) -> Float[Array, "B *D"]:
        """x/127.5 - 1; the keys are not used."""
        del keys
        return to_model_scale(images)

    def decode(self, x_0: Float[Array, "B *D"]) -> UInt8[Array, "B *D"]:
        """The nearest of the 256 values."""
        return to_uint8(x_0)

    def log_likelihood(
        self, x_0: Float[Array, "B *D"], *, mean: Float[Array, "B *D"], log_var: Float[Array, "..."]
    ) -> Float[Array, "B *D"]:
        """The log-likelihood of the pixel's bin under the Gaussian (Ho et al. 2020, equation 13)."""
        return discretised_gaussian_log_likelihood(x_0, mean=mean, log_var=log_var)

    def reconstruction_term(self, images: UInt8[Array, "B *D"], x_0: Float[Array, "B *D"]) -> None:
        """None, because decode(encode(images)) is equal to images."""
        del images, x_0
