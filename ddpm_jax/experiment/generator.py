"""Draws images from a trained network on all devices, in batches, with progress: the host side of sampling."""

import copy
import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from ddpm_jax.codecs.codec import PIXELS, Codec
from ddpm_jax.data.condition import Condition
from ddpm_jax.diffusion.denoiser import GuidedDenoiserOf
from ddpm_jax.diffusion.gradient_guidance import ClassifierGuidance
from ddpm_jax.diffusion.guidance import Guidance
from ddpm_jax.diffusion.rng import sample_keys, stage_key
from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.diffusion.samplers.sampling_loop import SamplerState, init_sampler_state, initial_noise, walk_rows
from ddpm_jax.experiment.edit import Edit
from ddpm_jax.experiment.finite_samples import check_finite
from ddpm_jax.experiment.sample_inputs import ClassifierOf, ConditionOf, GuidanceOf, InputShardings, no_condition
from ddpm_jax.experiment.table_chunks import chunks_of_table, first_step, step_after
from ddpm_jax.runtime.chunked_loop import jit_chunk
from ddpm_jax.runtime.compilation import release_unused_memory
from ddpm_jax.runtime.devices import AS_GIVEN, batch_sharded, replicated
from ddpm_jax.runtime.errors import check_between


class Generator:
    """Samples 0..N-1 of a network as images or other arrays; sample n depends on the seed and n alone.

    The table is processed in chunks (`table_chunks`), between which the host can look at x_t. All tables with
    chunks of a similar length share the same programs (one for whole steps, one for fractional): see `with_table`.

    Args:
      denoiser_of: (params, condition) -> denoise_fn; with guidance or a classifier (params, condition, guidance,
        classifier), of which one may be None.
      table: from `ddpm_jax.diffusion.samplers.coefficient_table`.
      image_shape: (H, W, C), or (*sizes, C) of other data.
      mesh: the batch is spread over its devices.
      batch_size: images per batch, a multiple of the number of devices.
      codec: converts x_0 to images.
      learns_variance: whether the network outputs values for the variance.
      self_conditioning: whether each network call sees the x_0_hat of the call before.
      edit: edits samples, given by number; None for none.
      condition_of: numbers of samples -> their condition, [N, ...] each.
      given_of: the same without derived entries; None: there are none.
      guidance_of: numbers of samples -> their guidance; None for none.
      classifier_of: numbers of samples -> the guidance of a classifier; None for none.
      shifts_mean: whether the denoiser of a classifier shifts the mean of the steps, for tables with `c_shift`.
      num_classes: how many classes the samples have, in turn; 0 for none.
      other_networks: what a report says of the other networks that guide the samples, by setting.
    """

    def __init__(
        self,
        denoiser_of: GuidedDenoiserOf,
        table: SamplerTable,
        *,
        image_shape: tuple[int, ...],
        mesh: Mesh,
        batch_size: int,
        codec: Codec = PIXELS,
        learns_variance: bool = False,
        self_conditioning: bool = False,
        edit: Edit | None = None,
        condition_of: ConditionOf = no_condition,
        given_of: ConditionOf | None = None,
        guidance_of: GuidanceOf = lambda ids: None,
        classifier_of: ClassifierOf = lambda ids: None,
        shifts_mean: bool = False,
        num_classes: int = 0,
        other_networks: Mapping[str, object] | None = None,
    ):
        self.num_classes, self.other_networks = num_classes, dict(other_networks or {})
        self._allow_nonfinite = False
        self._mesh, self._batch_size, self.condition_of = mesh, batch_size, condition_of
        self._given_of = condition_of if given_of is None else given_of
        self.guidance_of, self.classifier_of = guidance_of, classifier_of
        self._learns_variance, self._shifts_mean, self._edit = learns_variance, shifts_mean, edit
        guidance = guidance_of(np.arange(1))
        self._renoises = guidance is not None and guidance.renoises
        self._take_table(table)
        batch, everywhere, x_0_shape = batch_sharded(mesh), replicated(mesh), codec.x_0_shape(image_shape)

        def begin(key: jax.Array, ids: jax.Array, edited: PyTree) -> tuple[SamplerState, jax.Array]:
            keys = sample_keys(key, ids)
            x_T = initial_noise(keys, x_0_shape)
            if edit is not None and edit.start is not None:
                x_T = edit.start(edited, x_T)
            return init_sampler_state(self._chunks[0].rows, x_T, self_conditioning=self_conditioning), keys

        def advance(
            params: dict,
            rows: SamplerTable,
            num_rows: jax.Array,
            state: SamplerState,
            keys: jax.Array,
            condition: Condition,
            guidance: Guidance | None,
            classifier: ClassifierGuidance | None,
            edited: PyTree,
        ) -> SamplerState:
            guided = () if guidance is None and classifier is None else (guidance, classifier)
            made = {} if edit is None or edit.project is None else {"project_fn": edit.project(edited)}
            denoise_fn = denoiser_of(params, condition, *guided, **made)
            if edit is not None and edit.wrap is not None:
                denoise_fn = edit.wrap(edited, denoise_fn)
            edit_fn = None if edit is None or edit.make is None else edit.make(edited)
            return walk_rows(denoise_fn, rows, num_rows, state, keys, edit_fn=edit_fn)

        self._begin = jax.jit(begin, in_shardings=(everywhere, batch, batch), out_shardings=batch)
        self._shardings = InputShardings.of(mesh, guidance, classifier_of(np.arange(1)))
        _, guided, classified = self._shardings
        self._advance = jit_chunk(
            advance, mesh, (AS_GIVEN, everywhere, everywhere, batch, batch, batch, guided, classified, batch), donate=3
        )
        # Images are replicated on a mesh of several hosts, so that each host can write them.
        decode = jax.jit(lambda codec, x_0: codec.decode(x_0), out_shardings=everywhere)
        self._images_of = functools.partial(decode, jax.device_put(codec, everywhere))

    def _take_table(self, table: SamplerTable) -> None:
        self.num_rows = table.num_calls
        self._chunks = chunks_of_table(
            table,
            learns_variance=self._learns_variance,
            shifts_mean=self._shifts_mean,
            renoises=self._renoises,
        )

    def with_table(self, table: SamplerTable) -> "Generator":
        """A generator with another sampler or number of steps, which shares the compiled programs.

        Tables that rise, such as of `repaint_table`, have a program of their own.
        """
        other = copy.copy(self)
        other._take_table(table)
        return other

    def with_samples(
        self, condition_of: ConditionOf, guidance_of: GuidanceOf, classifier_of: ClassifierOf = lambda ids: None
    ) -> "Generator":
        """A generator of samples with another condition or guidance, which shares the compiled programs.

        Guidance needs a generator that was made with guidance, because it is another program; a classifier likewise.
        """
        other = copy.copy(self)
        other.condition_of, other.guidance_of, other.classifier_of = condition_of, guidance_of, classifier_of
        other._given_of = condition_of
        return other

    def labels_of(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """What samples were asked to be: their condition without derived entries, or the label that a classifier guides
        them to."""
        classifier = self.classifier_of(ids)
        return ({} if classifier is None else {"label": np.asarray(classifier.label)}) | self._given_of(ids)

    def allowing_nonfinite(self) -> "Generator":
        """A generator that shares the programs and decodes NaN, too: for previews, which must not end a run."""
        other = copy.copy(self)
        other._allow_nonfinite = True
        return other

    def num_batches(self, num_samples: int) -> int:
        """The number of batches for `num_samples` images."""
        return -(-num_samples // self.batch_of(num_samples))

    def generate(
        self,
        params: dict,
        *,
        seed: int,
        num_samples: int,
        on_chunk: Callable[[int], None] = lambda num_new: None,
        watch: Callable[[int, int, np.ndarray], None] | None = None,
    ) -> np.ndarray:
        """uint8 [num_samples, H, W, C]; of other data [num_samples, *image_shape] in the dtype of the codec.

        Args:
          on_chunk: called after each chunk of a batch with the number of sampler steps in it.
          watch: called with (first sample of the batch, t, decoded x_t, [B, H, W, C]) at the start of each
            batch and after each chunk; t = -1 means x_0.

        Raises:
          UserError: num_samples below 1, or samples that are not finite.
        """
        check_between("num_samples", num_samples, 1)
        firsts = range(0, num_samples, self.batch_of(num_samples))
        images = [
            self.draw(params, seed=seed, first=first, num_samples=num_samples, on_chunk=on_chunk, watch=watch)
            for first in firsts
        ]
        return np.concatenate(images)

    def draw(
        self,
        params: dict,
        *,
        seed: int,
        first: int,
        num_samples: int,
        on_chunk: Callable[[int], None] = lambda num_new: None,
        watch: Callable[[int, int, np.ndarray], None] | None = None,
    ) -> np.ndarray:
        """The batch of `generate` that begins with sample `first`, a multiple of `batch_of(num_samples)`."""
        numbers = np.arange(first, first + self.batch_of(num_samples), dtype=np.int32)
        num_used = num_samples - first
        x_0 = self.draw_x_0(
            params, seed=seed, numbers=numbers, num_used=num_used, is_first=not first, on_chunk=on_chunk, watch=watch
        )
        return np.asarray(self._images_of(x_0))[:num_used]

    def draw_x_0(
        self,
        params: dict,
        *,
        seed: int,
        numbers: np.ndarray,
        num_used: int,
        stage: int = 0,
        is_first: bool = False,
        on_chunk: Callable[[int], None] = lambda num_new: None,
        watch: Callable[[int, int, np.ndarray], None] | None = None,
    ) -> jax.Array:
        """x_0 of any samples, float32 [batch, *D] on the devices; `images_of` decodes it.

        Args:
          numbers: of the samples, int32, as many as the batch has; all batches of one size share the programs.
          num_used: the first so many are checked to be finite; the others fill the batch.
          stage: of a cascade, 0 for the first: each has noise of its own.
          is_first: it is the first batch, whose first call compiles: memory of the compiler is given back after it.
        """
        first = int(numbers[0])
        ids, condition, guidance, classifier = self._shardings.placed(
            numbers, self.condition_of(numbers), self.guidance_of(numbers), self.classifier_of(numbers)
        )
        edited = jax.device_put(self._edit.of_samples(numbers), self._shardings.batch) if self._edit else ()
        state, keys = self._begin(stage_key(seed, stage), ids, edited)
        if watch:
            watch(first, first_step(self._chunks), np.asarray(self._images_of(state.x_t)))
        for number, (rows, num_rows) in enumerate(self._chunks):
            state = self._advance(
                params, rows, np.int32(num_rows), state, keys, condition, guidance, classifier, edited
            )
            if is_first and number == 0:
                release_unused_memory()
            state = jax.block_until_ready(state)
            if watch:
                watch(first, step_after(self._chunks, number), np.asarray(self._images_of(state.x_t)))
            on_chunk(num_rows)
        if not self._allow_nonfinite:
            check_finite(state.x_t, numbers, num_used)
        return state.x_t

    def images_of(self, x_0: jax.Array) -> np.ndarray:
        """The images that the codec decodes from x_0."""
        return np.asarray(self._images_of(x_0))

    def batch_of(self, num_samples: int) -> int:
        """The batch size for `num_samples`: if they are few, the next multiple of the number of devices."""
        return min(self._batch_size, -(-num_samples // self._mesh.size) * self._mesh.size)
