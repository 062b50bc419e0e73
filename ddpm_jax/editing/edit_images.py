"""Edits images with a trained run: the results of any of `settings.EDITS`, batch by batch."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ddpm_jax.diffusion.rng import check_seed
from ddpm_jax.editing.condition import Told, sampler_settings_of, says_classes
from ddpm_jax.editing.interpolation import Interpolate
from ddpm_jax.editing.known_part import Inpaint, Outpaint
from ddpm_jax.editing.latents import Variation
from ddpm_jax.editing.measured import Colourise, SuperResolve
from ddpm_jax.editing.restarted import SDEdit
from ddpm_jax.editing.settings import EDIT_SETTINGS, EDITS, MAX_RESULTS, TRAINED, checked_settings
from ddpm_jax.editing.shown import Restore
from ddpm_jax.editing.task import Batch, EditedRun, Task
from ddpm_jax.experiment.sampler_settings import settings_named
from ddpm_jax.experiment.trained_run import TrainedRun
from ddpm_jax.runtime.devices import make_mesh
from ddpm_jax.runtime.errors import UserError, arg, check_between, whole_number
from ddpm_jax.runtime.progress import ProgressBar

_TASKS: dict[str, Callable[..., Task]] = {
    "inpaint": Inpaint,
    "outpaint": Outpaint,
    "sdedit": SDEdit,
    "variation": Variation,
    "interpolate": Interpolate,
    "colourise": Colourise,
    "super_resolve": SuperResolve,
    "restore": Restore,
}
# Of the sampler, for the edits by DDIM inversion, which have a sampler of their own.
_OF_INVERSION = ("num_sampler_steps", "classes", "guidance_scale")
_PAPERS_STEPS = 250  # of RePaint (Lugmayr et al. 2022, section 5), where the run itself takes more


class Wanted(NamedTuple):
    """One result that is wanted, with its inputs; see `task.Batch`."""

    number: int  # image * num_results + k
    image: np.ndarray
    mask: np.ndarray
    target: np.ndarray


class Editor:
    """One edit by one run, with all of its settings; its programs are compiled at the first batch.

    Args:
      what: one of `settings.EDITS`.
      num_results: of each image.
      seed: result k of image n depends on it, the image and n * num_results + k alone.
      batch_size: results at a time; None: that of the run.
      given: settings of the edit and of the sampler by name.

    Raises:
      UserError: settings that do not fit the edit, its sampler or the run.
    """

    def __init__(
        self,
        run: TrainedRun,
        what: str,
        *,
        num_results: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
        **given: object,
    ):
        if not isinstance(run, TrainedRun):
            raise UserError(f"{arg('run')} must be a TrainedRun, from dj.open_run; got {run!r:.60}")
        run.check_images("edits are of images")
        self.what, self.num_results, self.seed = what, whole_number("num_results", num_results), seed
        check_between("num_results", self.num_results, 1, MAX_RESULTS)
        check_seed("seed", seed)
        task = run.image_task
        of_edit = {name: given[name] for name in given if name in EDIT_SETTINGS}
        if what == "super_resolve" and task is not None and task.factor > 1:
            if of_edit.setdefault("factor", task.factor) != task.factor:
                raise UserError(
                    f"{arg('factor')} must be {task.factor}, for which the network was trained; got {of_edit['factor']}"
                )
        self.settings = checked_settings(what, of_edit, "" if task is None else task.name)
        of_sampler = {name: given[name] for name in given if name not in EDIT_SETTINGS}
        if EDITS[what].of_pixels:
            others = ", ".join(name for name, kind in EDITS.items() if not kind.of_pixels)
            run.check_pixels(f"{arg(f'what={what}')} needs the pixels of x_0", f": take {others}")
        self.mesh = make_mesh()
        self.run = self._with_sampler(run, of_sampler, batch_size)
        told = Told(self.num_results, says_classes(of_sampler), by_image=what == "interpolate")
        if told.with_classes and not told.by_image:
            self._check_classes()
        names = [*of_sampler, *(["batch_size"] if batch_size is not None else [])]
        with settings_named(names):
            shown = what in ("colourise", "super_resolve") and self.settings["method"] == TRAINED
            make = Restore if shown else _TASKS[what]
            self.task = make(EditedRun(self.run, told, self.mesh, run.programs), self.settings)

    def _with_sampler(self, run: TrainedRun, given: dict[str, object], batch_size: int | None) -> TrainedRun:
        method = self.settings["method"]
        inverts = self.what in ("variation", "interpolate") and method in ("ddim", "noise")
        for name in given if inverts else ():
            if name not in _OF_INVERSION:
                raise UserError(
                    f"{arg(name)} has no effect on {arg(f'what={self.what}')} by {method}, which samples by DDIM; it "
                    f"reads {', '.join(_OF_INVERSION)}"
                )
        given = sampler_settings_of(run, given)
        if inverts:
            given = given | {"sampler": "ddim", "eta": 0.0, "clip_x_0": False, "dynamic_threshold": 0.0}
            given.setdefault("num_sampler_steps", 0)
        elif method == "repaint" and not {"num_sampler_steps", "respacing", "spacing"} & given.keys():
            if run.sampler_table.num_calls > _PAPERS_STEPS:
                given = given | {"num_sampler_steps": _PAPERS_STEPS}
        return run.with_sampler(given, batch_size=batch_size, num_devices=self.mesh.size)

    def _check_classes(self) -> None:
        """Raises UserError for more classes than an image has results, of which some would never be drawn."""
        count = len(self.run.sampler_settings["classes"])
        if count > self.num_results:
            results = f"{self.num_results} result{'s' * (self.num_results != 1)}"
            raise UserError(
                f"{arg('classes')} has {count} classes and each image {results}: give {arg(f'num_results={count}')} or "
                "more"
            )

    def check_num_images(self, num_images: int) -> None:
        """Raises UserError for so many images that they have too many results."""
        if num_images * self.num_results > MAX_RESULTS:
            raise UserError(
                f"at most {MAX_RESULTS:,} results; got {num_images:,} times {arg(f'num_results={self.num_results}')}"
            )

    def check_masks(self, name: str) -> None:
        """Raises UserError if the edit takes masks, but not of the x_0 of this run; `name` is the argument."""
        if EDITS[self.what].takes_mask:
            self.run.check_pixels(f"{arg(name)} is of pixels", ": leave it out")

    def batch_of(self, num_inputs: int) -> int:
        """The results of a batch, for that many inputs."""
        return self.task.batch_of(num_inputs * self.num_results)

    def results(
        self, wanted: Iterable[Wanted], batch_size: int, on_chunk: Callable[[int], None]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(number, uint8 [*result_shape]) of the wanted results, in their order.

        Args:
          batch_size: from `batch_of`; no influence on the results.
          on_chunk: called with numbers of network calls that are done.
        """
        wanted = iter(wanted)
        while part := list(itertools.islice(wanted, batch_size)):
            filled = part + [part[-1]] * (batch_size - len(part))
            numbers, *arrays = (np.stack(column) for column in zip(*filled, strict=True))
            numbers = numbers.astype(np.int32)
            batch = Batch(*arrays, images_of=numbers // self.num_results, numbers=numbers)
            drawn = self.task.draw(batch, seed=self.seed, num_used=len(part), on_chunk=on_chunk)
            yield from zip((one.number for one in part), drawn[: len(part)], strict=True)


def edit_images(
    run: TrainedRun,
    images: np.ndarray | None,
    what: str,
    *,
    mask: np.ndarray | None = None,
    to: np.ndarray | None = None,
    num_results: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
    **settings: object,
) -> np.ndarray:
    """Edited images, uint8 [N, num_results, H, W, C]; those of `python -m ddpm_jax.edit` with the same settings.

    Result k of image n depends on the seed, the image and n * num_results + k alone. With classes it has the class
    classes[k mod len(classes)]. docs/editing.md describes the edits and their settings.

    Args:
      images: uint8 [N, H, W, C] of the size of the run's images; for "colourise" grey, [N, H, W, 1]; for
        "super_resolve" [N, H/factor, W/factor, C]; None for "interpolate" with method="noise".
      what: "inpaint", "outpaint", "sdedit", "variation", "interpolate", "colourise", "super_resolve" or "restore".
      mask: 1 or True where the image is known, [H, W, 1] or [N, H, W, 1], such as from `make_mask`: for "inpaint", and
        if wanted for "sdedit".
      to: for "interpolate": the other images, [N, H, W, C].
      batch_size: results at a time, a multiple of the number of devices; None: that of the run.
      settings: of the edit (method, strength, factor, side, jump_length, num_resamplings, zeta, num_fixed_point,
        num_pairs) and of the sampler (see `TrainedRun.sample`).

    Raises:
      UserError: what does not fit, by argument.

    Example:
      import ddpm_jax as dj

      run = dj.open_run("digits")
      images = run.source("test").load(range(8))
      results = dj.edit_images(run, images, "inpaint", mask=dj.make_mask("bottom", 8, 8), num_results=4)
    """
    editor = Editor(run, what, num_results=num_results, seed=seed, batch_size=batch_size, **settings)
    arrays = _checked_arrays(editor, images, mask, to)
    num_images = len(arrays[0])
    editor.check_num_images(num_images)
    num_wanted = num_images * editor.num_results
    batch_size = editor.batch_of(num_images)
    wanted = (Wanted(n, *(array[n // editor.num_results] for array in arrays)) for n in range(num_wanted))
    with ProgressBar(-(-num_wanted // batch_size) * editor.task.num_calls, what, enabled=progress) as bar:
        results = np.stack([image for _, image in editor.results(wanted, batch_size, bar.update)])
    return results.reshape(num_images, editor.num_results, *editor.task.result_shape)


def _checked_arrays(editor: Editor, images, mask, to) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, masks and targets, [N, ...] each."""
    what, shape = editor.what, editor.task.input_shape
    if what == "interpolate" and editor.settings["method"] == "noise":
        if images is not None or to is not None:
            raise UserError(f"{arg('method=noise')} interpolates between noises: leave out the images")
        images = to = np.broadcast_to(np.uint8(0), (editor.settings["num_pairs"], *shape))
    images = _uint8_images("images", images, shape)
    if mask is not None:
        editor.check_masks("mask")
    if (to is None) == (what == "interpolate"):
        remedy = "give the other images" if to is None else "leave it out"
        raise UserError(f"{arg('to')} is of {arg('what=interpolate')}; got what={what!r}: {remedy}")
    targets = images if to is None else _uint8_images("to", to, shape)
    if targets.shape != images.shape:
        raise UserError(f"{arg('to')} must have an image for each of the {len(images)}; got {len(targets)}")
    return images, _masks(what, mask, images.shape), targets


def _uint8_images(name: str, images: object, shape: tuple[int, ...]) -> np.ndarray:
    images = _array(name, images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise UserError(f"{arg(name)} must be uint8 {['N', *shape]}, 0..255; got {images.dtype} {list(images.shape)}")
    return images


def _array(name: str, given: object) -> np.ndarray:
    try:
        return np.asarray(given)
    except ValueError:
        raise UserError(f"{arg(name)} must be one array; got parts of different shapes") from None


def _masks(what: str, mask: object, shape: tuple[int, ...]) -> np.ndarray:
    kind, wanted = EDITS[what], (*shape[:-1], 1)
    if mask is None and not kind.needs_mask:
        return np.full(wanted, not kind.takes_mask)  # of SDEdit: all is drawn
    if mask is None or not kind.takes_mask:
        remedy = "give one" if mask is None else "leave it out"
        takers = ", ".join(name for name, kind in EDITS.items() if kind.takes_mask)
        raise UserError(f"{arg('mask')} says what is known, for {takers}; got what={what!r}: {remedy}")
    mask = _array("mask", mask)
    if mask.dtype.kind not in "biuf" or not np.all((mask == 0) | (mask == 1)):
        raise UserError(
            f"{arg('mask')} must be boolean, or 1 where the image is known and 0 elsewhere: take mask > 127 of an image"
        )
    if mask.shape not in (wanted, wanted[1:]):
        raise UserError(f"{arg('mask')} must be {list(wanted[1:])} or {list(wanted)}; got {list(mask.shape)}")
    return np.broadcast_to(mask == 1, wanted)
