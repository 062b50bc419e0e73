"""Bits per dimension of a whole image source, processed in batches over all devices."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.codecs.codec import PIXELS, Codec
from ddpm_jax.data import ImageSource
from ddpm_jax.data.batch import Batch
from ddpm_jax.data.condition import Condition, ConditionSpec
from ddpm_jax.data.eval_batches import EvalBatches
from ddpm_jax.diffusion.denoiser import DenoiserOf
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.rng import check_seed, encoding_keys, sample_keys, seed_keys
from ddpm_jax.diffusion.timestep_spacing import named_steps
from ddpm_jax.diffusion.variational_bound import prior_term, vlb_terms
from ddpm_jax.experiment.config_checks import fields_named
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.runtime.chunked_loop import chunks_of, jit_chunk
from ddpm_jax.runtime.devices import batch_sharded, replicated
from ddpm_jax.runtime.errors import arguments_named
from ddpm_jax.runtime.resume_file import ResumeFile

NAMES = ("terms", "x_0_mse", "eps_mse")


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the images, axis 0, and its standard error s/sqrt(N), NaN for one image; float64."""
    mean = np.asarray(values.mean(axis=0, dtype=np.float64))
    if len(values) < 2:
        return mean, np.full_like(mean, np.nan)
    return mean, np.asarray(values.std(axis=0, ddof=1, dtype=np.float64) / np.sqrt(len(values)))


@dataclass(frozen=True)
class Bits:
    """The bound of N images in bits/dim (Ho et al. 2020, equation 5), with one x_t per step."""

    terms: np.ndarray  # [N, T]: L_t; t = 0 is the decoder term
    prior: np.ndarray  # [N]
    x_0_mse: np.ndarray  # [N, T]
    eps_mse: np.ndarray  # [N, T]
    # [N]: the codec's term, if x_0 does not determine the image; x_0_mse is then not in pixels.
    reconstruction: np.ndarray | None = None

    @property
    def total(self) -> np.ndarray:
        """The bound of each image, [N]."""
        of_x_0 = self.terms.sum(axis=1, dtype=np.float64) + self.prior
        return of_x_0 if self.reconstruction is None else of_x_0 + self.reconstruction

    def summary(self) -> dict[str, tuple[float, float]]:
        """(mean, standard error) over the images in bits/dim: total = prior + kl + decoder (+ reconstruction)."""
        parts = {
            "total": self.total,
            "prior": self.prior,
            "kl": self.terms[:, 1:].sum(axis=1, dtype=np.float64),
            "decoder": self.terms[:, 0],
        }
        if self.reconstruction is not None:
            parts["reconstruction"] = self.reconstruction
        return {name: tuple(map(float, mean_and_error(values))) for name, values in parts.items()}

    def by_step(self) -> dict[str, np.ndarray]:
        """t, and the mean and the standard error of L_t and of the errors of x_0_hat and eps_hat, each [T]."""
        columns = {"t": np.arange(self.terms.shape[1])}
        for name in NAMES:
            columns[name], columns[f"{name}_standard_error"] = mean_and_error(getattr(self, name))
        return columns


