"""A codec whose every number has a closed form: a linear map of patches with some noise."""

import math

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.codecs.pixels import to_model_scale, to_uint8
from ddpm_jax.diffusion.variational_bound import gaussian_log_likelihood


@flax.struct.dataclass
class LinearCodec:
    """x_0 = patches of 2 x 2 pixels times `matrix`, plus noise; p(image | x_0) = N(decoded, DECODER_STD^2) in the
    pixels' bins, as densities times the width of a bin.
    """

    matrix: jax.Array  # [4 C, K], orthonormal columns
    std: float = flax.struct.field(pytree_node=False, default=0.05)  # of q(x_0 | image)
    decoder_std: float = flax.struct.field(pytree_node=False, default=0.1)

    dtype = "uint8"
    x_0_limit = None
    bin_width = None

    def x_0_shape(self, image_shape):
        height, width, _ = image_shape
        return height // 2, width // 2, self.matrix.shape[1]

    def _mean(self, pixels):
        n, height, width, channels = pixels.shape
        patches = pixels.reshape(n, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
        return patches.reshape(n, height // 2, width // 2, 4 * channels) @ self.matrix

    def pixels_of(self, x_0):
        n, height, width, _ = x_0.shape
        patches = (x_0 @ self.matrix.T).reshape(n, height, width, 2, 2, -1).swapaxes(2, 3)
        return patches.reshape(n, 2 * height, 2 * width, -1)

    def encode(self, images, keys):
        mean = self._mean(to_model_scale(images))
        return mean + self.std * jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)

    def decode(self, x_0):
        return to_uint8(self.pixels_of(x_0))

    def log_likelihood(self, x_0, *, mean, log_var):
        return gaussian_log_likelihood(x_0, mean=mean, log_var=log_var)

    def reconstruction_term(self, images, x_0):
        pixels = to_model_scale(images)
        log_q = gaussian_log_likelihood(x_0, mean=self._mean(pixels), log_var=jnp.asarray(2 * math.log(self.std)))
        log_var = jnp.asarray(2 * math.log(self.decoder_std))
        log_p = gaussian_log_likelihood(pixels, mean=self.pixels_of(x_0), log_var=log_var) + math.log(2 / 255)
        return jnp.sum(log_q, (1, 2, 3)) - jnp.sum(log_p, (1, 2, 3))


def linear_codec(channels=1, size=4, seed=0):
    """With a random matrix of `size` columns."""
    matrix = np.linalg.qr(np.random.default_rng(seed).normal(size=(4 * channels, 4 * channels)))[0][:, :size]
    return LinearCodec(jnp.asarray(matrix, jnp.float32))
