"""Runs the edit of a command: images and masks from files, results into a folder, and what is printed."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ddpm_jax.data.image_listing import first_of, printable, skipped_note
from ddpm_jax.editing.edit_images import Editor, Wanted
from ddpm_jax.editing.inputs import NOT_READ, Inputs, open_inputs
from ddpm_jax.editing.job import GRID_FILE, MAX_GRID, EditJob, digest
from ddpm_jax.editing.masks_of_files import Masks, named_hole, open_masks
from ddpm_jax.editing.settings import EDITS
from ddpm_jax.experiment.run_programs import RunPrograms
from ddpm_jax.experiment.weights_digest import weights_digest
from ddpm_jax.runtime.errors import UserError, arg
from ddpm_jax.runtime.progress import ProgressBar

_HOLE = 128  # brightness of holes in the grid
_NO_INFLUENCE = ("batch_size", "num_grid", "preview_sampler", "num_preview_steps")  # fields of `sample`


@dataclass
class EditFiles:
    """What a command edits: images, masks, and for `interpolate` the other image, opened and checked.

    Args:
      editor: with all settings.
      images: the path; None for an edit without images.
      mask, fit_mask: a file or folder of masks; see `masks_of_files.open_masks`.
      hole, hole_share: the name of a hole in place of a mask, and of "random" the share of the pixels in it; see
        `named_hole`.
      to: the path of the other image.

    Raises:
      UserError: what is missing, too much, or cannot be read.
    """

    editor: Editor
    images: str | None
    mask: str | None = None
    hole: str | None = None
    hole_share: float | None = None
    fit_mask: bool = False
    to: str | None = None
    inputs: Inputs = field(init=False)
    unreadable: list[tuple[str, str]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        what, shape = self.editor.what, self.editor.task.input_shape
        if shape[-1] not in (1, 3):
            raise UserError(f"edits write image files, and the images of this run have {shape[-1]} channels")
        if what == "interpolate" and self.editor.settings["method"] == "noise":
            if self.images is not None or self.to is not None:
                raise UserError(f"{arg('method=noise')} takes no images: leave out {arg('images')} and {arg('to')}")
            count = self.editor.settings["num_pairs"]
            names = tuple(f"noises_{2 * pair}_{2 * pair + 1}" for pair in range(count))
            self.inputs = Inputs(names, names, (), lambda number: np.zeros(shape, np.uint8))
        elif self.images is None:
            raise UserError(f"{arg('images')} must name the image, a folder of images, or an array file to edit")
        else:
            self.inputs = open_inputs("images", self.images, shape, self.editor.num_results)
        self.editor.check_num_images(len(self.inputs))
        self._target = self._open_target()
        self._masks = self._open_masks()
        self._masks_digest = self._check_masks()

    def _open_target(self) -> np.ndarray | None:
        what = self.editor.what
        if what != "interpolate":
            if self.to is not None:
                raise UserError(f"{arg('to')} is of {arg('what=interpolate')}; got what={what}: leave it out")
            return None
        if self.editor.settings["method"] == "noise":
            return None
        if self.to is None:
            raise UserError(f"{arg('to')} must name the image to which {arg('what=interpolate')} leads")
        others = open_inputs("to", self.to, self.editor.task.input_shape)
        if len(others) != 1:
            raise UserError(f"{arg('to')} must name one image; {self.to!r} has {len(others)}")
        return others.load(0)

    def _open_masks(self) -> Masks:
        kind, what = EDITS[self.editor.what], self.editor.what
        height, width, _ = self.editor.task.input_shape
        given = [name for name in ("mask", "hole") if getattr(self, name) is not None]
        if given and not kind.takes_mask:
            takers = ", ".join(name for name, kind in EDITS.items() if kind.takes_mask)
            raise UserError(f"{arg(given[0])} is of {takers}; got {arg(f'what={what}')}: leave it out")
        if len(given) > 1:
            raise UserError(f"{arg('mask')} and {arg('hole')} both say what is known: give one of them")
        if self.fit_mask and "mask" not in given:
            raise UserError(f"{arg('fit_mask')} needs a {arg('mask')}")
        if self.hole_share is not None and self.hole != "random":
            got = f"no {arg('hole')}: give it" if self.hole is None else f"{arg(f'hole={self.hole}')}: leave it out"
            raise UserError(f"{arg('hole_share')} is of {arg('hole=random')}; got {got}")
        if given:
            self.editor.check_masks(given[0])
        if not given:
            if kind.needs_mask:
                raise UserError(
                    f"{arg(f'what={what}')} needs {arg('hole')}, such as {arg('hole=centre')}, or {arg('mask')}, a "
                    "file that is white where the image is known and black in the hole"
                )
            same = np.full((height, width, 1), not kind.takes_mask)
            return Masks(lambda number: same)
        if self.hole is not None:
            hole = named_hole(self.hole, self.hole_share, height, width)
            return Masks(lambda number: hole)
        return open_masks(self.mask, self.inputs.files, (height, width), self.fit_mask)

    def _check_masks(self) -> str | None:
        """Reads all masks, so that no damaged one shows after hours, and returns their digest; None without masks.

        Raises:
          UserError: one that cannot be read, or without a hole.
        """
        if not EDITS[self.editor.what].takes_mask:
            return None
        digests, num_empty = [], 0
        for number, name in enumerate(self.inputs.names if self._masks.by_image else self.inputs.names[:1]):
            mask = self._masks.of(number)
            if mask.all():
                raise UserError(
                    f"{arg('mask')} is white everywhere for {name!r}, so that all is known and nothing would be drawn: "
                    "make the hole black"
                )
            num_empty += not mask.any()
            digests.append(digest(mask))
        if num_empty and EDITS[self.editor.what].needs_mask:
            print(f"note: {num_empty} of {len(digests)} masks are black everywhere: nothing of the image is known")
        return digest(*digests)

    def inputs_of(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The image of that number, its mask and its target. Raises UserError if a file cannot be read."""
        image = self.inputs.load(number)
        return image, self._masks.of(number), image if self._target is None else self._target

    def facts(self, run_name: str, programs: RunPrograms) -> dict[str, object]:
        """Everything that the results depend on, as JSON.

        Args:
          programs: of the run that was given to the editor.
        """
        editor, run = self.editor, self.editor.run
        others = [generator.other_networks for generator, _ in programs.generators.values()]
        guides = {name: about for networks in others for name, about in networks.items()}
        return {
            "what": editor.what,
            "run": run_name,
            "step": run.step,
            "weights": weights_digest(run.params),
            "settings": editor.settings,
            "sampler": {k: v for k, v in run.sampler_settings.items() if k not in _NO_INFLUENCE},
            **({"guiding network": guides} if guides else {}),
            "seed": editor.seed,
            "num_results": editor.num_results,
            "images": self.images,
            "list of images": digest(*self.inputs.names, *self.inputs.sources),
            "mask": self._masks_digest,
            "to": None if self._target is None else digest(self._target),
        }


