"""The numbers between two reports: means over what was taken, skips in a row, spikes; and rates."""

import numpy as np
import pytest

from ddpm_jax.data.batch_loader import LoaderCounts
from ddpm_jax.training.metrics_window import SPIKE_LEAST, Binned, MetricsWindow
from ddpm_jax.training.nonfinite import NonFiniteError
from ddpm_jax.training.throughput import Throughput


def metrics(loss, grad_norm=1.0):
    zeros = np.zeros(4, np.float32)
    return {"loss": np.float32(loss), "grad_norm": np.float32(grad_norm), "loss_t": Binned(zeros, zeros)}


def fill(window, losses):
    for loss in losses:
        window.add(metrics(loss))


def test_means_and_the_largest():
    window = MetricsWindow()
    fill(window, [1, 2, 6])
    assert window.numbers(3) == {"loss": 3, "grad_norm": 1, "loss_max": 6}
    assert len(window) == 0


def test_skips_in_a_row_up_to_the_limit():
    skipped = []
    window = MetricsWindow(skip_limit=2, on_skip=skipped.append)
    fill(window, [1, np.nan, np.inf, 3, np.nan])
    assert window.numbers(5) == {"loss": 2, "grad_norm": 1, "loss_max": 3, "skipped_steps": 3}
    assert [(error.step, error.what) for error in skipped] == [
        (2, "loss became nan"), (3, "loss became inf"), (5, "loss became nan")
    ]  # fmt: skip
    # The row goes on over the border of two windows.
    fill(window, [np.nan])
    assert window.numbers(6) == {"skipped_steps": 1}
    fill(window, [np.nan])
    with pytest.raises(NonFiniteError, match="^loss became nan at step 7$"):
        window.numbers(7)


def test_a_gradient_counts_too():
    window = MetricsWindow()
    window.add(metrics(1.0, np.inf))
    with pytest.raises(NonFiniteError, match="^grad_norm became inf at step 9$"):
        window.numbers(9)


def test_a_spike_is_told_from_noise():
    seen = []
    window = MetricsWindow(on_spike=lambda *numbers: seen.append(numbers))
    noise = 1 + 0.1 * np.tile([-1.0, 1.0], SPIKE_LEAST // 2)  # mean 1, deviation 0.1
    fill(window, [5.0])  # the very first losses of a run are large
    fill(window, noise[1:])
    window.numbers(SPIKE_LEAST)
    assert not seen
    window = MetricsWindow(on_spike=lambda *numbers: seen.append(numbers))
    fill(window, [*noise, 1.75, 2.5])
    window.numbers(SPIKE_LEAST + 2)
    assert len(seen) == 1
    step, loss, mean, deviation = seen[0]
    assert (step, loss) == (SPIKE_LEAST + 2, 2.5)
    before = np.float32([*noise, 1.75])
    assert mean == pytest.approx(before.mean()) and deviation == pytest.approx(before.std())


def test_rates():
    counts = LoaderCounts(images=30, load_seconds=0.5, wait_seconds=0.2)
    rates = Throughput(8, take_counts=lambda: counts, num_processes=2, step_flops=lambda: 1e9, peak=lambda: 1e11)
    numbers = rates(10, 2.0)
    assert numbers == pytest.approx({
        "images_per_second": 40, "seconds_per_step": 0.2, "data_wait": 0.1, "loader_images_per_second": 120,
        "share_of_peak": 0.05,
    })  # fmt: skip


def test_what_is_not_known_is_left_out():
    assert Throughput(8)(1, 0.5).keys() == {"images_per_second", "seconds_per_step", "data_wait"}
