"""Bits per dimension of the probability flow ODE for a whole image source, on all devices."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.codecs.codec import PIXELS, Codec
from ddpm_jax.data import ImageSource
from ddpm_jax.data.batch import Batch
from ddpm_jax.data.condition import ConditionSpec
from ddpm_jax.data.eval_batches import EvalBatches
from ddpm_jax.diffusion.denoiser import DenoiserOf
from ddpm_jax.diffusion.ode_likelihood import (
    FlowState,
    begin_flow,
    bits_of_density,
    check_fractional,
    dequantise,
    directions,
    end_flow,
    flow_on,
    ode_grid,
)
from ddpm_jax.diffusion.rng import check_seed, encoding_keys, sample_keys, seed_keys
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.experiment.config_checks import fields_named
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.runtime.chunked_loop import chunks_of, jit_chunk
from ddpm_jax.runtime.devices import batch_sharded, replicated
from ddpm_jax.runtime.resume_file import ResumeFile


class OdeBits:
    """measure(params) over the first images of a source; see `diffusion.ode_likelihood.ode_bits_per_dim`.

    Args:
      denoiser_of: (params, condition) -> denoise_fn, without a clip; called with t float32.
      key: image i is dequantised and probed with keys from fold_in(key, i).
      num_ode_steps: Runge-Kutta steps, four network calls each.
      num_probes: random probes of the divergence; 0: exact.
      spec: the columns of the source that the network gets as its condition.
      codec: converts between images and x_0. The numbers are per dimension of the image, not of x_0.
    """

    def __init__(
        self,
        denoiser_of: DenoiserOf,
        schedule: Schedule,
        source: ImageSource,
        *,
        key: jax.Array,
        mesh: Mesh,
        batch_size: int,
        num_ode_steps: int,
        num_probes: int,
        max_images: int = 0,
        spec: ConditionSpec | None = None,
        codec: Codec = PIXELS,
    ):
        self.batches = EvalBatches(source, mesh, batch_size=batch_size, max_images=max_images, spec=spec)
        self.num_ode_steps, self.num_probes = num_ode_steps, num_probes
        self._key = key
        grid = ode_grid(schedule, num_ode_steps).astype(np.float32)
        self._chunks = [grid[2 * chunk.start : 2 * chunk.stop + 1] for chunk in chunks_of(num_ode_steps)]
        everywhere, batch = replicated(mesh), batch_sharded(mesh)
        self._codec = jax.device_put(codec, everywhere)
        shape, num_dims = codec.x_0_shape(source.image_shape), math.prod(source.image_shape)
        part = math.prod(shape) / num_dims  # dimensions of x_0 per dimension of the image

        def begin(codec: Codec, data: Batch, ids: jax.Array, key: jax.Array) -> tuple[FlowState, jax.Array | float]:
            keys = sample_keys(key, ids)
            x_0 = codec.encode(data.image, encoding_keys(keys))
            lost = codec.reconstruction_term(data.image, x_0)
            lost = jnp.zeros(len(x_0), jnp.float32) if lost is None else lost / (num_dims * math.log(2))
            return begin_flow(schedule, dequantise(x_0, keys, codec.bin_width)), lost

        def advance(
            params: dict, state: FlowState, data: Batch, ids: jax.Array, key: jax.Array, t: jax.Array
        ) -> FlowState:
            denoise_fn = denoiser_of(params, data.condition)
            num_directions, direction_fn = directions(sample_keys(key, ids), shape, num_probes)
            return flow_on(schedule, denoise_fn, state, t, num_directions=num_directions, direction_fn=direction_fn)

        self._begin = jax.jit(begin, in_shardings=(everywhere, batch, batch, everywhere), out_shardings=batch)
        self._advance = jit_chunk(
            advance, mesh, (everywhere, batch, batch, batch, everywhere, everywhere), donate=1
        )
        self._end = jax.jit(
            lambda state, lost: (
                part * bits_of_density(end_flow(schedule, state), math.prod(shape), codec.bin_width) + lost
            ),
            in_shardings=batch,
            out_shardings=batch,
        )

    @property
    def num_calls(self) -> int:
        """The total number of Runge-Kutta steps of all batches, for a progress bar."""
        return len(self.batches) * self.num_ode_steps

    def resume_point(self, prefix: str | None = None, facts: dict | None = None) -> ResumeFile:
        """The batch where `measure` resumes: from a file with the same facts, else the start."""
        own = {"num_ode_steps": self.num_ode_steps, "num_probes": self.num_probes}
        arrays = {"bits": np.zeros(self.batches.num_images, np.float32)}
        return ResumeFile(prefix, (facts or {}) | self.batches.facts | own, arrays)

    def calls_done(self, point: ResumeFile) -> int:
        """The number of finished calls, of `num_calls`."""
        return point.num_done * self.num_ode_steps

    def measure(
        self,
        params: dict,
        *,
        on_chunk: Callable[[int], None] = lambda num_new: None,
        point: ResumeFile | None = None,
    ) -> np.ndarray:
        """Bits/dim of every image, [N].

        Args:
          on_chunk: called with the number of steps that were just finished for a batch.
          point: from `resume_point`; finished parts are not measured again.
        """
        point = point or self.resume_point()
        for index in range(point.num_done, len(self.batches)):
            data, ids = self.batches.load(index)
            state, lost = self._begin(self._codec, data, ids, self._key)
            for t in self._chunks:
                t_of_chunk = jnp.asarray(t, jnp.float32)
                state = jax.block_until_ready(self._advance(params, state, data, ids, self._key, t_of_chunk))
                on_chunk(len(t) // 2)
            point.arrays["bits"][self.batches.rows(index)] = self.batches.gather(index, self._end(state, lost))
            point.advance()
        return point.arrays["bits"]


def build_ode_bits(
    run: TrainedRun,
    split: str,
    mesh: Mesh,
    *,
    seed: int,
    batch_size: int,
    max_images: int,
    num_ode_steps: int,
    num_probes: int,
) -> OdeBits:
    """Bits/dim of the probability flow ODE for a split, with the run's network."""
    check_seed("--seed", seed)
    with fields_named("diffusion", {"leave out the flow": "leave out --ode"}):
        check_fractional(run.process)
    return OdeBits(
        run.denoiser_of(clip_x_0=False, dynamic_threshold=0.0),
        run.process.schedule,
        run.source(split),
        key=seed_keys(seed).eval,
        mesh=mesh,
        batch_size=batch_size,
        num_ode_steps=num_ode_steps,
        num_probes=num_probes,
        max_images=max_images,
        spec=run.condition,
        codec=run.codec,
    )
