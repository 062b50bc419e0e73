"""The network's prediction of x_0 along the way: for held-out images (decoding) and for samples (generation).

Ho et al. 2020, section 4.3: the receiver's x_0_hat at decreasing t, and figure 6.
"""


import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.codecs.codec import Codec
from ddpm_jax.data.batch import Batch
from ddpm_jax.data.condition import Condition
from ddpm_jax.diffusion.denoiser import DenoiserOf, GuidedDenoiserOf
from ddpm_jax.diffusion.forward_process import q_sample
from ddpm_jax.diffusion.guidance import Guidance
from ddpm_jax.diffusion.rng import encoding_keys, sample_keys, sample_noise, seed_keys
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.sampling_loop import (
    SamplerState,
    denoise_state,
    init_sampler_state,
    initial_noise,
    scan_rows,
)
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.experiment.sample_inputs import ConditionOf, GuidanceOf, no_condition
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.runtime.compilation import compiler_options
from ddpm_jax.runtime.devices import replicated


class Progressive:
    """x_0_hat as images. Every device holds all images, because there are few.

    Args:
      codec: converts between images and x_0.
      decoder_of, generator_of: (params, condition) -> denoise_fn. Decoding shows what was measured, with clipping only;
        generation may use a dynamic threshold.
      table: from `ddpm_jax.diffusion.samplers.coefficient_table`, for generation.
      condition_of: numbers of samples -> their condition; see `Generator`.
      guidance_of: numbers of samples -> their guidance; see `Generator`.
      self_conditioning: whether each call in generation sees the x_0_hat of the call before; decoding shows the network
        without, as it was measured.
    """

    def __init__(
        self,
        codec: Codec,
        decoder_of: DenoiserOf,
        generator_of: GuidedDenoiserOf,
        schedule: Schedule,
        table: SamplerTable,
        *,
        image_shape: tuple[int, int, int],
        mesh: Mesh,
        condition_of: ConditionOf = no_condition,
        guidance_of: GuidanceOf = lambda ids: None,
        self_conditioning: bool = False,
    ):
        self._self_conditioning = self_conditioning
        self._schedule, self._table, self._x_0_shape = schedule, table, codec.x_0_shape(image_shape)
        self._condition_of, self._guidance_of = condition_of, guidance_of

        self._codec = codec

        def decode(codec: Codec, params: dict, data: Batch, key: jax.Array, steps: jax.Array) -> jax.Array:
            keys = sample_keys(key, jnp.arange(len(data.image)))
            x_0 = codec.encode(data.image, encoding_keys(keys))
            denoise_fn = decoder_of(params, data.condition)

            def at_step(step: jax.Array) -> jax.Array:
                t = jnp.full(x_0.shape[:1], step)
                x_t = q_sample(schedule, x_0=x_0, t=t, eps=sample_noise(keys, step, x_0.shape[1:]))
                return codec.decode(denoise_fn(x_t, t).x_0_hat)

            return jax.lax.map(at_step, steps)

        def generate(
            codec: Codec,
            params: dict,
            rows: SamplerTable,
            state: SamplerState,
            keys: jax.Array,
            condition: Condition,
            guidance: Guidance | None,
        ) -> tuple[jax.Array, SamplerState]:
            guided = () if guidance is None else (guidance,)
            denoise_fn = generator_of(params, condition, *guided)
            estimate = denoise_state(denoise_fn, state, rows.t[0]).x_0_hat
            return codec.decode(estimate), scan_rows(denoise_fn, rows, state, keys)

        options = {"out_shardings": replicated(mesh), "compiler_options": compiler_options()}
        self._decode = jax.jit(decode, **options)
        self._generate = jax.jit(generate, **options)

    def decode(
        self, params: dict, data: Batch, *, seed: int, num_moments: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(decreasing t [K], x_0_hat(x_t) as uint8 [K, N, H, W, C]), with x_t as in the measurement of the bound.

        Args:
          data: the first N images of the source, and their condition.
        """
        t = np.unique(np.rint(np.linspace(0, self._schedule.num_steps - 1, num_moments)).astype(np.int32))[::-1]
        return t, np.asarray(self._decode(self._codec, params, data, seed_keys(seed).eval, t.copy()))

    def generate(
        self, params: dict, *, seed: int, num_samples: int, num_moments: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(decreasing t [K], x_0_hat(x_t) as uint8 [K, N, H, W, C]) on the way to samples 0..N-1 of the seed.

        The last t is -1, which means the finished sample.
        """
        num_rows = self._table.num_calls
        starts = np.unique(np.rint(np.linspace(0, num_rows, min(num_moments, num_rows) + 1)).astype(int))
        keys = sample_keys(seed_keys(seed).sample, jnp.arange(num_samples))
        ids = np.arange(num_samples)
        condition, guidance = self._condition_of(ids), self._guidance_of(ids)
        x_T = initial_noise(keys, self._x_0_shape)
        state = init_sampler_state(self._table, x_T, self_conditioning=self._self_conditioning)
        t, frames = [], []
        for start, stop in zip(starts[:-1], starts[1:], strict=True):
            rows = self._table.rows(int(start), int(stop))
            estimate, state = self._generate(self._codec, params, rows, state, keys, condition, guidance)
            t.append(float(rows.t[0]))
            frames.append(np.asarray(estimate))
        return np.array([*t, -1]), np.stack([*frames, np.asarray(self._codec.decode(state.x_t))])


def build_progressive(run: TrainedRun, mesh: Mesh) -> Progressive:
    """A `Progressive` for the run's network and sampler."""
    return Progressive(
        run.codec,
        run.denoiser_of(dynamic_threshold=0.0),
        run.denoiser_of(weak_network=run.weak_network),
        run.process.schedule,
        run.sampler_table,
        image_shape=run.image_shape,
        mesh=mesh,
        condition_of=run.condition_of,
        guidance_of=run.guidance_of,
        self_conditioning=run.self_conditioning,
    )


def step_labels(t: np.ndarray) -> list[str]:
    """`t=499`, and `t=12.5` for a fractional step."""
    return [f"t={step:.0f}" if step == round(step) else f"t={step:.1f}" for step in t.tolist()]
