"""Bits per dimension of a whole source of pictures, streamed in batches over all devices."""

from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from ddpm_jax import factories
from ddpm_jax.data import ImageSource
from ddpm_jax.denoiser import VARIANCES, make_denoiser
from ddpm_jax.devices import batch_sharded, compiler_options, put_batch, replicated
from ddpm_jax.errors import check_one_of
from ddpm_jax.keys import check_seed, sample_keys, seed_keys
from ddpm_jax.likelihood import prior_term, vlb_terms
from ddpm_jax.pixel_scale import to_model_scale
from ddpm_jax.schedules import Schedule

MAX_CHUNKS = 50
NAMES = ("terms", "x_0_mse", "eps_mse")


@dataclass(frozen=True)
class Bits:
    """The bound of N pictures in bits/dim (Ho et al. 2020, equation 5), one x_t a step, float64."""

    terms: np.ndarray  # [N, T]: L_t; t = 0 is the decoder's
    prior: np.ndarray  # [N]
    x_0_mse: np.ndarray  # [T], mean over the pictures
    eps_mse: np.ndarray  # [T]

    @property
    def total(self) -> np.ndarray:
        """The bound of each picture, [N]."""
        return self.terms.sum(axis=1) + self.prior

    def summary(self) -> dict[str, float]:
        """Means over the pictures in bits/dim, and the standard error of the mean total."""
        decoder = self.terms[:, 0]
        return {
            "total": float(self.total.mean()),
            "standard_error": float(self.total.std(ddof=1) / np.sqrt(len(self.total))) if len(self.total) > 1 else 0.0,
            "decoder": float(decoder.mean()),
            "kl": float((self.terms.sum(axis=1) - decoder).mean()),
            "prior": float(self.prior.mean()),
        }


class BitsPerDim:
    """measure(params) over the first pictures of a source.

    Args:
      model: called as model.apply({"params": params}, x_t, t).
      variance: of p, one of `denoiser.VARIANCES`.
      key: image i draws its noise at step t from fold_in(fold_in(key, i), t).
      batch_size: pictures at a time; rounded up to a multiple of the number of devices.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        source: ImageSource,
        *,
        prediction: str,
        variance: str,
        clip_x_0: bool,
        key: jax.Array,
        mesh: Mesh,
        batch_size: int,
        max_images: int = 0,
    ):
        self.num_images = min(len(source), max_images) if max_images else len(source)
        self.num_steps = schedule.num_steps
        self._source, self._key, self._mesh = source, key, mesh
        self._batch_size = -(-min(batch_size, self.num_images) // mesh.size) * mesh.size
        # Chunks of equal length, or of two lengths, so that one or two compilations serve all.
        steps = np.arange(self.num_steps, dtype=np.int32)
        self._chunks = np.array_split(steps, min(MAX_CHUNKS, self.num_steps))

        def terms_of(params: dict, images: jax.Array, ids: jax.Array, key: jax.Array, steps: jax.Array):
            def model_fn(x_t: jax.Array, t: jax.Array) -> jax.Array:
                return model.apply({"params": params}, x_t, t)

            denoise_fn = make_denoiser(
                schedule, model_fn, prediction=prediction, variance=variance, clip_x_0=clip_x_0
            )
            return vlb_terms(
                schedule,
                denoise_fn,
                x_0=to_model_scale(images),
                keys=sample_keys(key, ids),
                steps=steps,
                variance=variance,
            )

        everywhere, batch = replicated(mesh), batch_sharded(mesh)
        self._terms_of = jax.jit(
            terms_of,
            in_shardings=(everywhere, batch, batch, everywhere, everywhere),
            out_shardings=NamedSharding(mesh, PartitionSpec(None, "data")),
            compiler_options=compiler_options(),
        )
        self._prior_of = jax.jit(
            lambda images: prior_term(schedule, to_model_scale(images)), in_shardings=batch, out_shardings=batch
        )

    @property
    def num_calls(self) -> int:
        """Steps of all batches, for a progress bar."""
        return -(-self.num_images // self._batch_size) * self.num_steps

    def measure(self, params: dict, on_chunk: Callable[[int], None] = lambda num_new: None) -> Bits:
        """The bound of every picture.

        Args:
          on_chunk: called with the number of steps that were just done for a batch.
        """
        batches = []
        for start in range(0, self.num_images, self._batch_size):
            # The last batch is filled up with repeats, which are dropped below.
            ids = np.arange(start, start + self._batch_size, dtype=np.int32)
            share = np.split(ids, jax.process_count())[jax.process_index()]
            images = put_batch(self._source.load(np.minimum(share, self.num_images - 1)), self._mesh)
            chunks = []
            for steps in self._chunks:
                terms = self._terms_of(params, images, put_batch(share, self._mesh), self._key, jnp.asarray(steps))
                chunks.append({name: _gather(terms[name].T) for name in NAMES})  # [B, S]
                on_chunk(len(steps))
            batch = {name: np.concatenate([chunk[name] for chunk in chunks], axis=1) for name in NAMES}
            batches.append(batch | {"prior": _gather(self._prior_of(images))})
        whole = {
            name: np.concatenate([batch[name] for batch in batches])[: self.num_images].astype(np.float64)
            for name in (*NAMES, "prior")
        }
        return Bits(whole["terms"], whole["prior"], whole["x_0_mse"].mean(axis=0), whole["eps_mse"].mean(axis=0))


def _gather(array: jax.Array) -> np.ndarray:
    """The global array on this host."""
    if jax.process_count() > 1:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def build_bits_per_dim(
    config: ConfigDict, split: str, mesh: Mesh, *, seed: int, batch_size: int, max_images: int
) -> BitsPerDim:
    """Bits/dim of a split under the config's network and variance."""
    check_seed("--seed", seed)
    check_one_of("diffusion.variance", config.diffusion.variance, VARIANCES)
    return BitsPerDim(
        factories.build_model(config),
        factories.build_schedule(config),
        factories.build_source(config, split),
        prediction=config.diffusion.prediction,
        variance=config.diffusion.variance,
        clip_x_0=config.sample.clip_x_0,
        key=seed_keys(seed).eval,
        mesh=mesh,
        batch_size=batch_size,
        max_images=max_images,
    )
