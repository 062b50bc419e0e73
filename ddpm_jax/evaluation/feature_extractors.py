"""Turns images into the features that sample metrics compare: Inception, a classifier, or the pixels themselves."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ddpm_jax.codecs.pixels import to_model_scale
from ddpm_jax.evaluation.feature_classifier import NUM_FEATURES, RECIPE, Classifier, TrainedClassifier
from ddpm_jax.evaluation.inception import INPUT_SIZE, WIDTHS, Inception, resize_tf_bilinear, to_input_range
from ddpm_jax.evaluation.inception_weights import load_inception
from ddpm_jax.runtime.compilation import compiler_options
from ddpm_jax.runtime.devices import batch_sharded, put_batch, replicated
from ddpm_jax.runtime.errors import UserError, check_one_of
from ddpm_jax.runtime.resume_file import fingerprint

EXTRACTORS = ("inception", "classifier", "pixels")
RESIZES = {
    "tf_bilinear": "ResizeBilinear of TensorFlow 1 to 299x299, no antialiasing, float32, not rounded",
    "clean": "Pillow's antialiased bicubic to 299x299, per channel in float32, clipped to 0..255, not rounded",
}
MAX_PIXELS = 4096


@dataclass(frozen=True)
class Extractor:
    """uint8 images -> named features, float32 [B, D].

    Attributes:
      facts: everything that the features depend on, as JSON; `name` is one of EXTRACTORS.
      widths: name -> D. "main" is used for distances, "spatial" for sFID, "logits" for a score.
      apply: (params, batch) -> features, in JAX.
      prepare: preprocessing of uint8 images on the host.
    """

    facts: dict[str, Any]
    widths: dict[str, int]
    apply: Callable[[dict, jax.Array], dict[str, jax.Array]]
    params: dict = field(default_factory=dict)
    prepare: Callable[[np.ndarray], np.ndarray] = lambda images: images

    @property
    def name(self) -> str:
        """One of EXTRACTORS."""
        return self.facts["name"]

    def on_devices(self, mesh: Mesh, batch_size: int) -> Callable[[np.ndarray | None, tuple], dict[str, np.ndarray]]:
        """extract(images, image_shape) over all devices, in batches of one shape.

        `images` is uint8 [at most batch_size, H, W, C] on the first process and None on the others.
        """
        everywhere, batch = replicated(mesh), batch_sharded(mesh)
        apply = jax.jit(
            self.apply,
            in_shardings=(everywhere, batch),
            out_shardings=everywhere,
            compiler_options=compiler_options(),
        )
        params = jax.device_put(self.params, everywhere)

        def extract(images: np.ndarray | None, image_shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
            num_images = 0 if images is None else len(images)
            # The last batch is filled up with repeats, which are removed from the result.
            whole = np.zeros((batch_size, *image_shape), np.uint8) if images is None else np.resize(
                images, (batch_size, *image_shape)
            )  # fmt: skip
            if jax.process_count() > 1:
                whole, num_images = multihost_utils.broadcast_one_to_all((whole, np.int32(num_images)))
            share = np.split(np.asarray(whole), jax.process_count())[jax.process_index()]
            features = apply(params, put_batch(self.prepare(share), mesh))
            return {name: np.asarray(rows)[: int(num_images)] for name, rows in features.items()}

        return extract


def inception_extractor(weights: str, resize: str = "tf_bilinear") -> Extractor:
    """The FID's Inception v3.

    Grey images become three equal channels.

    Args:
      weights: the file; see `inception_weights.load_inception`.
      resize: one of RESIZES: "tf_bilinear", as in the original FID, or "clean" (Parmar et al. 2022).

    Raises:
      UserError: an unknown resize rule, or a file without these weights.
    """
    check_one_of("--resize", resize, RESIZES)
    params = load_inception(weights)
    network = Inception(has_output="logits_kernel" in params)
    widths = {"main": WIDTHS["pool"], "spatial": WIDTHS["spatial"]}
    if network.has_output:
        widths["logits"] = WIDTHS["logits"]

    def apply(params: dict, images: jax.Array) -> dict[str, jax.Array]:
        if images.shape[-1] == 1:
            images = jnp.repeat(images, 3, axis=-1)
        x = images if resize == "clean" else resize_tf_bilinear(images)
        features = network.apply({"params": params}, to_input_range(x))
        found = {"main": features.pool, "spatial": features.spatial, "logits": features.logits}
        return {name: found[name] for name in widths}

    facts = {"name": "inception", "resize": resize, "weights_fingerprint": fingerprint(params)}
    prepare = resize_clean if resize == "clean" else Extractor.prepare
    return Extractor(facts, widths, apply, params, prepare)


def resize_clean(images: np.ndarray, size: int = INPUT_SIZE) -> np.ndarray:
    """uint8 [B, H, W, C] -> float32 [B, size, size, C]: the rule of clean-fid (Parmar et al. 2022).

    Pillow's bicubic filter, widened when an image shrinks, applied per channel in float32; clipped to 0..255.
    """
    from PIL import Image

    from ddpm_jax.data.image_source import ThreadMap

    def channel(plane: np.ndarray) -> np.ndarray:
        image = Image.fromarray(plane.astype(np.float32))
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 255)

    planes = images.transpose(0, 3, 1, 2).reshape(-1, *images.shape[1:3])
    resized = np.stack(ThreadMap(channel)(list(planes)))
    return resized.reshape(len(images), images.shape[-1], size, size).transpose(0, 2, 3, 1)


def classifier_extractor(trained: TrainedClassifier, facts: dict[str, Any]) -> Extractor:
    """The scaled hidden layer and the logits of a classifier that was trained on the data itself.

    Args:
      facts: what it was trained on.
    """
    model = Classifier(trained.num_classes)

    def apply(params: dict, images: jax.Array) -> dict[str, jax.Array]:
        features, logits = model.apply({"params": params}, to_model_scale(images))
        return {"main": features * trained.scale, "logits": logits}

    own = {
        "name": "classifier",
        "recipe": RECIPE,
        "held_out_accuracy": trained.accuracy,
        "scale": trained.scale,
        "weights_fingerprint": fingerprint(trained.params),
    }
    return Extractor(
        own | {"trained_on": facts}, {"main": NUM_FEATURES, "logits": trained.num_classes}, apply, trained.params
    )


def pixels_extractor(image_shape: tuple[int, int, int]) -> Extractor:
    """The pixels themselves, 0..1.

    Raises:
      UserError: too many pixels to compute a covariance.
    """
    num_pixels = int(np.prod(image_shape))
    if num_pixels > MAX_PIXELS:
        shape = "x".join(map(str, image_shape))
        raise UserError(
            f"--extractor=pixels compares at most {MAX_PIXELS} values per image; got {shape} = {num_pixels}: take "
            "another --extractor, or a smaller --image_size"
        )

    def apply(params: dict, images: jax.Array) -> dict[str, jax.Array]:
        return {"main": images.reshape(len(images), -1).astype(jnp.float32) / 255.0}

    return Extractor({"name": "pixels"}, {"main": num_pixels}, apply)
