"""What a generator may change about the samples that it draws: their start, the denoiser, and x_s after each row."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from ddpm_jax.diffusion.denoiser import DenoiseFn, ProjectFn
from ddpm_jax.diffusion.samplers.sampling_loop import EditFn


class Edit(NamedTuple):
    """An edit of samples with its arrays, such as known images and masks, which are arguments of the programs.

    Each function gets the arrays of a batch, by whatever names `of_samples` gives them; None: nothing is changed there.
    """

    of_samples: Callable[[np.ndarray], PyTree]  # numbers of samples, int [N] -> arrays, [N, ...] each
    make: Callable[[PyTree], EditFn] | None = None  # -> edit_fn; see `sampling_loop`
    project: Callable[[PyTree], ProjectFn] | None = None  # -> project_fn; see `make_denoiser`
    start: Callable[[PyTree, jax.Array], jax.Array] | None = None  # (arrays, noise N(0, I)) -> x at the first step
    wrap: Callable[[PyTree, DenoiseFn], DenoiseFn] | None = None  # -> denoise_fn, for DPS
