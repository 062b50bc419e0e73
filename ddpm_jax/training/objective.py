"""What the train step minimises: an objective says how a batch becomes losses. Diffusion is one of them.

The train step keeps what is common to all: gradient accumulation, clipping, the optimiser, EMA, NaN handling, devices.
"""

import abc
from collections.abc import Mapping

import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from ddpm_jax.data.batch import Batch

Losses = Mapping[str, Float[Array, "B"]]  # "loss", and its parts by name


class Objective(abc.ABC):
    """Pure functions of their arguments; an object of a subclass holds networks and settings, which are static.

    A step of training calls `draw` once for the whole batch, `losses` once for each part of it (one after another where
    there is gradient accumulation), and `update` once. So nothing that is random, but for what a network draws itself,
    depends on the number of parts.

    Several players that train against each other are one objective: their parameters are parts of `params`, their
    losses are summed with `jax.lax.stop_gradient` on what belongs to the other, and `optimizer` may give each its own
    by `optax.multi_transform`.
    """

    # Arrays that are not trained, such as the parameters of an autoencoder: an argument of the jitted functions.
    frozen: PyTree = ()

    @abc.abstractmethod
    def init_params(
        self, key: Key[Array, ""], image_shape: tuple[int, int, int], condition: Mapping[str, Array]
    ) -> PyTree:
        """Parameters to start from; `condition` is that of one image, [1, ...] an entry."""

    def init_extra(self) -> Mapping[str, PyTree]:
        """By name, what changes in training and is not trained by gradient, such as batch statistics.

        Each is an item of a checkpoint; `TrainState` says which names are taken.
        """
        return {}

    def optimizer(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimiser of the config, or what is made of it."""
        return optimizer

    @abc.abstractmethod
    def draw(
        self, frozen: PyTree, batch: Batch, key: Key[Array, ""], extra: Mapping[str, PyTree]
    ) -> tuple[PyTree, Float[Array, "B"]]:
        """All that a step needs of its batch, [B, ...] a leaf, and the weight of each image in the mean of the losses.

        Args:
          key: of the step. fold_in(key, 0) and fold_in(key, 3) are taken, by flips and by `losses`.
        """

    @abc.abstractmethod
    def losses(
        self, params: PyTree, frozen: PyTree, drawn: PyTree, key: Key[Array, ""], extra: Mapping[str, PyTree]
    ) -> tuple[Losses, PyTree]:
        """The losses of a part of the batch, of which the weighted mean of "loss" is minimised; and anything else that
        `update` needs of the part.

        Args:
          drawn: the part's rows of what `draw` gave.
          key: of the part, for what a network draws, such as dropout.
        """

    def update(
        self, extra: Mapping[str, PyTree], drawn: PyTree, weights: Float[Array, "B"], losses: Losses, of_parts: PyTree
    ) -> tuple[Mapping[str, PyTree], Mapping[str, PyTree]]:
        """The next `extra`, and metrics beside the means of the losses: scalars, or `metrics_window.Binned`.

        Args:
          drawn, weights, losses: of the whole batch.
          of_parts: the second results of `losses`, stacked: [number of parts, ...] a leaf.
        """
        del drawn, weights, losses, of_parts
        return extra, {}

    @abc.abstractmethod
    def eval_losses(
        self, params: PyTree, frozen: PyTree, batch: Batch, ids: Int[Array, "B"], key: Key[Array, ""]
    ) -> Float[Array, "B"]:
        """The loss of held-out images, [B], without dropout; what is drawn for image i depends on `key` and ids[i]."""
