"""Sample metrics of a run, or of any images, versus real images: from images to an entry of a report."""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.evaluation import feature_classifier, texture
from ddpm_jax.evaluation.feature_extractors import (
    Extractor,
    classifier_extractor,
    inception_extractor,
    pixels_extractor,
)
from ddpm_jax.evaluation.generated_samples import GeneratedSamples
from ddpm_jax.evaluation.image_sets import ImageSet, image_set, open_images
from ddpm_jax.evaluation.metric_settings import SampleSettings
from ddpm_jax.evaluation.metrics_from_features import check_counts, sample_numbers, warning_of
from ddpm_jax.experiment.trained_run import DATA_FIELDS, TrainedRun
from ddpm_jax.runtime.atomic_files import check_folder
from ddpm_jax.runtime.devices import make_mesh
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.runtime.progress import ProgressBar
from ddpm_jax.runtime.resumable_arrays import ResumableArrays
from ddpm_jax.runtime.resume_file import fingerprint

MAX_SAMPLES = 50_000  # default number of samples, as in papers
DEFAULT_BATCH_SIZE = 64  # of the extractor


class SampleMetrics:
    """Builds and checks everything except the extractor before an image is drawn.

    Args:
      settings: the user's settings.
      samples: an image set, or the samples of a run, which are not drawn yet.
      reference: real images.
      out: the folder for the results, to check that it can be written.

    Raises:
      UserError: image sets or an extractor that do not fit, or a folder that cannot be written.
    """

    def __init__(
        self,
        settings: SampleSettings,
        samples: ImageSet | GeneratedSamples,
        reference: ImageSet,
        *,
        out: str | None = None,
    ):
        self._settings, self._samples, self._reference = settings, samples, reference
        self._is_first, self._bar = jax.process_index() == 0, None
        if self._is_first:
            check_folder("--cache", settings.cache_folder)
            if out is not None:
                check_folder("--out", out)
        self._mesh = make_mesh()
        size = settings.batch_size or DEFAULT_BATCH_SIZE
        self._batch_size = -(-size // self._mesh.size) * self._mesh.size
        self._check_shapes(settings.extractor_name)
        self._num_classes = 0
        if settings.extractor_name == "classifier":
            name = f"--reference={reference.facts['name']}"
            self._num_classes = feature_classifier.check_labels(reference.source, name)
        has_logits = settings.extractor_name != "pixels"
        if problem := check_counts(samples.num_images, reference.num_images, has_logits):
            raise UserError(f"the images {problem}")
        self.warning = warning_of(settings.extractor_name, samples.num_images, reference.num_images)

    def _check_shapes(self, extractor: str) -> None:
        shapes = [tuple(images.image_shape) for images in (self._samples, self._reference)]
        if extractor == "inception":
            for shape in shapes:
                if shape[2] not in (1, 3):
                    raise UserError(f"Inception takes grey or colour images; got {shape[2]} channels")
        elif shapes[0] != shapes[1]:
            raise UserError(
                f"--extractor={extractor} compares images of equal shape; the samples have {shapes[0]} and the "
                f"reference {shapes[1]}: give --image_size=H,W, or files with equal channels"
            )

    def measure(self) -> dict[str, Any] | None:
        """{"protocol", "numbers", "warning"} on the first process, None on the others."""
        extractor = self._build_extractor()
        environment = {"num_devices": self._mesh.size, "jax": jax.__version__, "backend": jax.default_backend()}
        samples, folder = self._samples, self._settings.cache_folder
        reference = self._features(extractor, self._reference, folder, environment, "real images")
        if isinstance(samples, GeneratedSamples):
            samples = samples.draw(self._progress, environment)
            folder = self._samples.images_folder
        found = self._features(extractor, samples, folder, environment, "samples")
        if not self._is_first:
            return None
        numbers = sample_numbers(
            found.arrays,
            reference.arrays,
            same_shape=tuple(samples.image_shape) == tuple(self._reference.image_shape),
            progress=lambda what, total: self._progress(what, total, 0, "block")
        )
        self._close_bar()
        protocol = {"extractor": extractor.facts, "samples": samples.facts, "reference": self._reference.facts}
        return {"protocol": protocol, "numbers": numbers, "warning": self.warning}

    def _features(
        self, extractor: Extractor, images: ImageSet, folder: str, environment: dict, what: str
    ) -> ResumableArrays:
        widths = extractor.widths | {"texture": len(texture.COLUMNS)}
        facts = {"pictures": images.facts, "extractor": extractor.facts, "batch_size": self._batch_size}
        facts["arrays"] = sorted(widths)
        rows = {name: ((width,), np.float32) for name, width in widths.items()}
        prefix = os.path.join(folder, extractor.name)
        files = ResumableArrays(prefix, facts | environment, rows, images.num_images)
        if not files.complete:
            extract = extractor.on_devices(self._mesh, self._batch_size)
            description = f"{extractor.name} features of {what}"
            count = self._progress(description, images.num_images, files.num_done, "image")

            def make(first: int) -> dict[str, np.ndarray]:
                if not self._is_first:
                    return extract(None, images.image_shape)
                batch = images.load(first, self._batch_size)
                return extract(batch, images.image_shape) | {"texture": texture.texture_of(batch)}

            files.fill(make, on_rows=count)
            self._close_bar()
        return files

    def _build_extractor(self) -> Extractor:
        settings = self._settings
        if settings.extractor_name == "inception":
            return inception_extractor(settings.inception_weights, settings.resize or "tf_bilinear")
        if settings.extractor_name == "pixels":
            return pixels_extractor(self._reference.image_shape)
        source = self._reference.source
        whole = image_set("--reference", source, self._reference.identity)
        name = fingerprint(str(whole.facts), np.asarray(source.labels), feature_classifier.RECIPE)
        path = os.path.join(settings.cache_folder, f"classifier_{name}.npz")
        trained = feature_classifier.load_classifier(path)
        if trained is None:
            count = self._progress("training the classifier", feature_classifier.NUM_STEPS, 0)
            trained = feature_classifier.train_classifier(source, self._num_classes, on_step=lambda: count(1))
            self._close_bar()
            if self._is_first:
                feature_classifier.save_classifier(path, trained)
        facts = {"name": whole.facts["name"], "num_images": whole.num_images}
        return classifier_extractor(trained, facts)

    def _progress(self, description: str, total: int, done: int, unit: str = "step") -> Callable[[int], None]:
        """A progress bar, which replaces the previous one."""
        self._close_bar()
        self._bar = ProgressBar(total, description, unit, initial=done, enabled=self._is_first)
        if done:
            self._bar.write(f"{description}: resuming from {done} of {total}")
        return self._bar.update

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def sets_of_run(
    settings: SampleSettings, run: TrainedRun, *, weights: str, mesh: Mesh, folder: str
) -> tuple[GeneratedSamples, ImageSet]:
    """(the samples of a run, to be drawn into `folder`; the real images, by default its training images)."""
    shape = run.image_shape
    if settings.image_size not in (None, shape[:2]):
        raise UserError(f"--image_size must be that of the run's images, {shape[0]},{shape[1]}, or be left out")
    if settings.reference is None:
        if settings.data_path:  # the files were moved, or are elsewhere on this machine
            run = run.with_fields([f"data.path={settings.data_path}"], DATA_FIELDS)
        try:
            source = run.source()
        except UserError as error:
            raise UserError(f"{error}; or give the real images by --reference or --data_path") from error
        reference = image_set("the training data", source, run.training_data, settings.num_reference)
    else:
        reference = _open_reference(settings, shape)
    num_samples = settings.num_samples or min(reference.num_images, MAX_SAMPLES)
    samples = GeneratedSamples(
        run, weights=weights, num_samples=num_samples, seed=settings.seed, mesh=mesh, folder=folder
    )
    return samples, reference


def sets_of_files(settings: SampleSettings, given: str) -> tuple[ImageSet, ImageSet]:
    """(the samples in a file or folder, the real images)."""
    if settings.reference is None:
        raise UserError("--samples needs real images to compare with: give --reference, such as digits:train")
    samples = open_images(
        "--samples",
        given,
        image_size=settings.image_size,
        data_path=settings.data_path,
        num_images=settings.num_samples,
    )
    return samples, _open_reference(settings, samples.image_shape)


def _open_reference(settings: SampleSettings, shape: tuple[int, int, int]) -> ImageSet:
    return open_images(
        "--reference",
        settings.reference,
        image_size=settings.image_size,
        shape_of_others=shape,
        data_path=settings.data_path,
        num_images=settings.num_reference,
    )
