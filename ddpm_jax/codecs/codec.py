"""The codec interface.

A codec is the only conversion between the arrays of a data set, usually uint8 images, and the x_0 that is diffused: in
training, sampling, likelihood and evaluation. The pixel codec scales the values. An autoencoder of latent diffusion
(Rombach et al. 2022) has parameters, and another shape of x_0. `experiment.codec_factory` has the table of codecs that
a config can choose.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, Key, UInt8

from ddpm_jax.codecs.pixels import PixelCodec

Data = UInt8[Array, "B *S C"] | Float[Array, "B *S C"]


@runtime_checkable
class Codec(Protocol):
    """Images [B, H, W, C], or other arrays [B, *sizes, C] <-> x_0 [B, *D]; a pytree whose leaves are its parameters.

    Jitted functions take a codec as an argument, so that its parameters are not constants of the program. Everything
    that is not an array (all attributes below) is static: `flax.struct.field(pytree_node=False)`, or a class attribute.

    Attributes:
      dtype: of the images: "uint8", or "float32" for arrays of real numbers.
      x_0_limit: the maximum of |x_0|, to which x_0_hat is clipped; None: no limit.
      bin_width: the spacing of the values that x_0 can have; None: x_0 is continuous.
    """

    dtype: str
    x_0_limit: float | None
    bin_width: float | None

    def x_0_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(*sizes, C), for images (H, W, C) -> the shape of one x_0."""

    def encode(self, images: Data, keys: Key[Array, "B"]) -> Float[Array, "B *D"]:
        """x_0 of each image; if it is random, that of image i depends only on keys[i]."""

    def decode(self, x_0: Float[Array, "B *D"]) -> Data:
        """Images from x_0, which may still contain some noise."""

    def log_likelihood(
        self, x_0: Float[Array, "B *D"], *, mean: Float[Array, "B *D"], log_var: Float[Array, "..."]
    ) -> Float[Array, "B *D"]:
        """log p(x_0 | x_1) in nats, elementwise, of the last step N(mean, exp(log_var)) of the reverse process: the
        probability of the bin if x_0 has bins, else the density."""

    def reconstruction_term(self, images: Data, x_0: Float[Array, "B *D"]) -> Float[Array, "B"] | None:
        """log q(x_0 | image) - log p(image | x_0) in nats: the term that turns the bound for x_0 into one for
        -log p(image), in the mean over q. None: x_0 determines the image, and the term is 0."""


PIXELS = PixelCodec()
