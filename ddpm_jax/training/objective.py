"""What the train step minimises. An objective defines how a batch becomes losses; diffusion is one of them.

The train step does what all objectives share: gradient accumulation, clipping, optimiser, EMA, NaN handling, devices.
"""

import abc
from collections.abc import Mapping

import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from ddpm_jax.data.batch import Batch

Losses = Mapping[str, Float[Array, "B"]]  # "loss", and its parts by name


class Objective(abc.ABC):
    """A set of pure functions; an object of a subclass holds networks and settings, which are static.

    A training step calls `draw` once for the whole batch, `losses` once for each part of it (one part after another
    with gradient accumulation), and `update` once. So random numbers do not depend on the number of parts, except those
    that a network draws itself.

    Several networks that are trained against each other are one objective: their parameters are parts of `params`,
    their losses are summed with `jax.lax.stop_gradient` on what belongs to the other, and `optimizer` may give each
    network its own optimiser by `optax.multi_transform`.
    """

    # Arrays that are not trained, such as the parameters of an autoencoder; an argument of the jitted functions.
    frozen: PyTree = ()

    @abc.abstractmethod
    def init_params(
        self, key: Key[Array, ""], image_shape: tuple[int, ...], condition: Mapping[str, Array]
    ) -> PyTree:
        """The initial parameters; `condition` is that of one image, [1, ...] per entry."""

    def init_extra(self) -> Mapping[str, PyTree]:
        """By name, state that changes in training but not by a gradient, such as batch statistics.

        Each entry is an item of a checkpoint; `TrainState` says which names are taken.
        """
        return {}

    def optimizer(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimiser of the config, or one derived from it."""
        return optimizer

    @abc.abstractmethod
    def draw(
        self, frozen: PyTree, batch: Batch, key: Key[Array, ""], extra: Mapping[str, PyTree]
    ) -> tuple[PyTree, Float[Array, "B"]]:
        """All inputs of a step for its batch, [B, ...] per leaf, and the weight of each image in the mean of the
        losses.

        Args:
          key: of the step. fold_in(key, 0) and fold_in(key, 3) are used elsewhere, by flips and by `losses`.
        """

    @abc.abstractmethod
    def losses(
        self, params: PyTree, frozen: PyTree, drawn: PyTree, key: Key[Array, ""], extra: Mapping[str, PyTree]
    ) -> tuple[Losses, PyTree]:
        """The losses of a part of the batch, and anything else that `update` needs from the part. The weighted mean of
        "loss" is minimised.

        Args:
          drawn: the rows of `draw` that belong to the part.
          key: of the part, for random numbers of the network, such as dropout.
        """

    def update(
        self, extra: Mapping[str, PyTree], drawn: PyTree, weights: Float[Array, "B"], losses: Losses, of_parts: PyTree
    ) -> tuple[Mapping[str, PyTree], Mapping[str, PyTree]]:
        """The next `extra`, and metrics in addition to the mean losses: scalars, or `metrics_window.Binned`.

        Args:
          drawn, weights, losses: of the whole batch.
          of_parts: the second results of `losses`, stacked: [number of parts, ...] per leaf.
        """
        del drawn, weights, losses, of_parts
        return extra, {}

    @abc.abstractmethod
    def eval_losses(
        self, params: PyTree, frozen: PyTree, batch: Batch, ids: Int[Array, "B"], key: Key[Array, ""]
    ) -> Float[Array, "B"]:
        """The loss of held-out images, [B], without dropout; what is drawn for image i depends on `key` and ids[i]."""