class BitsPerDim:
    """measure(params) over the first images of a source.

    Args:
      denoiser_of: (params, condition) -> denoise_fn.
      key: image i draws its noise at step t from fold_in(fold_in(key, i), t).
      batch_size: images per batch; rounded up to a multiple of the number of devices.
      spec: the columns of the source that the network gets as its condition.
      codec: converts between images and x_0. The numbers are per dimension of the image, not of x_0.
    """

    def __init__(
        self,
        denoiser_of: DenoiserOf,
        process: Process,
        source: ImageSource,
        *,
        key: jax.Array,
        mesh: Mesh,
        batch_size: int,
        max_images: int = 0,
        spec: ConditionSpec | None = None,
        codec: Codec = PIXELS,
    ):
        self.batches = EvalBatches(source, mesh, batch_size=batch_size, max_images=max_images, spec=spec)
        self.num_steps = process.num_steps
        self._key = key
        self._chunks = chunks_of(self.num_steps)
        everywhere, batch = replicated(mesh), batch_sharded(mesh)
        self._codec = jax.device_put(codec, everywhere)
        num_dims = math.prod(source.image_shape)
        part = math.prod(codec.x_0_shape(source.image_shape)) / num_dims  # dimensions of x_0 per dimension of the image

        def begin(codec: Codec, data: Batch, ids: jax.Array, key: jax.Array):
            x_0 = codec.encode(data.image, encoding_keys(sample_keys(key, ids)))
            once = {"prior": part * prior_term(process.schedule, x_0)}
            lost = codec.reconstruction_term(data.image, x_0)
            return x_0, once if lost is None else once | {"reconstruction": lost / (num_dims * math.log(2))}

        def terms_of(
            params: dict, x_0: jax.Array, condition: Condition, ids: jax.Array, key: jax.Array, steps: jax.Array
        ):
            denoise_fn = denoiser_of(params, condition)
            measured = vlb_terms(
                process, denoise_fn, x_0=x_0, keys=sample_keys(key, ids), steps=steps,
                log_likelihood=codec.log_likelihood,
            )  # fmt: skip
            return measured | {"terms": part * measured["terms"]}

        self._begin = jax.jit(begin, in_shardings=(everywhere, batch, batch, everywhere), out_shardings=batch)
        self._once = jax.eval_shape(begin, self._codec, *self.batches.load(0), key)[1].keys()
        self._terms_of = jit_chunk(
            terms_of, mesh, (everywhere, batch, batch, batch, everywhere, everywhere), batch_axis=1
        )

    @property
    def num_calls(self) -> int:
        """The total number of steps of all batches, for a progress bar."""
        return len(self.batches) * self.num_steps

    def resume_point(self, prefix: str | None = None, facts: dict | None = None) -> ResumeFile:
        """The point where `measure` resumes: a file with the same facts, else the start."""
        shape = (self.batches.num_images, self.num_steps)
        arrays = {name: np.zeros(shape, np.float32) for name in NAMES}
        arrays |= {name: np.zeros(shape[0], np.float32) for name in self._once}
        return ResumeFile(prefix, (facts or {}) | self.batches.facts, arrays)

    def calls_done(self, point: ResumeFile) -> int:
        """The number of finished calls, of `num_calls`."""
        num_batches, num_chunks = divmod(point.num_done, len(self._chunks))
        return num_batches * self.num_steps + sum(map(len, self._chunks[:num_chunks]))

    def measure(
        self,
        params: dict,
        *,
        on_chunk: Callable[[int], None] = lambda num_new: None,
        point: ResumeFile | None = None,
    ) -> Bits:
        """The bound of every image.

        Args:
          on_chunk: called with the number of steps that were just finished for a batch.
          point: from `resume_point`; finished parts are not measured again.
        """
        point = point or self.resume_point()
        arrays, num_chunks = point.arrays, len(self._chunks)
        for index in range(point.num_done // num_chunks, len(self.batches)):
            data, ids = self.batches.load(index)
            rows = self.batches.rows(index)
            x_0, once = self._begin(self._codec, data, ids, self._key)
            for name, values in once.items():
                arrays[name][rows] = self.batches.gather(index, values)
            for steps in self._chunks[point.num_done % num_chunks :]:
                measured = self._terms_of(params, x_0, data.condition, ids, self._key, np.asarray(steps, np.int32))
                for name in NAMES:
                    arrays[name][rows, steps.start : steps.stop] = self.batches.gather(index, measured[name].T)
                point.advance()
                on_chunk(len(steps))
        return Bits(**arrays)


def build_bits_per_dim(
    run: TrainedRun, split: str, mesh: Mesh, *, seed: int, batch_size: int, max_images: int, respacing: str = ""
) -> BitsPerDim:
    """Bits/dim of a split, with the run's network and variance.

    Args:
      respacing: as for `timestep_spacing.named_steps`: the bound of the process with only these steps; "" for all T.
    """
    check_seed("--seed", seed)
    process = run.process
    if respacing:
        flag = {"name": "--bits_respacing", "num_sampler_steps": "--bits_respacing=N"}
        with arguments_named(flag.get):
            steps = named_steps(process.num_steps, respacing)[::-1]
        with fields_named("diffusion"):
            process = process.respaced(steps)
    return BitsPerDim(
        run.denoiser_of(process=process, dynamic_threshold=0.0),
        process,
        run.source(split),
        key=seed_keys(seed).eval,
        mesh=mesh,
        batch_size=batch_size,
        max_images=max_images,
        spec=run.condition,
        codec=run.codec,
    )
