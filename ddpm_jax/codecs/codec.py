"""What a codec is.

A codec is the only way between uint8 images and the x_0 that diffuses: in training, sampling, likelihood and
evaluation. The pixel codec scales; an autoencoder of latent diffusion (Rombach et al. 2022) has parameters, and its
x_0 another shape. `experiment.codec_factory` has the table of those that a config can choose.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, Key, UInt8

from ddpm_jax.codecs.pixels import PixelCodec


@runtime_checkable
class Codec(Protocol):
    """uint8 images [B, H, W, C] <-> x_0 [B, *D]; a pytree whose leaves are its parameters.

    Functions that are jitted take a codec as an argument, so that its parameters are none of their constants. What is
    not an array (all attributes below) is static: `flax.struct.field(pytree_node=False)`, or of the class.

    Attributes:
      x_0_limit: |x_0| is at most this, and x_0_hat is clipped to it; None: there is no limit.
      bin_width: of the grid of values that x_0 is made of; None: x_0 is continuous.
    """

    x_0_limit: float | None
    bin_width: float | None

    def x_0_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
        """(H, W, C) -> the shape of one x_0."""

    def encode(self, images: UInt8[Array, "B H W C"], keys: Key[Array, "B"]) -> Float[Array, "B *D"]:
        """x_0 of each image; where it is drawn, image i from keys[i] alone."""

    def decode(self, x_0: Float[Array, "B *D"]) -> UInt8[Array, "B H W C"]:
        """Images of x_0, also of one that is not quite clean."""

    def log_likelihood(
        self, x_0: Float[Array, "B *D"], *, mean: Float[Array, "B *D"], log_var: Float[Array, "..."]
    ) -> Float[Array, "B *D"]:
        """log p(x_0 | x_1) in nats, elementwise, of the last step N(mean, exp(log_var)) of the reverse process: the
        mass of the bin where x_0 has bins, else the density."""

    def reconstruction_term(
        self, images: UInt8[Array, "B H W C"], x_0: Float[Array, "B *D"]
    ) -> Float[Array, "B"] | None:
        """log q(x_0 | image) - log p(image | x_0) in nats: what the bound of x_0 lacks to be one of -log p(image), in
        the mean over q. None: x_0 says all of the image, and the term is 0."""


PIXELS = PixelCodec()