def run_edit(files: EditFiles, job: EditJob) -> None:
    """Draws the results that the job lacks, writes them and the grid, and says what was done.

    Raises:
      UserError: no image could be read; a job without results then leaves its folder.
    """
    editor, inputs = files.editor, files.inputs
    num_results, num_images = editor.num_results, len(inputs)
    missing = [number for number in range(num_images * num_results) if not job.is_done(number)]
    done_before = num_images * num_results - len(missing)
    if done_before:
        print(f"{done_before} of {num_images * num_results} results are there already; drawing the others")
    damaged = [printable(job.path_of(number).name) for number in missing if job.path_of(number).exists()]
    if damaged:
        print(f"note: results that are damaged are drawn again: {first_of(damaged)}")
    batch_size = editor.batch_of(num_images)
    total = -(-len(missing) // batch_size) * editor.task.num_calls
    num_written = 0
    try:
        with ProgressBar(total, editor.what, enabled=bool(missing)) as bar:
            for number, image in editor.results(_wanted(files, missing), batch_size, bar.update):
                job.write(number, image)
                num_written += 1
        if files.unreadable:
            print(f"note: {skipped_note(files.unreadable, num_images)}")
        if not num_written and not done_before:
            raise UserError(f"{arg('images')} {files.images!r}: no image could be read")
    except UserError:
        if not num_written and not done_before:
            job.give_up()
        raise
    _write_grid(files, job)
    images = "image" if num_written == 1 else "images"
    print(f"wrote {num_written} {images} to {job.folder}, and {GRID_FILE} with the first results")


def _wanted(files: EditFiles, missing: list[int]) -> Iterator[Wanted]:
    """The missing results of the images that can be read; the others are listed in `files.unreadable`."""
    number_of_image, inputs = None, None
    for number in missing:
        image = number // files.editor.num_results
        if image != number_of_image:
            number_of_image, inputs = image, None
            try:
                inputs = files.inputs_of(image)
            except UserError as error:
                if len(files.inputs) == 1:
                    raise
                reason = str(error).partition(f" {NOT_READ}: ")[2] or str(error)
                files.unreadable.append((files.inputs.names[image], reason))
        if inputs is not None:
            yield Wanted(number, *inputs)


def _write_grid(files: EditFiles, job: EditJob) -> None:
    editor, num_results = files.editor, files.editor.num_results
    has_mask = files.mask is not None or files.hole is not None
    shown_results = np.rint(np.linspace(0, num_results - 1, min(num_results, MAX_GRID))).astype(int).tolist()
    has_images = files.images is not None
    rows = []
    for image in range(len(files.inputs)):
        if len(rows) == MAX_GRID:
            break
        numbers = [image * num_results + k for k in shown_results]
        if not all(map(job.is_done, numbers)):
            continue
        given, mask, target = files.inputs_of(image)
        row = [_enlarged(given, editor.task.result_shape)] if has_images else []
        row += [np.where(mask, given, np.uint8(_HOLE))] if has_mask else []
        row += [job.read(number) for number in numbers]
        row += [target] if has_images and editor.what == "interpolate" else []
        rows.append(row)
    labels = ["image"] if has_images else []
    labels += ["known"] if has_mask else []
    if editor.what == "interpolate" and num_results > 1:
        labels += [f"{k / (num_results - 1):.2g}" for k in shown_results]
    else:
        labels += [f"result {k}" if num_results > 1 else "result" for k in shown_results]
    labels += ["to"] if has_images and editor.what == "interpolate" else []
    job.write_grid(rows, labels)


def _enlarged(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A smaller image whose sizes divide those of the results, as large as they are, by repetition."""
    factors = [size // there for size, there in zip(shape[:2], image.shape[:2], strict=True)]
    if factors[0] != factors[1] or factors[0] == 1:
        return image
    return image.repeat(factors[0], axis=0).repeat(factors[0], axis=1)
