"""The pictures of a training run: grids of raw and EMA weights, and a batch being denoised."""

import os
from collections.abc import Callable

import numpy as np

from ddpm_jax.generation import Generator
from ddpm_jax.hosts import is_first
from ddpm_jax.pictures import image_grid, save_gif, save_grid, save_strip
from ddpm_jax.progress import ProgressBar
from ddpm_jax.training.report import Reporter
from ddpm_jax.training.state import TrainState

SEED = 0  # all grids of a run start from the same noise, so that they can be compared
LAST_PICTURE = "denoising.gif"  # of draw_final: where it is, the others are
NUM_STRIP_ROWS = 6
NUM_STRIP_COLUMNS = 11
NUM_GIF_IMAGES = 25
GIF_FRAME_MS, GIF_HOLD_MS = 80, 2000


def draw_samples(
    generator: Generator, state: TrainState, reporter: Reporter, path: str, *, num_samples: int
) -> dict[str, float]:
    """Writes the grids PATH_ema.png and PATH_raw.png, and shows both to the reporter.

    Returns:
      sample_mean_c1, ...: the mean of each channel of the EMA's samples in 0..255, which drifts where colours do.
    """
    step = int(state.step)
    images = _draw_grid(generator, state.ema_params, reporter, path, "ema", num_samples, step)
    _draw_grid(generator, state.params, reporter, path, "raw", num_samples, step)
    means = images.mean(axis=(0, 1, 2), dtype=np.float64)
    return {f"sample_mean_c{i}": float(mean) for i, mean in enumerate(means, start=1)}


def draw_final(
    generator: Generator, state: TrainState, reporter: Reporter, folder: str, *, num_samples: int
) -> None:
    """Writes final_ema.png and final_raw.png, and the first batch of the former being denoised: denoising.png,
    some pictures over t, and denoising.gif."""
    frames, steps = [], []

    def record(first: int, t: int, x_t: np.ndarray) -> None:
        if first == 0:
            frames.append(x_t[: min(NUM_GIF_IMAGES, num_samples)])
            steps.append(t)

    path, step = os.path.join(folder, "final"), int(state.step)
    _draw_grid(generator, state.params, reporter, path, "raw", num_samples, step)
    _draw_grid(generator, state.ema_params, reporter, path, "ema", num_samples, step, watch=record)
    if is_first():
        columns = np.unique(np.rint(np.linspace(0, len(steps) - 1, NUM_STRIP_COLUMNS)).astype(int))
        labels = ["x_0" if steps[i] < 0 else f"t={steps[i]}" for i in columns]
        save_strip(os.path.join(folder, "denoising.png"), np.stack(frames)[columns, :NUM_STRIP_ROWS], labels)
        save_gif(os.path.join(folder, LAST_PICTURE), np.stack(frames), GIF_FRAME_MS, GIF_HOLD_MS)


def _draw_grid(
    generator: Generator,
    params: dict,
    reporter: Reporter,
    path: str,
    name: str,
    num_samples: int,
    step: int,
    watch: Callable[[int, int, np.ndarray], None] | None = None,
) -> np.ndarray:
    """The pictures, uint8 [N, H, W, C], which are in PATH_NAME.png afterwards."""
    total = generator.num_batches(num_samples) * generator.num_rows
    with ProgressBar(total, f"drawing {name} samples", enabled=is_first()) as bar:
        images = generator.generate(params, seed=SEED, num_samples=num_samples, on_chunk=bar.update, watch=watch)
    if is_first():
        save_grid(f"{path}_{name}.png", images)
        reporter.image(f"samples/{name}", image_grid(images), step)
    return images
