"""The laws of the exact laboratory, and exact samples of what each method claims to draw."""

import numpy as np

from ddpm_jax.diffusion.exact import GaussianMixture, make_mixture

NUM_CLASSES = 3
_OF_ARM = 4  # components of a class
_REACH = 0.85  # the length of an arm: like images, the data lies in about -1..1


def pinwheel(num_dims: int) -> GaussianMixture:
    """Three classes, each a bent arm of four Gaussians from the middle outwards, where the classes overlap.

    In more than two dimensions each further pair of coordinates has arms of its own, turned and mirrored, so that all
    coordinates of a sample depend on each other through its component; an odd last one has a deviation of 0.3.
    """
    angles = 2 * np.pi * np.arange(NUM_CLASSES)[:, None] / NUM_CLASSES + 0.35 * np.arange(_OF_ARM)  # [class, component]
    radii = np.broadcast_to(_REACH * (np.arange(_OF_ARM) + 0.6) / (_OF_ARM - 0.4), angles.shape)
    means = np.zeros((angles.size, num_dims))
    covariances = np.tile(0.09 * np.eye(num_dims), (angles.size, 1, 1))
    for pair in range(num_dims // 2):
        turned = ((-1) ** pair * angles + 1.1 * pair).reshape(-1)
        along = np.stack([np.cos(turned), np.sin(turned)], axis=1)  # outwards
        across = np.stack([-np.sin(turned), np.cos(turned)], axis=1)
        axes = slice(2 * pair, 2 * pair + 2)
        means[:, axes] = radii.reshape(-1, 1) * along
        covariances[:, axes, axes] = 0.11**2 * _outer(along) + 0.06**2 * _outer(across)
    weights = np.tile(np.arange(_OF_ARM) + 1.0, NUM_CLASSES)
    return make_mixture(
        means, covariances=covariances, weights=weights, classes=np.repeat(np.arange(NUM_CLASSES), _OF_ARM)
    )


def gaussian(num_dims: int) -> GaussianMixture:
    """One Gaussian with standard deviations from 0.1 to 0.7 and the mean 0.3 in each coordinate."""
    return make_mixture(np.full((1, num_dims), 0.3), std=np.geomspace(0.1, 0.7, num_dims)[None])


def _outer(vectors: np.ndarray) -> np.ndarray:
    return vectors[:, :, None] * vectors[:, None, :]
