"""The samples of a training run: grids of raw and EMA weights, and a batch being denoised; arrays, if the data are no
images."""

import os
from collections.abc import Callable

import numpy as np

from ddpm_jax.experiment.generator import Generator
from ddpm_jax.experiment.sample_picture import sample_picture
from ddpm_jax.runtime.disk_space import disk_full_as_warning
from ddpm_jax.runtime.image_files import (
    can_be_drawn,
    save_gif,
    save_npz,
    save_picture,
    save_strip,
)
from ddpm_jax.runtime.multi_host import is_first
from ddpm_jax.runtime.progress import ProgressBar
from ddpm_jax.training.run_log import Reporter
from ddpm_jax.training.train_state import TrainState

SEED = 0  # all grids of a run start from the same noise, so that they can be compared
# Written last by draw_final: if it exists, the others do too.
LAST_FILE, LAST_FILE_OF_ARRAYS = "denoising.gif", "final_ema.npz"
NUM_STRIP_ROWS = 6
NUM_STRIP_COLUMNS = 11
NUM_GIF_IMAGES = 25
GIF_FRAME_MS, GIF_HOLD_MS = 80, 2000


def last_file(image_shape: tuple[int, ...], dtype: str) -> str:
    """The name of the file that is written last, for images or for data that cannot be drawn."""
    return LAST_FILE if can_be_drawn(np.empty((0, *image_shape), dtype)) else LAST_FILE_OF_ARRAYS


def draw_samples(
    generator: Generator, state: TrainState, reporter: Reporter, path: str, *, num_samples: int
) -> dict[str, float]:
    """Writes the grids PATH_ema.png and PATH_raw.png, and passes both to the reporter; a full disk is only a warning.

    See `sample_picture`. Samples that are no images are written as PATH_ema.npz and PATH_raw.npz.

    Returns:
      sample_mean_c1, ...: the mean of each channel of the EMA samples, which shows drift; of pixels in 0..255.
    """
    weights = {"ema": state.ema_params, "raw": state.params}
    # All network calls before anything is written: on a full disk process 0 must not leave the others waiting in one.
    grids = {name: _generate(generator, params, name, num_samples) for name, params in weights.items()}
    with disk_full_as_warning(f"the images of {os.path.basename(path)}"):
        for name, images in grids.items():
            _write(images, reporter, path, name, int(state.step), generator)
    means = grids["ema"].mean(axis=tuple(range(grids["ema"].ndim - 1)), dtype=np.float64)
    return {f"sample_mean_c{i}": float(mean) for i, mean in enumerate(means, start=1)}


def draw_final(
    generator: Generator, state: TrainState, reporter: Reporter, folder: str, *, num_samples: int
) -> None:
    """Writes final_ema.png and final_raw.png, and shows how the first EMA batch is denoised: denoising.png, some images
    over t, and denoising.gif. Samples that are no images are written as final_raw.npz and final_ema.npz alone."""
    frames, steps = [], []

    def record(first: int, t: int, x_t: np.ndarray) -> None:
        if first == 0:
            frames.append(x_t[: min(NUM_GIF_IMAGES, num_samples)])
            steps.append(t)

    path, step = os.path.join(folder, "final"), int(state.step)
    raw = _generate(generator, state.params, "raw", num_samples)
    ema = _generate(generator, state.ema_params, "ema", num_samples, watch=record)
    _write(raw, reporter, path, "raw", step, generator)
    _write(ema, reporter, path, "ema", step, generator)
    if is_first() and can_be_drawn(ema):
        columns = np.unique(np.rint(np.linspace(0, len(steps) - 1, NUM_STRIP_COLUMNS)).astype(int))
        labels = ["x_0" if steps[i] < 0 else f"t={steps[i]}" for i in columns]
        save_strip(os.path.join(folder, "denoising.png"), np.stack(frames)[columns, :NUM_STRIP_ROWS], labels)
        save_gif(os.path.join(folder, LAST_FILE), np.stack(frames), GIF_FRAME_MS, GIF_HOLD_MS)


def _generate(
    generator: Generator,
    params: dict,
    name: str,
    num_samples: int,
    watch: Callable[[int, int, np.ndarray], None] | None = None,
) -> np.ndarray:
    """The samples, [N, *sizes, C], with a progress bar."""
    total = generator.num_batches(num_samples) * generator.num_rows
    with ProgressBar(total, f"drawing {name} samples", enabled=is_first()) as bar:
        return generator.generate(params, seed=SEED, num_samples=num_samples, on_chunk=bar.update, watch=watch)


def _write(images: np.ndarray, reporter: Reporter, path: str, name: str, step: int, generator: Generator) -> None:
    """Writes PATH_NAME.png, or PATH_NAME.npz where that cannot be drawn, on the first process."""
    if is_first() and not can_be_drawn(images):
        save_npz(f"{path}_{name}.npz", images)
    elif is_first():
        picture = sample_picture(generator, images)
        save_picture(f"{path}_{name}.png", picture)
        reporter.image(f"samples/{name}", picture, step)
