"""The interface of one task of an image-conditional model: what the network is shown of an image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from ddpm_jax.runtime.errors import UserError, arg


class Shown(NamedTuple):
    """What is shown of one image."""

    image: Float[Array, "H W K"]  # in the range of x_0, [-1, 1], but for noise; 0 where nothing is known
    known: Float[Array, "H W 1"] | None = None  # 1 = known, 0 = hole; None: the task has no hole
    level: Int[Array, ""] | None = None  # of the noise in the image, which the network is told; None: there is none


@dataclass(frozen=True)
class ImageTask:
    """A task on single images; see `tasks.make_image_task`. Take `jax.vmap(task.make)` for a batch.

    Attributes:
      name: one of `tasks.TASKS`.
      has_hole: whether part of the image is not shown at all.
      num_channels: channels of x_0 -> channels K of what is shown. Raises UserError for images that the task refuses.
      make: (x_0 [H, W, C] in [-1, 1], key) -> the random task of this image.
      of_given: (x_0 [H, W, C], known [H, W, 1] or None) -> what the network is shown of an image that a user gives:
        the grey of a colour image, or the grey image itself, to colourise; the image itself for "jpeg" and "deblur";
        the small image, enlarged and without noise, for "super_resolve"; the image with 0 in the hole, where `known` is
        0 or False, for tasks with a hole. Raises UserError if `known` is missing, or given to a task without a hole.
      factor: how many times smaller, on each side, the image is that a user gives.
      max_level: the highest level of the noise that is added to what is shown; 0: there is no noise and no level.
      at_level: (x_0 [H/factor, W/factor, C], level in 0..max_level, key of the noise) -> what the network is shown of
        an image that a user gives, with noise of this level; None without noise.
      of_noised: (x_s [H/factor, W/factor, C] with the noise of a level already, level) -> the same; None without noise.
      alphas_bar: of the levels 0..max_level, in float64: x_s = sqrt(alpha-bar) x_0 + sqrt(1 - alpha-bar) eps.
    """

    name: str
    has_hole: bool
    num_channels: Callable[[int], int]
    make: Callable[[Float[Array, "H W C"], Key[Array, ""]], Shown]
    of_given: Callable[[Float[Array, "H W C"], Shaped[Array | np.ndarray, "H W 1"] | None], Shown]
    factor: int = 1
    max_level: int = 0
    at_level: Callable[[Float[Array, "h w C"], Int[Array, ""], Key[Array, ""]], Shown] | None = None
    of_noised: Callable[[Float[Array, "h w C"], Int[Array, ""]], Shown] | None = None
    alphas_bar: tuple[float, ...] = (1.0,)


def check_no_known(name: str, known: object) -> None:
    """Raises UserError for a mask that is given to the task of this name, which has no hole."""
    if known is not None:
        raise UserError(f"{arg('known')} must be None for {arg('name')}={name!r}, which has no hole")


def checked_range(name: str, got: tuple, allowed: str, inside: Callable[[float, float], bool]) -> tuple:
    """(LOW, HIGH) of a setting; raises UserError, which says what is allowed, for others.

    Args:
      inside: must hold for the two, and for them as float32, in which all is computed.
    """
    ends = tuple(got) if isinstance(got, tuple | list | np.ndarray) else ()
    are_numbers = len(ends) == 2 and all(np.ndim(end) == 0 and np.asarray(end).dtype.kind in "iuf" for end in ends)
    if not are_numbers or not ends[0] <= ends[1] or not (inside(*ends) and inside(*map(np.float32, ends))):
        shown = ",".join(map(str, ends)) or ("nothing" if isinstance(got, tuple | list) else repr(got))
        raise UserError(f"{arg(name)} must be LOW,HIGH with {allowed}; got {shown}")
    return ends
