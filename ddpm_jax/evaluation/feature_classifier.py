"""A small classifier that is trained on the data set itself, used for features if there are no Inception weights."""

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ddpm_jax.codecs.pixels import to_model_scale
from ddpm_jax.data import ImageSource, batch_indices
from ddpm_jax.runtime.atomic_files import replace_file
from ddpm_jax.runtime.compilation import compiler_options
from ddpm_jax.runtime.errors import UserError

NUM_FEATURES = 128
NUM_STEPS, BATCH_SIZE, LEARNING_RATE, SEED = 1200, 128, 1e-3, 0
HELD_OUT_EVERY = 10  # images 0, 10, 20, ... are not trained on
_NUMBERS = ("num_classes", "accuracy", "scale")
CHANNELS, STRIDES = (16, 32, 64), (1, 2, 2)  # of the convolutions
# All settings above: another recipe is another extractor.
RECIPE = f"{NUM_FEATURES} {NUM_STEPS} {BATCH_SIZE} {LEARNING_RATE} {SEED} {HELD_OUT_EVERY} {CHANNELS} {STRIDES}"


class Classifier(nn.Module):
    """Three 3x3 convolutions, of which the second and third have stride 2, a hidden layer, and one output per class."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> tuple[Float[Array, "B 128"], Float[Array, "B K"]]:
        """(the hidden layer's activations, logits); x in [-1, 1]."""
        for index, (channels, stride) in enumerate(zip(CHANNELS, STRIDES, strict=True)):
            x = nn.relu(nn.Conv(channels, (3, 3), strides=stride, name=f"conv_{index}")(x))
        # Pooled to at most 4x4, so that large images do not make a large layer.
        window = tuple(-(-n // 4) for n in x.shape[1:3])
        x = nn.avg_pool(x, window, strides=window, padding="SAME", count_include_pad=False)
        features = nn.relu(nn.Dense(NUM_FEATURES, name="hidden")(x.reshape(len(x), -1)))
        return features, nn.Dense(self.num_classes, name="logits")(features)


@dataclass(frozen=True)
class TrainedClassifier:
    """The weights, and their accuracy on held-out images.

    Attributes:
      accuracy: the share of held-out images that are classified correctly.
      scale: scales the mean square of their features to 1, as the kernel of the kernel distance expects.
    """

    params: dict
    num_classes: int
    accuracy: float
    scale: float


def check_labels(source: ImageSource, what: str) -> int:
    """The number of classes.

    Raises:
      UserError: no labels, fewer than two classes, or too few images.
    """
    if source.labels is None:
        raise UserError(
            f"--extractor=classifier needs labels, and {what} has none: take --extractor=pixels, or "
            "--extractor=inception with --inception_weights=FILE"
        )
    num_classes = int(source.labels.max()) + 1
    if len(np.unique(source.labels)) < 2 or len(source) < 2 * HELD_OUT_EVERY:
        raise UserError(
            f"--extractor=classifier needs two classes and {2 * HELD_OUT_EVERY} images; {what} has "
            f"{len(np.unique(source.labels))} and {len(source)}: take --extractor=pixels"
        )
    return num_classes


def train_classifier(
    source: ImageSource,
    num_classes: int,
    *,
    num_steps: int = NUM_STEPS,
    on_step: Callable[[], None] = lambda: None,
) -> TrainedClassifier:
    """Trains with Adam on the cross-entropy, from a fixed seed, on one device."""
    model, optimizer = Classifier(num_classes), optax.adam(LEARNING_RATE)
    held_out = np.arange(0, len(source), HELD_OUT_EVERY)
    training = np.setdiff1d(np.arange(len(source)), held_out)

    def loss_of(params: dict, images: Array, labels: Array) -> Array:
        logits = model.apply({"params": params}, to_model_scale(images))[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(params: dict, state: optax.OptState, images: Array, labels: Array):
        updates, state = optimizer.update(jax.grad(loss_of)(params, images, labels), state)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1), compiler_options=compiler_options())
    params = jax.jit(model.init)(jax.random.key(SEED), jnp.zeros((1, *source.image_shape), jnp.float32))["params"]
    state = optimizer.init(params)
    for index in range(num_steps):
        picked = batch_indices(seed=SEED, step=index, batch_size=BATCH_SIZE, num_examples=len(training))
        rows = training[picked]
        params, state = jitted(params, state, source.load(rows), source.labels[rows])
        on_step()
    read = jax.jit(lambda params, images: model.apply({"params": params}, to_model_scale(images)))
    num_right, squares = 0, 0.0
    for start in range(0, len(held_out), BATCH_SIZE):
        num_real = min(BATCH_SIZE, len(held_out) - start)
        rows = np.resize(held_out[start : start + BATCH_SIZE], BATCH_SIZE)  # one shape, one compilation
        features, logits = (np.asarray(x)[:num_real] for x in read(params, source.load(rows)))
        num_right += int((logits.argmax(axis=1) == source.labels[rows[:num_real]]).sum())
        squares += float((features.astype(np.float64) ** 2).mean(axis=1).sum())
    scale = float(np.sqrt(len(held_out) / squares)) if squares else 1.0
    return TrainedClassifier(jax.device_get(params), num_classes, num_right / len(held_out), scale)


def save_classifier(path: str, trained: TrainedClassifier) -> None:
    """Writes an `.npz` file."""
    leaves = flax.traverse_util.flatten_dict(trained.params, sep="/")
    with replace_file(path) as file:
        numbers = {name: getattr(trained, name) for name in _NUMBERS}
        np.savez(file, **numbers, **leaves)


def load_classifier(path: str) -> TrainedClassifier | None:
    """Reads what `save_classifier` wrote; None if there is no such file or it cannot be read."""
    if not os.path.exists(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            leaves = {name: file[name] for name in file}
        numbers = {name: leaves.pop(name).item() for name in _NUMBERS}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None  # the classifier is trained again
    return TrainedClassifier(params=flax.traverse_util.unflatten_dict(leaves, sep="/"), **numbers)
