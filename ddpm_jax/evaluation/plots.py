"""The curves of an evaluation as PNG files. Matplotlib is loaded for the first plot; pyplot is never loaded."""

import os
from typing import TYPE_CHECKING

import numpy as np

from ddpm_jax.runtime.atomic_files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 130
_PANEL = (4.4, 3.6)  # inches
_LINE = "#1f4e79"


def save_likelihood_by_step(path: str | os.PathLike, by_step: dict[str, np.ndarray], title: str) -> None:
    """Plots L_t and the mean squared error of x_0_hat against t, of `Bits.by_step`; bands show one standard error."""
    figure, (left, right) = _figure(2, title)
    # The paper's t, 1..T, because a logarithmic axis has no t = 0.
    t = by_step["t"] + 1
    for axes, name, label in (
        (left, "terms", r"$L_{t-1}$ (bits/dim)"),
        (right, "x_0_mse", r"MSE of $\hat{x}_0$ (pixels in [-1, 1])"),
    ):
        _curve(axes, t, by_step[name], by_step[f"{name}_standard_error"])
        axes.set(xscale="log", yscale="log", xlabel="diffusion step t (1 to T, as in the paper)", ylabel=label)
    _save(path, figure)


def save_rate_distortion(path: str | os.PathLike, curve: dict[str, np.ndarray], title: str) -> None:
    """Plots distortion and rate against the reverse steps, and against each other (Ho et al. 2020, figure 5)."""
    figure, (left, middle, right) = _figure(3, title)
    steps, rate, distortion = curve["reverse_steps"], curve["rate"], curve["distortion"]
    words = {"rate": "rate (bits/dim)", "distortion": "distortion (RMSE of 0..255)", "steps": "reverse steps T - t"}
    _curve(left, steps, distortion, curve["distortion_standard_error"])
    left.set(xlabel=words["steps"], ylabel=words["distortion"], ylim=(0, None))
    _curve(middle, steps, rate, curve["rate_standard_error"])
    middle.set(xlabel=words["steps"], ylabel=words["rate"], ylim=(0, None))
    _curve(right, rate, distortion, curve["distortion_standard_error"])
    right.set(xlabel=words["rate"], ylabel=words["distortion"], ylim=(0, None))
    _save(path, figure)


def _figure(num_panels: int, title: str) -> tuple["Figure", "list[Axes]"]:
    from matplotlib.figure import Figure  # imported here: no other command needs it, and loading takes a second

    figure = Figure(figsize=(_PANEL[0] * num_panels, _PANEL[1]), layout="constrained", dpi=_DPI)
    figure.suptitle(title, fontsize=9, color="0.3")
    panels = list(np.atleast_1d(figure.subplots(1, num_panels)))
    for axes in panels:
        axes.grid(True, linewidth=0.5, color="0.88")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _curve(axes: "Axes", x: np.ndarray, mean: np.ndarray, error: np.ndarray) -> None:
    marker = "." if len(x) < 50 else None  # for few points, and for a single one, a line alone is not visible
    axes.plot(x, mean, color=_LINE, linewidth=1.3, marker=marker)
    # NaN (the error of a single image) draws no band; and a band must not reach below 0 on a logarithmic axis.
    low = np.maximum(mean - error, 0.5 * np.minimum(mean, mean + error))
    axes.fill_between(x, low, mean + error, color=_LINE, alpha=0.2, linewidth=0)


def _save(path: str | os.PathLike, figure: "Figure") -> None:
    with replace_file(path) as file:
        figure.savefig(file, format="png")
